"""Runs a step on every rank: rank 0 here, the others in processes of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import msgspec
import torch

from dropless.checkpoints.checkpoint import Checkpoint
from dropless.checkpoints.open import open_checkpoint
from dropless.engine.config import EngineConfig
from dropless.engine.constraints import Constraints
from dropless.engine.load import load_runner
from dropless.engine.memory import MemoryPlan
from dropless.engine.out_of_memory import memory_left, naming_lack_of_memory, ran_out_of_memory
from dropless.engine.runner import Runner
from dropless.engine.step import LaunchedStep, StepInput, StepResult
from dropless.errors import OutOfMemoryError
from dropless.parallel.group import SOLO, Group, PeersLostError
from dropless.parallel.rank_messages import STARTED, Place, Reached
from dropless.parallel.rank_processes import RankProcesses

Progress = Callable[[str, float], None]

_LOADED = "loaded"


class _Order(msgspec.Struct, frozen=True, array_like=True):
    """What rank 0 sends to the others: a step, and the tokens that it computes in the place of
    sampled ones, by row."""

    step: StepInput
    replaced: dict[int, int]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Order)


class Executor:
    """One rank that needs no others."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    @property
    def overlaps(self) -> bool:
        """Whether a launched step is computed while the host does something else: on GPUs."""
        return self._runner.device.type == "cuda"

    def launch(self, step: StepInput) -> LaunchedStep:
        """Start to compute one step and sample. Errors of single rows are in its result."""
        return self._runner.launch(step)

    @property
    def expert_counts(self) -> list[list[int]]:
        """How many tokens went to each expert, by layer, of the steps that were looked at."""
        return self._runner.expert_counts

    def survives(self, error: BaseException) -> bool:
        """Whether steps can follow one that failed so: it ran out of memory, and all that it had
        taken is free again when the error is. Its requests must start anew."""
        return ran_out_of_memory(error)

    def close(self) -> None:
        """End what was started for it. May be called again."""


class ParallelExecutor(Executor):
    """Rank 0 of several. Ranks fail together: after an error no step can follow."""

    def __init__(self, runner: Runner, ranks: RankProcesses, group: Group) -> None:
        super().__init__(runner)
        self._ranks = ranks
        self._group = group
        self._checks: torch.cuda.Stream | None = None
        if runner.device.type == "cuda":
            self._checks = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def launch(self, step: StepInput) -> LaunchedStep:
        """Start one step on all ranks.

        Raises:
            EngineError: a rank failed or died, and which; or the executor is closed.
        """
        self._ranks.check()
        with self._failing_together():
            order = _Order(step, dict(self._runner.replaced))
            self._ranks.send(_encoder.encode(order))
            return _CheckedStep(super().launch(step), self)

    def finish(self, launched: LaunchedStep) -> StepResult:
        """The result of a step that no rank has failed in.

        Raises:
            EngineError: a rank failed or died, and which.
        """
        with self._failing_together():
            result = launched.result()
            self._ranks.check()  # on a GPU a broken sum goes by without an exception; these two
            with torch.cuda.stream(self._checks):  # not behind the next step
                self._group.check()  # raise before anybody sees what it has led to
            return result

    def survives(self, error: BaseException) -> bool:  # noqa: ARG002
        """No: the other ranks wait for this one in the middle of the step, or it for them."""
        return False

    def close(self) -> None:
        """End the processes of the other ranks. May be called again."""
        self._runner.drop_graphs()  # NCCL does not let go of a group that a graph still uses
        self._ranks.close()

    @contextmanager
    def _failing_together(self) -> Iterator[None]:
        try:
            yield
        except PeersLostError as lost:
            cause = self._ranks.cause()
            self.close()
            raise cause or lost from lost
        except BaseException as error:
            self.close()
            if ran_out_of_memory(error):
                raise _lacks_memory(self._runner.device, 0) from error
            raise


class _CheckedStep:
    """A step of several ranks."""

    def __init__(self, launched: LaunchedStep, executor: ParallelExecutor) -> None:
        self._launched = launched
        self._executor = executor

    def result(self) -> StepResult:
        """Raises as `ParallelExecutor.finish`."""
        return self._executor.finish(self._launched)


def start_executor(
    config: EngineConfig,
    checkpoint: Checkpoint,
    plan: MemoryPlan,
    constraints: Constraints,
    progress: Progress,
) -> Executor:
    """Load the model, on `config.tensor_parallel_size` ranks at once.

    `progress` is called with a stage and the part of it that is done, 0 to 1.

    Raises:
        DroplessError: what any rank failed with while it loaded.
        MemoryPlanError: memory ran out meanwhile.
        EngineError: a rank died, or failed for a reason of no other class.
    """
    size = config.tensor_parallel_size
    if size == 1:
        with _loading(plan, 0):
            return Executor(load_runner(config, checkpoint, plan, SOLO, constraints, progress))
    progress("starting ranks", 0.0)
    vocabulary = (constraints.vocab_size, constraints.eos_token_ids)
    ranks = RankProcesses(size, follow_rank_0, (config, plan, *vocabulary))

    def checked_progress(stage: str, fraction: float) -> None:
        ranks.check()  # so that no rank reads on for minutes when another has failed
        progress(stage, fraction)

    try:
        ranks.wait_for(STARTED)
        with _loading(plan, 0):
            group = Group.join(0, size, _device(plan, 0), ranks.folder)
            ranks.on_failure = group.abort
            ranks.check()
            runner = load_runner(config, checkpoint, plan, group, constraints, checked_progress)
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
    constraints = Constraints(None, vocab_size, eos_token_ids)  # rank 0 alone samples
    with _loading(plan, place.rank):
        group = Group.join(place.rank, place.size, _device(plan, place.rank), place.folder)
        checkpoint = open_checkpoint(config.model_path, config.weights, config.seed)
        runner = load_runner(config, checkpoint, plan, group, constraints, lambda *_: None)
    place.link.send(Reached(_LOADED))
    while True:
        order = _decoder.decode(place.link.recv_bytes())
        runner.replace(order.replaced)
        try:
            runner.follow(order.step)
        except Exception as error:
            if ran_out_of_memory(error):
                raise _lacks_memory(runner.device, place.rank) from error
            raise


def _loading(plan: MemoryPlan, rank: int) -> AbstractContextManager[None]:
    device = torch.device("cpu") if plan.device == "cpu" else torch.device("cuda", rank)
    planned = plan.weight_bytes + plan.kv_cache_bytes + plan.workspace_bytes
    return naming_lack_of_memory(device, planned)


def _lacks_memory(device: torch.device, rank: int) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"rank {rank} ran out of memory in a step, which no rank can go on from:"
        f" {memory_left(device)}"
    )


def _device(plan: MemoryPlan, rank: int) -> torch.device:
    """This rank's device, which becomes the current one."""
    if plan.device == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    return device
