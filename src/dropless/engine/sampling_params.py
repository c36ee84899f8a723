"""What a request may ask of the sampler, checked once at the door."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from dropless.errors import InvalidRequestError

GrammarKind = Literal["json_object", "json_schema", "regex", "choice", "lark", "tool_calls"]

MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_LOGIT_BIAS = 1024
MAX_WHOLE = 2**31 - 1
MIN_REPETITION_PENALTY = 0.01  # logits are divided by it, and have to stay finite


class GrammarSpec(msgspec.Struct, frozen=True):
    """A constraint on the output. `text` is the JSON schema, regex or Lark grammar as text;
    for `choice` a JSON array of strings, for `tool_calls` an encoded ToolGrammar; empty for
    `json_object`."""

    kind: GrammarKind
    text: str = ""


class SamplingParams(msgspec.Struct, frozen=True, omit_defaults=True):
    """How to turn logits into tokens for one sequence, and when to end.

    `temperature` 0 is greedy. `top_k` 0 and `top_p` 1 mean no cut. `max_tokens` None means up to
    the end of the context. `logprobs` and `prompt_logprobs` are the number of most likely
    alternatives reported beside each token (0: the token's own only; None: none), always of the
    model's distribution before temperature, penalties, bias or grammar. Stop strings are never
    part of the returned text unless `include_stop` is set; stop token ids never are text.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: GrammarSpec | None = None

    def __post_init__(self) -> None:
        _in_range("temperature", self.temperature, 0.0, 2.0)
        _in_range("top_p", self.top_p, 0.0, 1.0, above=True)
        _in_range("min_p", self.min_p, 0.0, 1.0)
        _in_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _in_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _in_range("repetition_penalty", self.repetition_penalty, MIN_REPETITION_PENALTY, 10.0)
        _whole("top_k", self.top_k, 0)
        _whole("min_tokens", self.min_tokens, 0)
        for token_id in self.stop_token_ids:
            _whole("stop_token_ids", token_id, 0)
        if self.max_tokens is not None:
            _whole("max_tokens", self.max_tokens, 1)
            if self.min_tokens > self.max_tokens:
                raise InvalidRequestError(
                    f"min_tokens is {self.min_tokens}, above max_tokens {self.max_tokens}; "
                    "lower min_tokens or raise max_tokens",
                    param="min_tokens",
                )
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if value is not None:
                _in_range(name, value, 0, MAX_LOGPROBS)
        if self.seed is not None:
            _in_range("seed", self.seed, -(2**63), 2**63 - 1)
        if len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise InvalidRequestError(
                f"logit_bias has {len(self.logit_bias)} entries; at most {MAX_LOGIT_BIAS} are "
                "allowed",
                param="logit_bias",
            )
        for token_id, bias in self.logit_bias.items():
            _whole("logit_bias", token_id, 0)
            _in_range(f"logit_bias[{token_id}]", bias, -100.0, 100.0)
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidRequestError(
                f"stop has {len(self.stop)} strings; at most {MAX_STOP_STRINGS} are allowed",
                param="stop",
            )
        if any(not s for s in self.stop):
            raise InvalidRequestError("stop contains an empty string; remove it", param="stop")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def penalises(self) -> bool:
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )

    @property
    def follows_output(self) -> bool:
        """Whether a token cannot be sampled before the host knows the one before it."""
        return self.grammar is not None or self.penalises


def _in_range(name: str, value: float, low: float, high: float, *, above: bool = False) -> None:
    if math.isfinite(value) and low <= value <= high and not (above and value == low):
        return
    bracket = "(" if above else "["
    raise InvalidRequestError(
        f"{name} is {value}; it must be in {bracket}{low:g}, {high:g}]", param=name.split("[")[0]
    )


def _whole(name: str, value: int, low: int) -> None:
    """A count or a token id: what a message and a tensor have room for."""
    if value < low:
        raise InvalidRequestError(f"{name} is {value}; it must be at least {low}", param=name)
    if value > MAX_WHOLE:
        raise InvalidRequestError(f"{name} is {value}; it must be at most {MAX_WHOLE}", param=name)
