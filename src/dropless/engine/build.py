"""From settings to a running engine: the plan first, then everything that loads."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from dropless.checkpoints.open import open_checkpoint
from dropless.engine.config import EngineConfig
from dropless.engine.constraints import Constraints
from dropless.engine.engine import Engine
from dropless.engine.executor import start_executor
from dropless.engine.long_prompts import LongPrompts
from dropless.engine.memory import plan_memory
from dropless.engine.messages import EngineReady
from dropless.errors import CheckpointError
from dropless.models.registry import parse_config
from dropless.text.tokenizer import Tokenizer, has_tokenizer, load_tokenizer

logger = logging.getLogger(__name__)


def build_engine(
    config: EngineConfig,
    on_progress: Callable[[str, float], None],
    tokenizer: Tokenizer | None = None,
) -> tuple[Engine, EngineReady]:
    """The engine, ready for requests. `on_progress` is told a stage and how much of it is done.
    `tokenizer` is what `find_tokenizer` gives, if it has been called already.

    Raises:
        DroplessError: wrong settings, a damaged checkpoint, or it does not fit into memory.
    """
    started = time.monotonic()
    on_progress("planning", 0.0)
    checkpoint = open_checkpoint(config.model_path, config.weights, config.seed)
    model_config = parse_config(checkpoint.config)
    tokenizer = tokenizer or find_tokenizer(config)
    _check_vocabulary(config, tokenizer, model_config.vocab_size)
    plan = plan_memory(config, checkpoint)
    logger.info("memory plan:\n%s", plan.describe())
    eos_token_ids = checkpoint.eos_token_ids or (tokenizer.eos_token_ids if tokenizer else ())
    constraints = Constraints(tokenizer, model_config.vocab_size, eos_token_ids)
    executor = start_executor(config, checkpoint, plan, constraints, on_progress)
    engine = Engine(
        executor,
        constraints,
        num_blocks=plan.num_blocks,
        block_size=config.block_size,
        max_model_len=plan.max_model_len,
        max_running_requests=config.max_running_requests,
        max_waiting_requests=config.max_waiting_requests,
        step_token_budget=plan.step_token_budget,
        prefix_caching=config.prefix_caching,
        long_prompts=LongPrompts(config.long_prompt_tokens, config.long_prompt_slowdown),
    )
    ready = EngineReady(
        model_id=config.model_id or config.model_path.name,
        family=model_config.family,
        max_model_len=plan.max_model_len,
        vocab_size=model_config.vocab_size,
        block_size=config.block_size,
        num_blocks=plan.num_blocks,
        max_running_requests=config.max_running_requests,
        max_waiting_requests=config.max_waiting_requests,
        dtype=str(plan.dtype).removeprefix("torch."),
        quantization=plan.quantization,
        weight_bytes=plan.weight_bytes,
        kv_cache_bytes=plan.kv_cache_bytes,
        load_seconds=time.monotonic() - started,
        experts_per_token=model_config.top_k,
    )
    return engine, ready


def find_tokenizer(config: EngineConfig) -> Tokenizer | None:
    """The tokenizer that the settings name or the model's own; None if it has none.

    Raises:
        CheckpointError: it is damaged or of a kind that is not supported.
    """
    if config.tokenizer_path is not None:
        return load_tokenizer(config.tokenizer_path)
    return load_tokenizer(config.model_path) if has_tokenizer(config.model_path) else None


def _check_vocabulary(config: EngineConfig, tokenizer: Tokenizer | None, vocab_size: int) -> None:
    if tokenizer is not None and tokenizer.vocab_size > vocab_size:
        raise CheckpointError(
            f"the tokenizer of {config.model_path} has {tokenizer.vocab_size} tokens, but the"
            f" model's vocab_size is {vocab_size}; they do not belong together"
        )
