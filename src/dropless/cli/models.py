"""`dropless models`: what installs by name."""

from __future__ import annotations


def models() -> None:
    """Show the models that install by name.

    Examples:

        dropless models
        dropless pull smollm2-135m-instruct
        dropless chat qwen2.5-coder-0.5b-instruct
    """
