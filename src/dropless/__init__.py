"""Dropless: serve DBRX and its relatives; no token and no request is dropped."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["LLM", "SamplingParams", "__version__"]

if TYPE_CHECKING:
    from dropless.engine.llm import LLM
    from dropless.engine.sampling_params import SamplingParams


def __getattr__(name: str) -> Any:
    # Lazy, so that `import dropless` (the HTTP process, the CLI's help) does not load torch.
    if name == "LLM":
        from dropless.engine.llm import LLM

        return LLM
    if name == "SamplingParams":
        from dropless.engine.sampling_params import SamplingParams

        return SamplingParams
    raise AttributeError(f"module 'dropless' has no attribute {name!r}")
