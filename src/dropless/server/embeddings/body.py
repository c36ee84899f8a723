"""What clients may send to /v1/embeddings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator

from dropless.errors import InvalidRequestError
from dropless.server.embeddings.model import DIMENSIONS
from dropless.server.strict_body import StrictBody
from dropless.server.unsupported_fields import refuse_unsupported

MAX_INPUTS = 2048

Input = str | list[int]


def _as_inputs(value: Any) -> Any:
    """The four shapes of `input` as a list of texts and token id lists."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value and all(type(item) is int for item in value):
        return [value]
    if isinstance(value, list) and value and all(isinstance(item, str | list) for item in value):
        return value
    raise InvalidRequestError(
        "input must be a string, a list of strings, a list of token ids or a list of lists of "
        "token ids, and not empty",
        param="input",
    )


class EmbeddingBody(StrictBody):
    """`instruction`, an extension, is put before every text."""

    model: str
    input: Annotated[list[Input], BeforeValidator(_as_inputs)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    instruction: str | None = None
    client_request_id: str | None = None  # recorded with the call, as the next
    usage_context: dict[str, str] | None = None

    @model_validator(mode="after")
    def _check_fields(self) -> EmbeddingBody:
        refuse_unsupported(self.model_extra or {})
        if len(self.input) > MAX_INPUTS:
            raise InvalidRequestError(
                f"input has {len(self.input)} texts; send at most {MAX_INPUTS} at once",
                param="input",
            )
        if self.dimensions not in (None, DIMENSIONS):
            raise InvalidRequestError(
                f"dimensions is {self.dimensions}; this model's vectors have {DIMENSIONS} and "
                "mean nothing when they are cut: leave it out",
                param="dimensions",
            )
        if self.instruction and any(isinstance(text, list) for text in self.input):
            raise InvalidRequestError(
                "an instruction cannot be put before token ids; send texts", param="instruction"
            )
        return self

    @property
    def inputs(self) -> list[Input]:
        """What to embed, instruction and all."""
        if not self.instruction:
            return self.input
        return [f"{self.instruction} {text}" for text in self.input]


class NamedEmbeddingBody(EmbeddingBody):
    """Of a path that names the endpoint."""

    model: str = ""
