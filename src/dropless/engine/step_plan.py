"""A step in the making."""

from __future__ import annotations

from dataclasses import dataclass, field

from dropless.engine.request import NO_ROW, Request
from dropless.engine.step import NewRequest


@dataclass(slots=True)
class StepPlan:
    """Who computes how many tokens, and what is left to give away."""

    budget: int  # tokens that may still be added
    long_budget: int = 0  # of these, tokens of long prompts
    promised_blocks: int = 0  # that prompts in the step need to be computed further
    has_long_prompt: bool = False
    decodes: list[Request] = field(default_factory=list)  # one token each
    chunks: dict[Request, int] = field(default_factory=dict)
    new_requests: list[NewRequest] = field(default_factory=list)
    spare: list[Request] = field(
        default_factory=list
    )  # of `decodes`, who may be left out for a prompt
    _promised: dict[Request, int] = field(default_factory=dict)
    _quiet: int | None = None  # the order of the most important prompt that others leave room to

    def add(self, request: Request, num_tokens: int) -> None:
        self.budget -= num_tokens
        if num_tokens == 1:
            self.decodes.append(request)
        else:
            self.chunks[request] = num_tokens

    def remove(self, request: Request) -> None:
        """It is preempted."""
        self.promise(request, 0)
        if request in self.chunks:
            self.budget += self.chunks.pop(request)
        elif request in self.decodes:
            self.decodes.remove(request)
            self.budget += 1

    def leave_out_spare(self) -> None:
        """As many of these as there are tokens too many stand still in this step."""
        spare = [request for request in self.spare if request.row != NO_ROW]
        left_out = set(spare[self.budget :])
        self.decodes = [request for request in self.decodes if request not in left_out]
        self.budget += len(left_out)

    def promise(self, request: Request, num_blocks: int) -> None:
        """A prompt in the step needs so many more blocks to be computed further."""
        self.promised_blocks += num_blocks - self._promised.get(request, 0)
        self._promised[request] = num_blocks

    def keep_quiet(self, request: Request) -> None:
        """Prompts of owners beyond their share are to wait for another step, unless more important
        than this request."""
        if self._quiet is None or request.order[0] < self._quiet:
            self._quiet = request.order[0]

    def is_quiet(self, request: Request) -> bool:
        return self._quiet is not None and request.order[0] >= self._quiet
