"""The kinds of personal data that can be found. No presidio: the HTTP process checks settings."""

from __future__ import annotations

# What tells of one person by itself. Found by pattern, checksum and the words beside it.
DEFAULT_ENTITIES = (
    "CREDIT_CARD",
    "EMAIL_ADDRESS",
    "IBAN_CODE",
    "PHONE_NUMBER",
    "US_BANK_NUMBER",
    "US_SSN",
)

# What needs a language model, and is in most ordinary questions: "Who was Ada Lovelace?"
NAMES = frozenset({"PERSON", "LOCATION", "NRP", "ORGANIZATION", "DATE_TIME"})

ENTITIES = (
    *DEFAULT_ENTITIES,
    "CRYPTO",
    "IP_ADDRESS",
    "MAC_ADDRESS",
    "MEDICAL_LICENSE",
    "UK_NHS",
    "URL",
    "US_DRIVER_LICENSE",
    "US_ITIN",
    "US_PASSPORT",
    *sorted(NAMES),
)
