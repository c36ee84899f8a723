"""What clients may send: the typed bodies of /v1/chat/completions and /v1/completions.

Types are strict ("1" is no number, NaN is refused) and null means "not given", as OpenAI's
clients send it. Fields of OpenAI's that cannot change the answer are accepted and ignored;
fields that would change it and are not supported, and unknown fields, are refused by name.
Ranges are checked by `SamplingParams`.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BeforeValidator, Field, model_validator

from dropless.engine.sampling_params import GrammarKind, GrammarSpec, SamplingParams
from dropless.errors import InvalidRequestError
from dropless.server.chat_messages import ChatMessage, check_messages
from dropless.server.strict_body import StrictBody
from dropless.server.tools.definitions import ToolBody, ToolChoice, ToolUse, tool_use
from dropless.server.unsupported_fields import refuse_unsupported

MAX_CHAT_CHOICES = 5
MAX_COMPLETION_CHOICES = 128
MAX_SEQUENCES = 1024  # prompts times n of one completions request
DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's, for /v1/completions only


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class StreamOptions(StrictBody):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # padding against traffic analysis: accepted, not done


class JsonSchema(StrictBody):
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | bool | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(StrictBody):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(StrictBody):
    """An extension: exactly one constraint on the whole answer."""

    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None  # in Lark's notation
    json_: dict[str, Any] | bool | None = Field(default=None, alias="json")


class SafetyMode(StrictBody):
    """The field and its older name."""

    enable_safety_mode: bool | None = None
    enable_safety_filter: bool | None = None


class ExtraBody(SafetyMode):
    """What OpenAI's client merges into the body, for those who write the body themselves."""

    @model_validator(mode="after")
    def _check_fields(self) -> ExtraBody:
        refuse_unsupported(self.model_extra or {}, where="extra_body")
        return self


class GenerationBody(SafetyMode):
    """What both endpoints share. Extensions to OpenAI's protocol come last."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    stop: Annotated[list[str] | None, BeforeValidator(_as_list)] = None
    response_format: ResponseFormat | None = None

    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    prompt_logprobs: int | None = None
    structured_outputs: StructuredOutputs | None = None
    include_timings: bool | None = None  # adds `timings` to the answer, or to its last chunk
    client_request_id: str | None = None  # recorded with the call, as the next
    usage_context: dict[str, str] | None = None
    extra_body: ExtraBody | None = None

    @model_validator(mode="after")
    def _check_fields(self) -> GenerationBody:
        refuse_unsupported(self.model_extra or {})
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError(
                "stream_options is only allowed with stream true", param="stream_options"
            )
        if self.stream and self.prompt_logprobs is not None:
            raise InvalidRequestError(
                "prompt_logprobs cannot be streamed; set stream to false", param="prompt_logprobs"
            )
        return self

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def safety_mode(self) -> bool:
        """Whether any of the fields that mean it says so."""
        places = (self, self.extra_body or SafetyMode())
        return any(place.enable_safety_mode or place.enable_safety_filter for place in places)

    def choices(self, limit: int) -> int:
        """How many answers to a prompt: `n`, checked against the endpoint's limit."""
        n = 1 if self.n is None else self.n
        if not 1 <= n <= limit:
            raise InvalidRequestError(f"n is {n}; it must be between 1 and {limit}", param="n")
        return n

    def _sampling_params(
        self, max_tokens: int | None, logprobs: int | None, prompt_logprobs: int | None
    ) -> SamplingParams:
        given = {
            name: value for name in _SAMPLING_FIELDS if (value := getattr(self, name)) is not None
        }
        return SamplingParams(
            **given,
            stop=tuple(self.stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            max_tokens=max_tokens,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            grammar=_grammar(self.response_format, self.structured_outputs),
        )


_SAMPLING_FIELDS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "seed",
    "min_tokens",
    "ignore_eos",
)


def _grammar(
    response_format: ResponseFormat | None, structured: StructuredOutputs | None
) -> GrammarSpec | None:
    constraints = _structured_constraints(structured)
    if response_format is not None and response_format.type != "text":
        if constraints:
            raise InvalidRequestError(
                "response_format and structured_outputs both constrain the answer; send one",
                param="structured_outputs",
            )
        return _format_grammar(response_format)
    return constraints[0] if constraints else None


def _format_grammar(response_format: ResponseFormat) -> GrammarSpec:
    if response_format.type == "json_object":
        return GrammarSpec("json_object")
    schema = response_format.json_schema
    if schema is None or schema.schema_ is None:
        raise InvalidRequestError(
            "response_format of type json_schema needs json_schema.schema, the schema itself",
            param="response_format",
        )
    return GrammarSpec("json_schema", json.dumps(schema.schema_))


def _structured_constraints(structured: StructuredOutputs | None) -> list[GrammarSpec]:
    if structured is None:
        return []
    param = "structured_outputs"
    if structured.model_extra:
        raise InvalidRequestError(
            f"structured_outputs has an unknown field {next(iter(structured.model_extra))!r}; "
            "use one of regex, choice, grammar, json",
            param=param,
        )
    if structured.choice is not None and not structured.choice:
        raise InvalidRequestError("structured_outputs.choice is empty", param=param)
    kinds: list[tuple[GrammarKind, str | None]] = [
        ("regex", structured.regex),
        ("choice", None if structured.choice is None else json.dumps(structured.choice)),
        ("lark", structured.grammar),
        ("json_schema", None if structured.json_ is None else json.dumps(structured.json_)),
    ]
    specs = [GrammarSpec(kind, text) for kind, text in kinds if text is not None]
    if len(specs) != 1:
        raise InvalidRequestError(
            f"structured_outputs has {len(specs)} constraints; give exactly one of regex, choice, "
            "grammar, json",
            param=param,
        )
    return specs


class ChatBody(GenerationBody):
    """The body of POST /v1/chat/completions."""

    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    tools: list[ToolBody] | None = None
    tool_choice: ToolChoice = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="after")
    def _check_messages(self) -> ChatBody:
        check_messages(self.messages)
        return self

    def tool_use(self) -> ToolUse | None:
        """Which functions the answer may call; None: none.

        Raises:
            InvalidRequestError: the fields that say so contradict each other.
        """
        return tool_use(self.tools, self.tool_choice, self.parallel_tool_calls)

    def sampling_params(self) -> SamplingParams:
        """Raises InvalidRequestError for values out of range or in conflict."""
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise InvalidRequestError(
                f"max_tokens is {self.max_tokens} and max_completion_tokens is "
                f"{self.max_completion_tokens}; send one of them",
                param="max_completion_tokens",
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequestError(
                "top_logprobs is only allowed with logprobs true", param="top_logprobs"
            )
        params = self._sampling_params(
            max_tokens=limits.pop() if limits else None,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            prompt_logprobs=self.prompt_logprobs,
        )
        use = self.tool_use()
        if use is None:
            return params
        if params.grammar is not None:
            other = "response_format" if self.structured_outputs is None else "structured_outputs"
            raise InvalidRequestError(
                f"{other} constrains the whole answer, and so do tools; send one of them, or "
                "tool_choice none",
                param=other,
            )
        return msgspec.structs.replace(params, grammar=use.grammar())


class NamedChatBody(ChatBody):
    """Of a path that names the endpoint."""

    model: str = ""


Prompt = str | list[int]


def _as_prompts(value: Any) -> list[Prompt]:
    """The four shapes of `prompt` as a list of texts and token id lists."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(type(item) is int for item in value):
            return [value]
        if all(isinstance(item, str) for item in value) or all(
            isinstance(item, list) and item and all(type(i) is int for i in item) for item in value
        ):
            return value
    raise InvalidRequestError(
        "prompt must be a string, a list of strings, a list of token ids or a list of lists of "
        "token ids, and not empty",
        param="prompt",
    )


class CompletionBody(GenerationBody):
    """The body of POST /v1/completions."""

    prompt: Annotated[list[Any], BeforeValidator(_as_prompts)]
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None
    suffix: str | None = None
    use_raw_prompt: bool | None = None  # false: the prompt is what a user says in a chat
    error_behavior: Literal["error", "truncate"] | None = None  # for prompts that are too long

    @model_validator(mode="after")
    def _check_prompts(self) -> CompletionBody:
        if not self.makes_prompts:
            return self
        which = "suffix" if self.suffix else "use_raw_prompt false"
        if self.suffix and self.use_raw_prompt is False:
            raise InvalidRequestError(
                "suffix needs the prompt as it is; leave out use_raw_prompt", param="suffix"
            )
        if self.echo or self.truncates:
            raise InvalidRequestError(
                f"{which} makes the prompt longer than what was sent; leave out "
                f"{'echo' if self.echo else 'error_behavior'}",
                param="echo" if self.echo else "error_behavior",
            )
        if not all(isinstance(prompt, str) for prompt in self.prompt):
            raise InvalidRequestError(
                f"{which} needs prompts that are text, not token ids", param="prompt"
            )
        return self

    @model_validator(mode="after")
    def _check_choices(self) -> CompletionBody:
        n = self.choices(MAX_COMPLETION_CHOICES)
        if self.best_of not in (None, n):
            raise InvalidRequestError(
                f"best_of is {self.best_of}: choosing among more answers than n is not supported; "
                "leave best_of out and send n",
                param="best_of",
            )
        if len(self.prompt) * n > MAX_SEQUENCES:
            raise InvalidRequestError(
                f"{len(self.prompt)} prompts times n {n} exceed {MAX_SEQUENCES} answers; split "
                "the request",
                param="prompt",
            )
        if self.echo and self.truncates:
            raise InvalidRequestError(
                "echo gives the whole prompt back; leave out error_behavior truncate",
                param="error_behavior",
            )
        if self.max_tokens == 0 and not self.echo:
            raise InvalidRequestError(
                "max_tokens is 0; without echo it must be at least 1", param="max_tokens"
            )
        return self

    @property
    def prompts(self) -> list[Prompt]:
        return self.prompt

    @property
    def makes_prompts(self) -> bool:
        """Whether the model sees more than the prompts as they are."""
        return bool(self.suffix) or self.use_raw_prompt is False

    @property
    def truncates(self) -> bool:
        """Whether the beginning of a prompt that is too long is left out."""
        return self.error_behavior == "truncate"

    @property
    def prompt_only(self) -> bool:
        """max_tokens 0 with echo: score the prompt, generate nothing."""
        return self.max_tokens == 0

    def sampling_params(self) -> SamplingParams:
        """Raises InvalidRequestError for values out of range or in conflict."""
        max_tokens = DEFAULT_COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens
        scored = [self.prompt_logprobs, self.logprobs if self.echo else None]
        return self._sampling_params(
            max_tokens=max_tokens or 1,  # the engine always samples one; `prompt_only` drops it
            logprobs=self.logprobs,
            prompt_logprobs=max((s for s in scored if s is not None), default=None),
        )


class NamedCompletionBody(CompletionBody):
    """Of a path that names the endpoint."""

    model: str = ""
