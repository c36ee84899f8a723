"""Offline use: a model, prompts in, results out, in one process."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import msgspec
from rich.console import Console
from rich.progress import Progress

from dropless.checkpoints.catalogue import default_model
from dropless.checkpoints.resolve import resolve
from dropless.engine.build import build_engine, find_tokenizer
from dropless.engine.config import EngineConfig
from dropless.engine.messages import EngineRequest
from dropless.engine.output import OutputText
from dropless.engine.results import Gathering, GenerationResult
from dropless.engine.sampling_params import SamplingParams
from dropless.errors import InvalidRequestError
from dropless.text.chat_template import load_chat_template

Prompt = str | Sequence[int]
Conversation = Sequence[Mapping[str, Any]]


class LLM:
    """A model in this process.

    ```python
    with LLM("smollm2-135m-instruct") as llm:
        result = llm.chat([{"role": "user", "content": "Name three rivers."}])
        print(result.text)
    ```
    """

    def __init__(self, model: str | Path | None = None, **settings: Any) -> None:
        """Finds the model (fetching it if need be) and loads it; progress goes to standard error.

        Args:
            model: a folder, a GGUF file, a name of the catalogue or a hub id; None for the
                catalogue's default.
            settings: fields of `EngineConfig`, such as `max_model_len=4096`.

        Raises:
            DroplessError: not found, damaged, wrong settings, or it does not fit into memory.
        """
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("finding the model", total=None)

            def fetching(stage: str, done_bytes: int, total_bytes: int | None) -> None:
                progress.update(task, description=stage, completed=done_bytes, total=total_bytes)

            def loading(stage: str, fraction: float) -> None:
                progress.update(task, description=stage, completed=fraction, total=1.0)

            spec = str(model) if model is not None else default_model().name
            generated = settings.get("weights") == "random"
            path = resolve(spec, fetching, allow_shapes=generated)
            settings.setdefault("model_id", Path(spec).name)
            self.config = EngineConfig(model_path=path, **settings)
            self.tokenizer = find_tokenizer(self.config)
            self._template = load_chat_template(path, self.tokenizer) if self.tokenizer else None
            self.engine, self.ready = build_engine(self.config, loading, self.tokenizer)
        self._numbers = itertools.count()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        n: int = 1,
        progress: bool = False,
    ) -> list[GenerationResult]:
        """Continue every prompt; results in the order of the prompts.

        Args:
            prompts: one or several, each a text or token ids.
            params: one for all, or one for each prompt; None is `SamplingParams()`.
            n: sequences for each prompt, which stand beside each other in the results. With a
                seed, the i-th uses seed + i.
            progress: show a bar on standard error.

        Raises:
            InvalidRequestError: a prompt or its parameters are wrong; there are no results then.
            EngineError: the engine failed.
        """
        one = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))
        several: Sequence[Any] = [prompts] if one else prompts
        token_ids = [self._encode(prompt) for prompt in several]
        return self._run(token_ids, params, n, progress, continues_text=True)

    @overload
    def chat(
        self,
        messages: Conversation,
        params: SamplingParams | None = None,
        *,
        progress: bool = False,
    ) -> GenerationResult: ...

    @overload
    def chat(
        self,
        messages: Sequence[Conversation],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
    ) -> list[GenerationResult]: ...

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
    ) -> GenerationResult | list[GenerationResult]:
        """The assistant's next message: of one conversation (`{"role": ..., "content": ...}`
        messages), or of each in a list of conversations.

        Raises:
            ChatTemplateError: messages out of order, or a model without a chat template.
            InvalidRequestError, EngineError: as `generate`.
        """
        if self._template is None:
            raise InvalidRequestError("this model has no tokenizer, so it cannot chat")
        conversations: Sequence[Any] = messages
        one = not messages or isinstance(messages[0], Mapping)
        if one:
            conversations = [messages]
        prompts = [self._template.render(conversation) for conversation in conversations]
        results = self._run(prompts, params, 1, progress, continues_text=False)
        return results[0] if one else results

    def _encode(self, prompt: Prompt) -> list[int]:
        if not isinstance(prompt, str):
            return list(prompt)
        if self.tokenizer is None:
            raise InvalidRequestError(
                "this model has no tokenizer; give prompts as token ids", param="prompt"
            )
        return self.tokenizer.encode(prompt, add_bos=self.tokenizer.add_bos)

    def _run(
        self,
        prompts: Sequence[list[int]],
        params: SamplingParams | Sequence[SamplingParams] | None,
        n: int,
        progress: bool,
        *,
        continues_text: bool,
    ) -> list[GenerationResult]:
        sequences = []
        for prompt, own_params in zip(prompts, _one_each(params, len(prompts)), strict=True):
            for i in range(n):
                request = EngineRequest(
                    f"llm-{next(self._numbers)}",
                    prompt,
                    _with_seed(own_params, i),
                    arrival_time=time.time(),
                )
                output = None
                if self.tokenizer is not None:
                    output = OutputText(
                        self.tokenizer, request.params, continues_text=continues_text
                    )
                sequences.append(Gathering(request, output))
        with Progress(console=Console(stderr=True), disable=not progress) as bar:
            task = bar.add_task("generating", total=len(sequences))
            return self._finish_all(sequences, lambda: bar.advance(task))

    def _finish_all(
        self, sequences: Sequence[Gathering], on_finish: Callable[[], None]
    ) -> list[GenerationResult]:
        """Keeps the engine's queue filled until all are done; whatever ends that early, Ctrl-C
        among it, leaves no request behind in the engine."""
        results: dict[str, GenerationResult] = {}
        live: dict[str, Gathering] = {}
        waiting = iter(sequences)
        try:
            while len(results) < len(sequences):
                room = self.config.max_waiting_requests - len(live)
                for sequence in itertools.islice(waiting, max(0, room)):
                    self.engine.add_request(sequence.request)
                    live[sequence.request.request_id] = sequence
                for delta in self.engine.step():
                    if delta.request_id not in live:  # aborted below
                        continue
                    result = live[delta.request_id].push(delta)
                    if result is None:
                        continue
                    results[delta.request_id] = result
                    del live[delta.request_id]
                    if delta.finish_reason is None:  # a stop string, of which the engine knows not
                        self.engine.abort([delta.request_id])
                    on_finish()
        except BaseException:
            self.engine.abort(list(live))
            raise
        return [results[sequence.request.request_id] for sequence in sequences]

    def close(self) -> None:
        """Ends worker processes and lets go of the model. The object is of no use afterwards."""
        self.engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _one_each(
    params: SamplingParams | Sequence[SamplingParams] | None, count: int
) -> Sequence[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise InvalidRequestError(
            f"there are {len(params)} params for {count} prompts; give one for each, or one for all"
        )
    return params


def _with_seed(params: SamplingParams, i: int) -> SamplingParams:
    """The parameters of the i-th sequence for a prompt; seeds stay within 64 bits, signed."""
    if params.seed is None or i == 0:
        return params
    return msgspec.structs.replace(params, seed=(params.seed + i + 2**63) % 2**64 - 2**63)
