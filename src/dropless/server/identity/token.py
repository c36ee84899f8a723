"""Personal access tokens as text: made, recognised, and kept out of logs."""

from __future__ import annotations

import hashlib
import re
import secrets
import string
import zlib
from dataclasses import dataclass

from dropless.errors import AuthenticationError

_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
_PREFIX = "dlp_"
_ID_CHARS = 10
_SECRET_CHARS = 32  # 190 bits
_CHECKSUM_CHARS = 6  # of 62 values each: a CRC-32 fits

_ID_END = len(_PREFIX) + _ID_CHARS
_TOKEN = re.compile(
    rf"{_PREFIX}[0-9A-Za-z]{{{_ID_CHARS + _SECRET_CHARS + _CHECKSUM_CHARS}}}", re.ASCII
)
# Also half a token, cut off somewhere, is none of a log's business.
_IN_TEXT = re.compile(rf"({_PREFIX}[0-9A-Za-z]{{{_ID_CHARS}}})[0-9A-Za-z]+", re.ASCII)


@dataclass(frozen=True, slots=True, repr=False)
class Token:
    """`dlp_`, ten characters that name it, 32 that are the secret, six of checksum. Scanners find
    it by its beginning and know it by its checksum."""

    value: str

    @classmethod
    def new(cls) -> Token:
        random = "".join(secrets.choice(_ALPHABET) for _ in range(_ID_CHARS + _SECRET_CHARS))
        body = _PREFIX + random
        return cls(body + _checksum(body))

    @classmethod
    def parse(cls, text: str) -> Token:
        """Raises AuthenticationError: `text` was never one of ours, whatever the store holds."""
        body, checksum = text[:-_CHECKSUM_CHARS], text[-_CHECKSUM_CHARS:]
        if not _TOKEN.fullmatch(text) or _checksum(body) != checksum:
            raise AuthenticationError(
                "the token is not one of this server's, or was not copied whole; they begin with "
                f"{_PREFIX} and have {_ID_END + _SECRET_CHARS + _CHECKSUM_CHARS} characters"
            )
        return cls(text)

    @property
    def token_id(self) -> str:
        """The visible beginning, which names the token and is no secret."""
        return self.value[:_ID_END]

    @property
    def sha256(self) -> bytes:
        """What the store keeps. A plain hash will do: nobody guesses 190 random bits."""
        return hashlib.sha256(self.value.encode()).digest()

    def __repr__(self) -> str:
        return f"<Token {self.token_id}...>"


def redacted(text: str) -> str:
    """The text with every token in it cut down to its visible beginning."""
    return _IN_TEXT.sub(r"\1...", text) if _PREFIX in text else text


def _checksum(body: str) -> str:
    rest = zlib.crc32(body.encode())
    digits = ""
    for _ in range(_CHECKSUM_CHARS):
        rest, digit = divmod(rest, len(_ALPHABET))
        digits = _ALPHABET[digit] + digits
    return digits
