"""One rank's part of a step: batch, forward pass, logits, tokens. Nothing here waits for a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dropless.engine.constraints import Constraints
from dropless.engine.device_rows import DeviceRows
from dropless.engine.expert_load import ExpertLoad
from dropless.engine.logprobs import TokenLogprobs
from dropless.engine.row_table import RowTable, StepArrays
from dropless.engine.running_step import RunningStep
from dropless.engine.sampler import Sampler, Sampling
from dropless.engine.sampling_row import SamplingRow, is_plain
from dropless.engine.step import NewRequest, StepInput
from dropless.engine.step_graphs import Decoded, StepGraphs
from dropless.engine.transfer import to_device
from dropless.errors import GrammarError
from dropless.layers.batch import ForwardBatch
from dropless.models.decoder import CausalLM
from dropless.ops.attention import PagedBatch
from dropless.parallel.group import Group
from dropless.text.grammar import OutputMatcher

_LOGIT_ELEMENTS = 1 << 22  # of prompt logits at a time: 16 MiB


@dataclass(frozen=True, slots=True)
class _Computed:
    """A step up to its logits: those of the rows that sample, which are these of the tables. Or a
    graph that can go on by itself."""

    decoded: Decoded | None = None
    hidden: Tensor | None = None  # [num_tokens, hidden], where prompts may be scored
    logits: Tensor | None = None  # [num_sampled, vocab] float32
    rows: Tensor | None = None  # [num_sampled] int64


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

    Every rank is given every step. Rank 0 samples (`launch`); the others compute along (`follow`).
    A sampled token goes to all ranks and stays on the device, where the next step finds it.
    """

    def __init__(
        self,
        model: CausalLM,
        kv_caches: list[tuple[Tensor, Tensor]],
        *,
        device: torch.device,
        group: Group,
        max_rows: int,
        max_model_len: int,
        constraints: Constraints,
    ) -> None:
        self.device = device
        self._model = model
        self._kv_caches = kv_caches
        self._group = group
        self._max_model_len = max_model_len
        self._vocab_size = constraints.vocab_size
        self._constraints = constraints
        self._table = RowTable(max_rows, max_model_len, block_size=kv_caches[0][0].shape[1])
        self._device_rows = DeviceRows(max_rows, self._table.max_blocks, device)
        self._sampler = Sampler(constraints.unsampleable_ids, device)
        self._graphs: StepGraphs | None = None
        self._expert_load: ExpertLoad | None = None
        self._requests: dict[int, NewRequest] = {}
        self._sampling: dict[int, SamplingRow] = {}
        self._plain = np.zeros(max_rows, dtype=np.bool_)
        self._scores_prompt = np.zeros(max_rows, dtype=np.bool_)
        self._replaced: dict[int, int] = {}

    def watch_experts(self, most_tokens: int) -> None:
        """From now on count which experts a step's tokens go to, of at most so many."""
        self._expert_load = ExpertLoad(self._model, most_tokens, self.device)

    @property
    def expert_counts(self) -> list[list[int]]:
        """By layer and expert; empty for a dense model. Each is never changed, but replaced."""
        return [] if self._expert_load is None else self._expert_load.counts

    def capture_graphs(
        self, spare_block: int, step_token_budget: int, progress: Callable[[float], None]
    ) -> None:
        """From now on steps run as CUDA graphs, but for the largest. `spare_block` of the cache
        belongs to no sequence; `progress` is told which part is done."""
        self._graphs = StepGraphs(
            self._model,
            self._kv_caches,
            self._device_rows,
            self._sampler,
            group=self._group,
            spare_block=spare_block,
            step_token_budget=step_token_budget,
        )
        self._graphs.capture_all(progress)

    def drop_graphs(self) -> None:
        """Nothing is computed after that."""
        if self._graphs is not None:
            self._graphs.drop_all()

    @property
    def replaced(self) -> Mapping[int, int]:
        """By row, the tokens that the next step computes in the place of sampled ones: results have
        brought them since the last step. All ranks must be told (`replace`)."""
        return self._replaced

    def replace(self, token_ids: Mapping[int, int]) -> None:
        """What rank 0 has `replaced`."""
        self._replaced.update(token_ids)

    @torch.inference_mode()
    def launch(self, step: StepInput) -> RunningStep:
        """Compute one step and sample, up to where the device is on its own."""
        arrays = self._take_in(step)
        for request in step.new_requests:
            self._start_sampling(request)
        sampling = [self._sampling[row] for row in arrays.rows[arrays.sampled].tolist()]
        computed = self._compute(arrays)
        if self._expert_load is not None:
            self._expert_load.note_step(len(arrays.positions))
        parts = self._sample(computed, sampling)
        prompt_logprobs: dict[int, list[TokenLogprobs]] = {
            i: [] for i in np.flatnonzero(self._scores_prompt[arrays.rows]).tolist()
        }
        for part in self._prompt_parts(step, arrays):
            prompt_logprobs[part.i].append(self._score(computed, part))
        return RunningStep(step, parts, prompt_logprobs, self._replaced)

    @torch.inference_mode()
    def follow(self, step: StepInput) -> None:
        """Compute one step along with rank 0, all its collectives included, without sampling."""
        arrays = self._take_in(step)
        computed = self._compute(arrays)
        if computed.decoded is not None:
            computed.decoded.choose()
        elif computed.rows is not None:
            self._keep(computed.rows, torch.empty_like(computed.rows))
        for part in self._prompt_parts(step, arrays):
            self._prompt_logits(computed, part)

    def _take_in(self, step: StepInput) -> StepArrays:
        for row in step.freed_rows:
            self._requests.pop(row, None)
            self._sampling.pop(row, None)
            self._replaced.pop(row, None)
        for request in step.new_requests:
            self._requests[request.row] = request
            self._plain[request.row] = is_plain(request.params)
            self._scores_prompt[request.row] = request.params.prompt_logprobs is not None
            self._table.start(request.row, request.token_ids)
        arrays = self._table.gather(step, self._replaced)
        self._replaced.clear()
        return arrays

    def _start_sampling(self, request: NewRequest) -> None:
        params = request.params
        prompt = request.token_ids[: request.num_prompt_tokens]
        generated = request.token_ids[request.num_prompt_tokens :]
        matcher: OutputMatcher | None = None
        error: GrammarError | None = None
        if params.grammar is not None:
            try:
                matcher = self._constraints.matcher(params.grammar, generated)
            except GrammarError as failure:
                error = failure
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
            error=error,
        )

    def _compute(self, arrays: StepArrays) -> _Computed:
        if len(arrays.given_rows):
            given_rows, given_ids = to_device(self.device, arrays.given_rows, arrays.given_ids)
            self._device_rows.put_tokens(given_rows, given_ids)
        graphs = self._graphs
        if graphs is not None and self._is_decode(arrays):
            decoded = graphs.decode(arrays)
            if self._plain[arrays.rows].all():
                return _Computed(decoded)
            [rows] = to_device(self.device, arrays.rows)
            return _Computed(logits=decoded.logits, rows=rows)
        if graphs is not None and graphs.serves(len(arrays.positions)):
            hidden = graphs.forward(arrays)
        else:
            hidden = self._forward(arrays)
        if not len(arrays.sampled):
            return _Computed(hidden=hidden)
        last = arrays.query_start[1:][arrays.sampled] - 1
        last_tokens, rows = to_device(self.device, last, arrays.rows[arrays.sampled])
        return _Computed(hidden=hidden, logits=self._model.logits(hidden[last_tokens]), rows=rows)

    def _is_decode(self, arrays: StepArrays) -> bool:
        """Whether every row computes one token and samples the next, and that is all."""
        return (
            arrays.num_decodes == len(arrays.rows) == len(arrays.sampled)
            and not self._scores_prompt[arrays.rows].any()
        )

    def _forward(self, arrays: StepArrays) -> Tensor:
        """Hidden states [num_tokens, hidden] of a step of any kind, kernel after kernel."""
        rows, token_ids, positions, slots, places, block_ids, query_start, seq_lens = to_device(
            self.device, arrays.rows, arrays.token_ids, arrays.positions, arrays.slot_mapping,
            arrays.block_places, arrays.block_ids, arrays.query_start, arrays.seq_lens,
        )  # fmt: skip
        self._device_rows.put_blocks(places, block_ids)
        decoding = self._device_rows.next_tokens[rows[: arrays.num_decodes]]
        paged = PagedBatch(
            slot_mapping=slots,
            block_tables=self._device_rows.block_tables[:, : arrays.max_blocks][rows],
            query_start=query_start,
            seq_lens=seq_lens,
            num_decodes=arrays.num_decodes,
            num_chunks=len(arrays.rows) - arrays.num_decodes,
            query_lens_host=arrays.query_lens.tolist(),
            seq_lens_host=arrays.seq_lens.tolist(),
        )
        batch = ForwardBatch(torch.cat([decoding, token_ids]), positions, paged, self._kv_caches)
        return self._model(batch)

    def _sample(self, computed: _Computed, sampling: list[SamplingRow]) -> list[Sampling]:
        """Tokens of every row that is due, which become the rows' next ones."""
        if computed.decoded is not None:
            best, token_ids = computed.decoded.choose()
            return [Sampling(sampling, token_ids, best)]
        if computed.logits is None or computed.rows is None:
            return []
        parts = self._sampler.launch(computed.logits, sampling)
        self._keep(computed.rows, torch.cat([part.token_ids for part in parts]))
        return parts

    def _keep(self, rows: Tensor, token_ids: Tensor) -> None:
        """Rank 0's `token_ids` [n] become the next ones of `rows` [n], on every rank."""
        self._device_rows.put_tokens(rows, self._group.broadcast(token_ids))

    def _prompt_parts(self, step: StepInput, arrays: StepArrays) -> Iterator[_PromptPart]:
        """The prompt tokens that this step predicts, in pieces of bounded logits."""
        size = max(1, _LOGIT_ELEMENTS // self._vocab_size)
        for i in np.flatnonzero(self._scores_prompt[arrays.rows]).tolist():
            request = self._requests[step.rows[i]]
            first = step.num_computed[i] + 1  # the place of the first token predicted
            end = min(first + step.num_tokens[i], request.num_prompt_tokens)
            for start in range(first, end, size):
                token_ids = request.token_ids[start : min(start + size, end)]
                hidden_start = int(arrays.query_start[i]) + start - first
                num_top = request.params.prompt_logprobs or 0
                yield _PromptPart(i, hidden_start, token_ids, num_top)

    def _prompt_logits(self, computed: _Computed, part: _PromptPart) -> Tensor:
        """[tokens of the part, vocab] float32."""
        assert computed.hidden is not None
        return self._model.logits(computed.hidden[part.first : part.first + len(part.token_ids)])

    def _score(self, computed: _Computed, part: _PromptPart) -> TokenLogprobs:
        logits = self._prompt_logits(computed, part)
        [token_ids] = to_device(self.device, np.array(part.token_ids, dtype=np.int64))
        return TokenLogprobs(logits, token_ids, [part.num_top] * len(part.token_ids))
