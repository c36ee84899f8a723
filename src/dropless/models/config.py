"""A model's configuration: what all families have in common, and how fields are read strictly."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from dropless.errors import ConfigError
from dropless.layers.rotary import RopeScaling

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """What the engine needs to know of any model."""

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rope_theta: float
    rope_scaling: RopeScaling | None
    tie_word_embeddings: bool
    ffn_width: int  # of one expert where there are several
    num_experts: int = 1
    top_k: int = 1

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"{self.family}: {self.num_heads} attention heads cannot share"
                f" {self.num_kv_heads} key and value heads evenly"
            )
        if self.top_k > self.num_experts:
            raise ConfigError(
                f"{self.family}: a token cannot reach {self.top_k} of {self.num_experts} experts"
            )
        if self.head_dim % 2:
            raise ConfigError(f"{self.family}: head_dim is {self.head_dim}; it must be even")


class Fields:
    """Strict look-ups in a config.json or a nested object of it: a field that is missing or of
    the wrong kind is a ConfigError that names it."""

    def __init__(self, family: str, content: Mapping[str, Any], prefix: str = "") -> None:
        self._family = family
        self._content = content
        self._prefix = prefix

    def __contains__(self, name: str) -> bool:
        """Whether the field is there, null or not."""
        return name in self._content

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self._content.get(name) is not None

    def integer(self, name: str) -> int:
        """A positive integer."""
        value = self._required(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.error(name, f"is {value!r}; it must be a positive integer")
        return value

    def real(self, name: str) -> float:
        """A positive, finite number."""
        value = self._required(name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not 0 < value <= sys.float_info.max:  # also false for NaN
            raise self.error(name, f"is {value!r}; it must be a positive number")
        return float(value)

    def real_or_null(self, name: str) -> float | None:
        """A positive, finite number, or null; missing is an error all the same."""
        if name in self._content and self._content[name] is None:
            return None
        return self.real(name)

    def flag(self, name: str, absent: bool | None = None) -> bool:
        """True or false; `absent` is what the format says a missing field means, None if the
        field may not be missing."""
        if absent is not None and not self.has(name):
            return absent
        value = self._required(name)
        if not isinstance(value, bool):
            raise self.error(name, f"is {value!r}; it must be true or false")
        return value

    def expect(self, name: str, value: object) -> None:
        """The field must be there and have this value, the only one that is supported."""
        found = self._required(name)
        if found != value:
            raise self.error(name, f"is {found!r}; only {value!r} is supported")

    def nested(self, name: str) -> Fields:
        """The object in field `name`."""
        value = self._required(name)
        if not isinstance(value, Mapping):
            raise self.error(name, f"is {value!r}; it must be an object")
        return Fields(self._family, value, f"{self._prefix}{name}.")

    def text(self, *names: str) -> str:
        """A text, under the first of `names` that is there."""
        name = next((name for name in names if self.has(name)), names[0])
        value = self._required(name)
        if not isinstance(value, str):
            raise self.error(name, f"is {value!r}; it must be a text")
        return value

    def error(self, name: str, problem: str) -> ConfigError:
        return ConfigError(f"{self._family} configuration: {self._prefix}{name} {problem}")

    def _required(self, name: str) -> Any:
        if name not in self._content:
            raise self.error(name, "is missing; add it to config.json as the model's author meant")
        value = self._content[name]
        if value is None:
            raise self.error(name, "is null; set it in config.json as the model's author meant")
        return value


def rope(fields: Fields) -> tuple[float, RopeScaling | None]:
    """Theta and scaling, from rope_theta and rope_scaling (absent or null is none) or from the
    newer rope_parameters, which holds both."""
    if fields.has("rope_parameters"):
        parameters = fields.nested("rope_parameters")
        return parameters.real("rope_theta"), _scaling(parameters)
    theta = fields.real("rope_theta")
    return theta, _scaling(fields.nested("rope_scaling")) if fields.has("rope_scaling") else None


def _scaling(fields: Fields) -> RopeScaling | None:
    kind = fields.text("rope_type", "type")
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", fields.real("factor"))
    if kind == "llama3":
        low, high = fields.real("low_freq_factor"), fields.real("high_freq_factor")
        if low >= high:
            raise fields.error(
                "high_freq_factor", f"is {high}; it must be above low_freq_factor, {low}"
            )
        return RopeScaling(
            "llama3",
            fields.real("factor"),
            low,
            high,
            fields.integer("original_max_position_embeddings"),
        )
    raise fields.error("rope_type", f"is {kind!r}; supported are default, linear and llama3")


def llama_like(
    family: str, fields: Fields, *, ffn_width: str = "intermediate_size"
) -> dict[str, Any]:
    """The fields of `ModelConfig` that Llama, Qwen2 and Mixtral name alike."""
    fields.expect("hidden_act", "silu")
    theta, scaling = rope(fields)
    hidden_size = fields.integer("hidden_size")
    num_heads = fields.integer("num_attention_heads")
    if fields.has("head_dim"):
        head_dim = fields.integer("head_dim")
    elif hidden_size % num_heads == 0:  # head_dim's definition where the format leaves it out
        head_dim = hidden_size // num_heads
    else:
        raise fields.error(
            "hidden_size", f"is {hidden_size}, no multiple of num_attention_heads {num_heads}"
        )
    return {
        "family": family,
        "vocab_size": fields.integer("vocab_size"),
        "hidden_size": hidden_size,
        "num_layers": fields.integer("num_hidden_layers"),
        "num_heads": num_heads,
        "num_kv_heads": fields.integer("num_key_value_heads"),
        "head_dim": head_dim,
        "max_position_embeddings": fields.integer("max_position_embeddings"),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": fields.flag("tie_word_embeddings"),
        "ffn_width": fields.integer(ffn_width),
    }
