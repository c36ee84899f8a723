"""What rank 0 still expects from the device of a step that it has launched."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dropless.engine.logprobs import TokenLogprobs
from dropless.engine.messages import TokenLogprob
from dropless.engine.sampler import Sampled, Sampling
from dropless.engine.step import StepInput, StepResult


class RunningStep:
    """A `LaunchedStep` of a runner."""

    def __init__(
        self,
        step: StepInput,
        sampling: Sequence[Sampling],
        prompt_logprobs: dict[int, list[TokenLogprobs]],
        replaced: dict[int, int],
    ) -> None:
        """
        Args:
            step: what was launched.
            sampling: of its rows that sample, in their order, part after part.
            prompt_logprobs: of its rows that ask for them, by place in the step.
            replaced: takes up, by row, the tokens that grammars put in the place of sampled ones.
        """
        self._step = step
        self._sampling = sampling
        self._prompt_logprobs = prompt_logprobs
        self._replaced = replaced

    @torch.inference_mode()
    def result(self) -> StepResult:
        """Wait for the tokens and log probabilities. Errors of single rows are in the result."""
        step = self._step
        result = StepResult([None] * len(step.rows), [None] * len(step.rows))
        places = [i for i, due in enumerate(step.sample) if due]
        for part in self._sampling:
            sampled = part.finish()
            count = len(sampled.token_ids)
            self._take(sampled, places[:count], result)
            places = places[count:]
        for i, parts in self._prompt_logprobs.items():
            # Nothing predicts the first prompt token: its entry comes with the chunk it is in.
            entries: list[TokenLogprob | None] = [None] if step.num_computed[i] == 0 else []
            for logprobs in parts:
                entries += logprobs.wait()
            result.prompt_logprobs[i] = entries
        return result

    def _take(self, sampled: Sampled, places: Sequence[int], result: StepResult) -> None:
        for i, token_id, logprob in zip(places, sampled.token_ids, sampled.logprobs, strict=True):
            result.token_ids[i] = token_id
            result.logprobs[i] = logprob
        for k, error in sampled.errors.items():
            result.errors[places[k]] = error
        for k, token_id in sampled.replaced.items():
            self._replaced[self._step.rows[places[k]]] = token_id
        result.grammar_finished.update(places[k] for k in sampled.grammar_finished)
