"""Prompts with a gap: a text before, a text after, and the model writes what stands between."""

from __future__ import annotations

from dropless.errors import InvalidRequestError
from dropless.text.tokenizer import Tokenizer

# The control tokens of models that were trained for it: before the beginning, before the end, and
# where the middle is to come.
_MARKS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
)


def infill_prompt(tokenizer: Tokenizer, before: str, after: str) -> list[int]:
    """Token ids whose continuation is the text between these two.

    Raises:
        InvalidRequestError: the model was not trained for it.
    """
    control = tokenizer.control_tokens
    for marks in _MARKS:
        if all(mark in control for mark in marks):
            prefix, suffix, middle = (control[mark] for mark in marks)
            begin = tokenizer.encode(before, after_control=True)
            end = tokenizer.encode(after, after_control=True)
            return [prefix, *begin, suffix, *end, middle]
    raise InvalidRequestError(
        "this model cannot fill a gap: it has no tokens for suffix; leave suffix out, or use a "
        "model that was trained for it, as qwen2.5-coder-0.5b-instruct",
        param="suffix",
        code="unsupported_parameter",
    )
