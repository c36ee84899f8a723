"""One rank's part of a step: batch, forward pass, logits, tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dropless.engine.constraints import Constraints
from dropless.engine.decode_graphs import DecodeGraphs
from dropless.engine.logprobs import token_logprobs
from dropless.engine.row_table import RowTable, StepArrays
from dropless.engine.sampler import Sampler, SamplingRow
from dropless.engine.step import NewRequest, StepInput, StepResult
from dropless.errors import GrammarError
from dropless.layers.batch import ForwardBatch
from dropless.models.decoder import CausalLM
from dropless.ops.attention import PagedBatch

_LOGIT_ELEMENTS = 1 << 22  # of prompt logits at a time: 16 MiB


@dataclass(frozen=True, slots=True)
class _PromptPart:
    """Prompt tokens of row i whose log probabilities a step finds: `token_ids[j]` is predicted by
    the step's token `first + j`."""

    i: int
    first: int
    token_ids: list[int]
    num_top: int


class Runner:
    """Holds the model, the KV cache and the state of all running requests, on one rank.

    Every rank is given every step. Rank 0 samples (`execute`); the others compute along
    (`follow`) and are told with the next step what was sampled.
    """

    def __init__(
        self,
        model: CausalLM,
        kv_caches: list[tuple[Tensor, Tensor]],
        *,
        device: torch.device,
        max_rows: int,
        max_model_len: int,
        constraints: Constraints,
        decode_graphs: DecodeGraphs | None = None,
    ) -> None:
        """`decode_graphs` compute steps of single tokens where there are any: on GPUs."""
        self._model = model
        self._kv_caches = kv_caches
        self._device = device
        self._max_model_len = max_model_len
        self._vocab_size = constraints.vocab_size
        self._constraints = constraints
        self._decode_graphs = decode_graphs
        self._table = RowTable(max_rows, max_model_len, block_size=kv_caches[0][0].shape[1])
        self._requests: dict[int, NewRequest] = {}
        self._sampling: dict[int, SamplingRow] = {}
        self._failed: dict[int, str] = {}  # rows whose grammar cannot be followed, and why
        self._sampler = Sampler(constraints.unsampleable_ids, device)

    @torch.inference_mode()
    def execute(self, step: StepInput) -> StepResult:
        """Compute one step and sample. Errors of single rows are in the result."""
        self._take_in(step)
        for request in step.new_requests:
            self._start_sampling(request)
        arrays = self._table.gather(step)
        result = StepResult([None] * len(step.rows), [None] * len(step.rows))
        if self._decode_graphs is not None and self._is_decode(step, arrays):
            self._sample(step, self._decode_graphs.logits(arrays), result)
            return result
        hidden = self._forward(arrays)
        if any(step.sample):
            self._sample(step, self._last_logits(step, hidden, arrays), result)
        self._report_prompts(step, hidden, arrays, result)
        return result

    @torch.inference_mode()
    def follow(self, step: StepInput) -> None:
        """Compute one step along with rank 0, all its collectives included, without sampling."""
        self._take_in(step)
        arrays = self._table.gather(step)
        if self._decode_graphs is not None and self._is_decode(step, arrays):
            self._decode_graphs.logits(arrays)
            return
        hidden = self._forward(arrays)
        if any(step.sample):
            self._last_logits(step, hidden, arrays)
        for part in self._prompt_parts(step, arrays):
            self._prompt_logits(hidden, part)

    def note_sampled(self, rows: Sequence[int], token_ids: Sequence[int]) -> None:
        """Append what rank 0 sampled to these rows' sequences."""
        if rows:
            self._table.append(rows, token_ids)

    def _take_in(self, step: StepInput) -> None:
        for row in step.freed_rows:
            self._requests.pop(row, None)
            self._sampling.pop(row, None)
            self._failed.pop(row, None)
        for request in step.new_requests:
            self._requests[request.row] = request
            self._table.start(request.row, request.token_ids)

    def _start_sampling(self, request: NewRequest) -> None:
        params = request.params
        prompt = request.token_ids[: request.num_prompt_tokens]
        generated = request.token_ids[request.num_prompt_tokens :]
        matcher = None
        if params.grammar is not None:
            try:
                matcher = self._constraints.matcher(params.grammar, generated)
            except GrammarError as error:
                self._failed[request.row] = str(error)
        room = self._max_model_len - request.num_prompt_tokens
        ends = () if params.ignore_eos else self._constraints.eos_token_ids
        self._sampling[request.row] = SamplingRow(
            params,
            request.seed,
            prompt=prompt,
            generated=generated,
            max_new_tokens=min(room, params.max_tokens or room),
            matcher=matcher,
            end_token_ids=(*ends, *params.stop_token_ids),
        )

    def _is_decode(self, step: StepInput, arrays: StepArrays) -> bool:
        """Whether every row computes one token and samples the next, and that is all."""
        return (
            arrays.num_decodes == len(step.rows)
            and all(step.sample)
            and all(self._requests[row].params.prompt_logprobs is None for row in step.rows)
        )

    def _forward(self, arrays: StepArrays) -> Tensor:
        """The last hidden states [num_tokens, hidden] of all tokens of the step."""
        paged = PagedBatch(
            slot_mapping=self._to_device(arrays.slot_mapping),
            block_tables=self._to_device(arrays.block_tables),
            query_start=self._to_device(arrays.query_start),
            seq_lens=self._to_device(arrays.seq_lens),
            num_decodes=arrays.num_decodes,
            query_lens_host=arrays.query_lens.tolist(),
            seq_lens_host=arrays.seq_lens.tolist(),
        )
        batch = ForwardBatch(
            token_ids=self._to_device(arrays.token_ids),
            positions=self._to_device(arrays.positions),
            paged=paged,
            kv_caches=self._kv_caches,
        )
        return self._model(batch)

    def _sample(self, step: StepInput, logits: Tensor, result: StepResult) -> None:
        """Sample every row that is due into `result`, and note the tokens."""
        due = [i for i, wanted in enumerate(step.sample) if wanted]
        rows = [self._sampling[step.rows[i]] for i in due]
        sampled = self._sampler.sample(logits, rows)
        taken_rows, taken_ids = [], []
        for k, (i, token_id) in enumerate(zip(due, sampled.token_ids, strict=True)):
            error = self._failed.get(step.rows[i]) or sampled.errors.get(k)
            if error is not None or token_id is None:
                result.errors[i] = error or "no token was sampled"
                continue
            result.token_ids[i] = token_id
            result.logprobs[i] = sampled.logprobs[k]
            taken_rows.append(step.rows[i])
            taken_ids.append(token_id)
            matcher = rows[k].matcher
            if matcher is not None and matcher.finished:
                result.grammar_finished.add(i)
        self.note_sampled(taken_rows, taken_ids)

    def _last_logits(self, step: StepInput, hidden: Tensor, arrays: StepArrays) -> Tensor:
        """[rows that sample, vocab] float32, from the last token of each."""
        last = arrays.query_start[1:][np.array(step.sample)] - 1
        return self._model.logits(hidden[self._to_device(last)])

    def _report_prompts(
        self, step: StepInput, hidden: Tensor, arrays: StepArrays, result: StepResult
    ) -> None:
        """Log probabilities of the prompt tokens that this step predicts, into `result`. Nothing
        predicts the first one: its entry None comes with the part that starts there."""
        for i, row in enumerate(step.rows):
            if self._requests[row].params.prompt_logprobs is not None:
                result.prompt_logprobs[i] = [None] if step.num_computed[i] == 0 else []
        for part in self._prompt_parts(step, arrays):
            logits = self._prompt_logits(hidden, part)
            num_top = [part.num_top] * len(part.token_ids)
            result.prompt_logprobs[part.i] += token_logprobs(logits, part.token_ids, num_top)

    def _prompt_parts(self, step: StepInput, arrays: StepArrays) -> Iterator[_PromptPart]:
        """The prompt tokens that this step predicts, in pieces of bounded logits."""
        size = max(1, _LOGIT_ELEMENTS // self._vocab_size)
        for i, row in enumerate(step.rows):
            request = self._requests[row]
            num_top = request.params.prompt_logprobs
            if num_top is None:
                continue
            first = step.num_computed[i] + 1  # the place of the first token predicted
            end = min(first + step.num_tokens[i], request.num_prompt_tokens)
            for start in range(first, end, size):
                token_ids = request.token_ids[start : min(start + size, end)]
                hidden_start = int(arrays.query_start[i]) + start - first
                yield _PromptPart(i, hidden_start, token_ids, num_top)

    def _prompt_logits(self, hidden: Tensor, part: _PromptPart) -> Tensor:
        return self._model.logits(hidden[part.first : part.first + len(part.token_ids)])

    def _to_device(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)
