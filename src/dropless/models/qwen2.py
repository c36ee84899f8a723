"""Qwen2 and Qwen2.5: Llama with a bias on q, k and v."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dropless.models.config import Fields, llama_like
from dropless.models.llama import LlamaConfig, build

__all__ = ["build", "parse_config"]


def parse_config(content: Mapping[str, Any]) -> LlamaConfig:
    """Qwen2's config.json.

    Raises:
        ConfigError: a field is missing, wrong or contradicts another; sliding-window attention.
    """
    fields = Fields("qwen2", content)
    if fields.flag("use_sliding_window", absent=False):
        raise fields.error("use_sliding_window", "is true; sliding windows are not supported")
    return LlamaConfig(
        **llama_like("qwen2", fields),
        rms_norm_eps=fields.real("rms_norm_eps"),
        qkv_bias=True,
        out_bias=False,
    )
