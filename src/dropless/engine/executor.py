"""Runs a step on every rank: rank 0 here, the others in processes of their own."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import torch

from dropless.engine.config import EngineConfig
from dropless.engine.constraints import Constraints
from dropless.engine.load import load_runner
from dropless.engine.memory import MemoryPlan
from dropless.engine.runner import Runner
from dropless.engine.step import StepInput, StepResult
from dropless.parallel.group import SOLO, Group, PeersLostError
from dropless.parallel.rank_messages import STARTED, Place, Reached
from dropless.parallel.rank_processes import RankProcesses

Progress = Callable[[str, float], None]

_LOADED = "loaded"


class _Order(msgspec.Struct, frozen=True, array_like=True):
    """What rank 0 sends to the others: a step, and what the step before it sampled."""

    step: StepInput
    sampled_rows: list[int]
    sampled_ids: list[int]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Order)


class Executor:
    """One rank that needs no others."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def execute(self, step: StepInput) -> StepResult:
        """Compute one step and sample. Errors of single rows are in the result."""
        return self._runner.execute(step)

    def close(self) -> None:
        """End what was started for it. May be called again."""


class ParallelExecutor(Executor):
    """Rank 0 of several. Ranks fail together: after an error no step can follow."""

    def __init__(self, runner: Runner, ranks: RankProcesses, group: Group) -> None:
        super().__init__(runner)
        self._ranks = ranks
        self._group = group
        self._sampled_rows: list[int] = []
        self._sampled_ids: list[int] = []

    def execute(self, step: StepInput) -> StepResult:
        """Compute one step on all ranks.

        Raises:
            EngineError: a rank failed or died, and which; or the executor is closed.
        """
        self._ranks.check()
        try:
            order = _Order(step, self._sampled_rows, self._sampled_ids)
            self._ranks.send(_encoder.encode(order))
            result = super().execute(step)
            self._ranks.check()  # on a GPU a broken sum goes by without an exception; these two
            self._group.check()  # raise before anybody sees what it has led to
        except PeersLostError as lost:
            cause = self._ranks.cause()
            self.close()
            raise cause or lost from lost
        except BaseException:
            self.close()
            raise
        self._note_sampled(step, result)
        return result

    def close(self) -> None:
        """End the processes of the other ranks. May be called again."""
        self._ranks.close()

    def _note_sampled(self, step: StepInput, result: StepResult) -> None:
        pairs = zip(step.rows, result.token_ids, strict=True)
        sampled = [(row, token_id) for row, token_id in pairs if token_id is not None]
        self._sampled_rows = [row for row, _ in sampled]
        self._sampled_ids = [token_id for _, token_id in sampled]


def start_executor(
    config: EngineConfig, plan: MemoryPlan, constraints: Constraints, progress: Progress
) -> Executor:
    """Load the model, on `config.tensor_parallel_size` ranks at once.

    `progress` is called with a stage and the part of it that is done, 0 to 1.

    Raises:
        DroplessError: what any rank failed with while it loaded.
        EngineError: a rank died, or failed for a reason of no other class.
    """
    size = config.tensor_parallel_size
    if size == 1:
        return Executor(load_runner(config, plan, SOLO, constraints, progress))
    progress("starting ranks", 0.0)
    vocabulary = (constraints.vocab_size, constraints.eos_token_ids)
    ranks = RankProcesses(size, follow_rank_0, (config, plan, *vocabulary))

    def checked_progress(stage: str, fraction: float) -> None:
        ranks.check()  # so that no rank reads on for minutes when another has failed
        progress(stage, fraction)

    try:
        ranks.wait_for(STARTED)
        group = Group.join(0, size, _device(plan, 0), ranks.folder)
        ranks.on_failure = group.abort
        ranks.check()
        runner = load_runner(config, plan, group, constraints, checked_progress)
        ranks.wait_for(_LOADED)
        ranks.remove_folder()
    except PeersLostError as lost:
        cause = ranks.cause()
        ranks.close()
        raise cause or lost from lost
    except BaseException:
        ranks.close()
        raise
    return ParallelExecutor(runner, ranks, group)


def follow_rank_0(
    place: Place,
    config: EngineConfig,
    plan: MemoryPlan,
    vocab_size: int,
    eos_token_ids: tuple[int, ...],
) -> None:
    """The program of every rank above 0: load, then compute along for as long as rank 0 does."""
    group = Group.join(place.rank, place.size, _device(plan, place.rank), place.folder)
    constraints = Constraints(None, vocab_size, eos_token_ids)  # rank 0 alone samples
    runner = load_runner(config, plan, group, constraints, lambda *_: None)
    place.link.send(Reached(_LOADED))
    while True:
        order = _decoder.decode(place.link.recv_bytes())
        runner.note_sampled(order.sampled_rows, order.sampled_ids)
        runner.follow(order.step)


def _device(plan: MemoryPlan, rank: int) -> torch.device:
    """This rank's device, which becomes the current one."""
    if plan.device == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    return device
