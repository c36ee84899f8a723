"""Requests thrown together in one engine at random, and each of them alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from dropless.checkpoints.open import open_checkpoint
from dropless.engine.config import EngineConfig
from dropless.engine.constraints import Constraints
from dropless.engine.engine import Engine
from dropless.engine.executor import Executor
from dropless.engine.load import load_runner
from dropless.engine.memory import plan_memory
from dropless.engine.messages import EngineRequest, EngineStats, TokenLogprob
from dropless.engine.sampling_params import SamplingParams
from dropless.models.registry import parse_config
from dropless.parallel.group import SOLO


@dataclass
class Answer:
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] | None = None


@dataclass(frozen=True)
class Loaded:
    """A model that one engine after another computes with."""

    config: EngineConfig
    executor: Executor
    constraints: Constraints
    max_model_len: int

    @classmethod
    def load(cls, config: EngineConfig) -> Loaded:
        checkpoint = open_checkpoint(config.model_path, config.weights)
        plan = plan_memory(config, checkpoint)
        constraints = Constraints(None, parse_config(checkpoint.config).vocab_size, ())
        runner = load_runner(config, checkpoint, plan, SOLO, constraints, lambda *_: None)
        return cls(config, Executor(runner), constraints, plan.max_model_len)

    def engine(self, *, num_blocks: int, budget: int, rows: int, prefix_caching: bool) -> Engine:
        return Engine(
            self.executor,
            self.constraints,
            num_blocks=num_blocks,
            block_size=self.config.block_size,
            max_model_len=self.max_model_len,
            max_running_requests=rows,
            max_waiting_requests=1000,
            step_token_budget=budget,
            prefix_caching=prefix_caching,
        )


def make_requests(
    choice: random.Random, count: int, *, vocab_size: int, longest: int, tokens: int
) -> list[EngineRequest]:
    """Prompts of up to `longest` tokens, several with the same beginning, and up to `tokens` to
    generate; half of them sampled with a seed, all with log probabilities."""
    stems = [[choice.randrange(vocab_size) for _ in range(longest)] for _ in range(2)]
    requests = []
    for i in range(count):
        length = choice.randint(1, choice.randint(1, longest))  # more short ones
        stem = choice.choice(stems)[: choice.randint(0, length)]
        prompt = stem + [choice.randrange(vocab_size) for _ in range(length - len(stem))]
        sampled = choice.random() < 0.5
        params = SamplingParams(
            temperature=1.0 if sampled else 0.0,
            top_p=choice.choice([1.0, 0.9]),
            top_k=choice.choice([0, 20]),
            seed=i,
            max_tokens=choice.randint(1, tokens),
            ignore_eos=True,
            logprobs=2,
            prompt_logprobs=choice.choice([None, None, None, 1]),
            presence_penalty=choice.choice([0.0, 0.0, 0.5]),
        )
        requests.append(EngineRequest(str(i), prompt, params))
    return requests


def alone(loaded: Loaded, request: EngineRequest, num_blocks: int) -> Answer:
    """Its prompt in one step, nothing beside it, nothing found in the cache."""
    engine = loaded.engine(num_blocks=num_blocks, budget=4096, rows=1, prefix_caching=False)
    answers, _ = together(engine, [request], random.Random(0))
    return answers[request.request_id]


def together(
    engine: Engine, requests: Sequence[EngineRequest], choice: random.Random
) -> tuple[dict[str, Answer], EngineStats]:
    """All of them: at once, or some while others run."""
    coming = list(requests)
    arriving = choice.choice([[len(coming)], [0, 0, 1, 8]])
    answers = {request.request_id: Answer() for request in requests}
    while coming or engine.has_work():
        for _ in range(choice.choice(arriving)):
            if coming:
                engine.add_request(coming.pop())
        for delta in engine.step():
            assert delta.error is None
            answer = answers[delta.request_id]
            answer.token_ids += delta.new_token_ids
            answer.logprobs += delta.logprobs or []
            answer.prompt_logprobs = delta.prompt_logprobs or answer.prompt_logprobs
    return answers, engine.stats()
