"""What the scheduler hands to the runner and gets back. No torch: plain lists and numpy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from dropless.engine.messages import TokenLogprob
from dropless.engine.sampling_params import SamplingParams
from dropless.errors import DroplessError


@dataclass(slots=True)
class NewRequest:
    """Sent to the runner when a request starts (or restarts after preemption). The runner keeps
    per-request state in `row` until that row appears in a later step's `freed_rows`."""

    row: int  # index into the runner's persistent tables, unique among live requests
    request_id: str
    token_ids: list[int]  # prompt and, after a preemption, what was generated so far
    num_prompt_tokens: int
    params: SamplingParams
    seed: int  # always concrete: the request's own or one drawn at admission


@dataclass(slots=True)
class StepInput:
    """One step: which rows run how many tokens. Rows with one token to go stand first.

    For row i of this step, tokens `num_computed[i] : num_computed[i] + num_tokens[i]` of its
    sequence are computed; if that reaches its end, one token is sampled. What earlier steps have
    sampled belongs to the sequence, though only the device may know it yet.
    `new_blocks[i]` are block ids appended to the row's block table before running.
    """

    rows: list[int]
    num_computed: list[int]
    num_tokens: list[int]
    new_blocks: list[list[int]]
    sample: list[bool]  # whether row i samples a token after this step
    new_requests: list[NewRequest] = field(default_factory=list)
    freed_rows: list[int] = field(default_factory=list)


@dataclass(slots=True)
class StepResult:
    """Sampled tokens, aligned with StepInput.rows; None where nothing was sampled or it failed.

    `prompt_logprobs` holds, for rows that asked, the entries for the prompt tokens computed in
    this step. `errors[i]` is set when row i alone failed (for example its grammar); the engine
    ends that request and no other.
    """

    token_ids: list[int | None]
    logprobs: list[TokenLogprob | None]
    prompt_logprobs: dict[int, list[TokenLogprob | None]] = field(default_factory=dict)
    errors: dict[int, DroplessError] = field(default_factory=dict)
    grammar_finished: set[int] = field(default_factory=set)  # rows whose grammar allows no more


class LaunchedStep(Protocol):
    """A step that the device computes, or has computed."""

    def result(self) -> StepResult:
        """Waits for it. To be called once."""
