"""Configurations are read strictly: what is missing, wrong or contradictory is named."""

from __future__ import annotations

import contextlib
import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropless.checkpoints.catalogue import shapes
from dropless.errors import ConfigError
from dropless.models.registry import parse_config

PUBLISHED = {
    "dbrx": "dbrx",
    "llama": "smollm2-135m",
    "qwen2": "qwen2.5-coder-0.5b",
    "mixtral": "mixtral-8x7b",
}
COUNTS = {
    "dbrx": [
        "d_model", "n_heads", "n_layers", "max_seq_len", "vocab_size", "attn_config.kv_n_heads",
        "ffn_config.ffn_hidden_size", "ffn_config.moe_num_experts", "ffn_config.moe_top_k",
    ],
    "llama": [
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "max_position_embeddings",
    ],
}  # fmt: skip
COUNTS["qwen2"] = COUNTS["llama"]
COUNTS["mixtral"] = [*COUNTS["llama"], "num_local_experts", "num_experts_per_tok"]
REALS = {
    "dbrx": ["attn_config.clip_qkv", "attn_config.rope_theta"],
    "llama": ["rms_norm_eps", "rope_theta"],
    "qwen2": ["rms_norm_eps", "rope_theta"],
    "mixtral": ["rms_norm_eps", "rope_theta"],
}
OTHERS = {
    "dbrx": ["tie_word_embeddings", "attn_config", "ffn_config"],
    "llama": ["tie_word_embeddings", "hidden_act"],
    "qwen2": ["tie_word_embeddings", "hidden_act"],
    "mixtral": ["tie_word_embeddings", "hidden_act"],
}


def pairs(*tables: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(family, field) for table in tables for family in table for field in table[family]]


def published(family: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((shapes()[PUBLISHED[family]] / "config.json").read_text())
    return content


def place_of(content: dict[str, Any], field: str) -> tuple[dict[str, Any], str]:
    """The object that holds a field and the field's own name there."""
    outer, _, name = field.rpartition(".")
    return (content[outer] if outer else content), name


def changed(family: str, **fields: object) -> dict[str, Any]:
    """The published configuration with fields replaced; a double underscore stands for a dot."""
    content = published(family)
    for field, value in fields.items():
        place, name = place_of(content, field.replace("__", "."))
        place[name] = value
    return content


def test_published_configurations() -> None:
    dbrx = parse_config(published("dbrx"))
    assert (dbrx.num_layers, dbrx.hidden_size, dbrx.num_heads, dbrx.head_dim) == (40, 6144, 48, 128)
    assert (dbrx.num_kv_heads, dbrx.num_experts, dbrx.top_k, dbrx.ffn_width) == (8, 16, 4, 10752)
    assert (dbrx.rope_theta, dbrx.max_position_embeddings) == (500000.0, 32768)
    assert (dbrx.vocab_size, dbrx.tie_word_embeddings) == (100352, False)
    for name, folder in shapes().items():
        config = parse_config(json.loads((folder / "config.json").read_text()))
        assert config.num_heads * config.head_dim == config.hidden_size, name


@pytest.mark.parametrize(("family", "field"), pairs(COUNTS, REALS, OTHERS))
def test_a_missing_field_is_named(family: str, field: str) -> None:
    content = published(family)
    place, name = place_of(content, field)
    del place[name]
    with pytest.raises(ConfigError, match=rf"^{family} .*\b{field} is missing"):
        parse_config(content)


@pytest.mark.parametrize(("family", "field"), pairs(COUNTS))
@pytest.mark.parametrize("value", [None, 0, -1, 1.5, "64", True, [64]])
def test_a_count_must_be_a_positive_integer(family: str, field: str, value: object) -> None:
    content = published(family)
    place, name = place_of(content, field)
    place[name] = value
    with pytest.raises(ConfigError, match=rf"\b{field} is "):
        parse_config(content)


@pytest.mark.parametrize(("family", "field"), pairs(REALS))
@pytest.mark.parametrize(
    "value", [0, -1.0, float("nan"), float("inf"), pytest.param(10**400, id="huge"), "8", True, {}]
)
def test_a_number_must_be_positive_and_finite(family: str, field: str, value: object) -> None:
    content = published(family)
    place, name = place_of(content, field)
    place[name] = value
    with pytest.raises(ConfigError, match=rf"\b{field} is "):
        parse_config(content)


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("dbrx", {"d_model": 6145}, "d_model is 6145, no multiple of n_heads 48"),
        ("dbrx", {"d_model": 48 * 3}, "head_dim is 3"),
        ("dbrx", {"ffn_config__moe_top_k": 17}, "17 of 16 experts"),
        ("dbrx", {"attn_config__kv_n_heads": 7}, "48 attention heads cannot share 7"),
        ("dbrx", {"attn_config__kv_n_heads": 96}, "48 attention heads cannot share 96"),
        ("dbrx", {"ffn_config__ffn_act_fn": {"name": "gelu"}}, "ffn_act_fn.name is 'gelu'"),
        ("dbrx", {"ffn_config__ffn_act_fn": "silu"}, "ffn_act_fn is 'silu'; it must be an object"),
        ("dbrx", {"ffn_config__moe_normalize_expert_weights": 0}, "moe_normalize_expert_weights"),
        ("dbrx", {"attn_config": [8]}, "attn_config is"),
        ("llama", {"hidden_size": 577}, "hidden_size is 577, no multiple of num_attention_heads 9"),
        ("llama", {"num_key_value_heads": 4}, "9 attention heads cannot share 4"),
        ("llama", {"head_dim": 63}, "head_dim is 63"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu'"),
        ("llama", {"attention_bias": 1}, "attention_bias is 1"),
        ("llama", {"mlp_bias": "no"}, "mlp_bias is 'no'"),
        ("llama", {"tie_word_embeddings": 0}, "tie_word_embeddings is 0"),
        ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type is 'yarn'"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "type is 'dynamic'"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is missing"),
        ("llama", {"rope_scaling": {"factor": 2.0}}, "rope_scaling.rope_type is missing"),
        ("llama", {"rope_scaling": "linear"}, "rope_scaling is 'linear'"),
        (
            "llama",
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                              "original_max_position_embeddings": 8192}},
            "rope_scaling.high_freq_factor is missing",
        ),
        (
            "llama",
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0,
                              "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}},
            "rope_scaling.high_freq_factor is 4.0; it must be above low_freq_factor",
        ),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window is true"),
        ("mixtral", {"sliding_window": 4096}, "sliding_window is 4096"),
        ("mixtral", {"num_experts_per_tok": 9}, "9 of 8 experts"),
    ],
)  # fmt: skip
def test_contradictions_and_what_is_not_supported(
    family: str, fields: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(changed(family, **fields))


@pytest.mark.parametrize("model_type", ["gpt2", "DBRX", "", None, 3, ["llama"]])
def test_an_unknown_family(model_type: object) -> None:
    content = published("llama") | {"model_type": model_type}
    with pytest.raises(ConfigError, match=r"model_type is .*supported families are dbrx, llama"):
        parse_config(content)


def test_a_window_as_long_as_the_context_is_none() -> None:
    assert parse_config(changed("mixtral", sliding_window=32768)).family == "mixtral"


def test_the_newer_place_of_rope_settings() -> None:
    scaling = {"rope_type": "linear", "factor": 2.0}
    older = changed("llama", rope_scaling=scaling)
    newer = changed("llama", rope_parameters={"rope_theta": 100000.0, **scaling})
    del newer["rope_theta"], newer["rope_scaling"]
    assert parse_config(newer) == parse_config(older)
    del newer["rope_parameters"]["rope_theta"]
    with pytest.raises(ConfigError, match=r"rope_parameters\.rope_theta is missing"):
        parse_config(newer)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


@given(data=st.data(), family=st.sampled_from(list(PUBLISHED)))
def test_any_value_anywhere_is_taken_or_refused(data: st.DataObject, family: str) -> None:
    """Never another error than ConfigError, whatever the file holds."""
    content = copy.deepcopy(published(family))
    place = content
    while True:
        name = data.draw(st.sampled_from([*place, "rope_scaling", "head_dim"]))
        inner = place.get(name)
        if isinstance(inner, dict) and data.draw(st.booleans()):
            place = inner
            continue
        place[name] = data.draw(json_values)
        break
    with contextlib.suppress(ConfigError):
        parse_config(content)
