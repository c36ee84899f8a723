"""Which layouts a plan compares, and what the engine's own memory plan says of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import msgspec

from dropless.bench.gpus import Gpu, Precision
from dropless.bench.roofline import Layout
from dropless.checkpoints.checkpoint import Checkpoint
from dropless.engine import memory
from dropless.engine.config import MAX_MEMORY_FRACTION, EngineConfig
from dropless.errors import MemoryPlanError, SettingsError

_COUNTS = (1, 2, 4, 8, 16)  # tried when what was asked for does not fit


@dataclass(frozen=True, slots=True)
class PlannedLayout:
    """A layout and its memory plan, or why there is none."""

    layout: Layout
    memory: memory.MemoryPlan | None
    refusal: str = ""
    users: int = 0  # requests of the planned length that the cache holds at once
    change: str = ""  # that an alternative makes to the settings

    @property
    def fits(self) -> bool:
        """With room for one request at least."""
        return self.users > 0


@dataclass(frozen=True, slots=True)
class Planner:
    """Asks the engine's memory plan what would happen on GPUs that need not be here."""

    checkpoint: Checkpoint
    gpu: Gpu
    request_tokens: int  # prompt and answer of one request
    config: EngineConfig  # for cuda; the layout is put into it

    def plan(self, layout: Layout) -> PlannedLayout:
        """
        Raises:
            SettingsError: the model cannot be laid out so on any GPU of this kind.
        """
        config = msgspec.structs.replace(
            self.config,
            tensor_parallel_size=layout.count,
            expert_parallel=layout.expert_parallel,
            quantization=layout.quantization,
        )
        gpu = memory.Gpu(self.gpu.name, self.gpu.memory_bytes, self.gpu.compute_capability)
        try:
            plan = memory.plan_memory(config, self.checkpoint, [gpu] * layout.count)
        except MemoryPlanError as error:
            return PlannedLayout(layout, None, str(error))
        blocks = -(-self.request_tokens // config.block_size)
        users = plan.num_blocks // blocks if self.request_tokens <= plan.max_model_len else 0
        refusal = (
            ""
            if users
            else f"the cache holds {plan.num_blocks * config.block_size} tokens, and one request"
            f" has {self.request_tokens}"
        )
        return PlannedLayout(layout, plan, refusal, users)

    def alternatives(self) -> list[PlannedLayout]:
        """What would fit: in each number format the fewest GPUs, and fewer where another setting
        makes that possible."""
        found: list[PlannedLayout] = []
        for quantization in formats(self.gpu):
            fewest = _COUNTS[-1] + 1
            for change, planner in self._changed():
                fitting = (planned for planned in planner._by_count(quantization) if planned.fits)
                planned = next(fitting, None)
                if planned is not None and planned.layout.count < fewest:
                    fewest = planned.layout.count
                    found.append(replace(planned, change=change))
        return found

    def _changed(self) -> Iterator[tuple[str, Planner]]:
        """As it is, then with settings that leave more room."""
        yield "", self
        if self.config.max_model_len is not None:
            config = msgspec.structs.replace(self.config, max_model_len=None)
            yield "no max_model_len", replace(self, config=config)
        if memory.memory_fraction(self.config, "cuda") < MAX_MEMORY_FRACTION:
            config = msgspec.structs.replace(self.config, memory_fraction=MAX_MEMORY_FRACTION)
            yield f"memory_fraction {MAX_MEMORY_FRACTION}", replace(self, config=config)

    def _by_count(self, quantization: Precision) -> Iterator[PlannedLayout]:
        for count in _COUNTS:
            try:
                yield self.plan(Layout(count, quantization))
            except SettingsError:  # heads or widths cannot be shared among so many
                return


def formats(gpu: Gpu) -> list[Precision]:
    """The number formats that a GPU multiplies."""
    return ["none", "fp8"] if gpu.compute_capability >= memory.FP8_CAPABILITY else ["none"]


def layouts(
    counts: Sequence[int], quantizations: Sequence[Precision], expert_parallel: Sequence[bool]
) -> list[Layout]:
    """Every combination; on one GPU alone nothing is split."""
    combinations = product(counts, quantizations, expert_parallel)
    found = (
        Layout(count, kind, by_expert and count > 1) for count, kind, by_expert in combinations
    )
    return list(dict.fromkeys(found))
