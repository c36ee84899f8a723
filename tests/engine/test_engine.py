"""What the engine refuses, how requests end, and what their deltas tell."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import pytest

from dropless.engine.constraints import Constraints
from dropless.engine.engine import Engine
from dropless.engine.messages import EngineRequest, TokenDelta, TokenLogprob
from dropless.engine.sampling_params import GrammarSpec, SamplingParams
from dropless.engine.step import StepInput, StepResult
from dropless.errors import (
    ContextLengthError,
    EngineError,
    EngineOverloadedError,
    GrammarError,
    InvalidRequestError,
)

from .simulated_device import EOS, VOCAB, logprob_of, make_engine, solo_output

EOS_2, STOP, PLAIN, UNSEEN = 3, 9, 10, 11


@pytest.fixture(params=[False, True], ids=["waiting", "overlapping"])
def overlaps(request: pytest.FixtureRequest) -> bool:
    """Whether steps are launched before the last one's tokens are known."""
    return bool(request.param)


@dataclass(frozen=True)
class Answer:
    outcome: StepResult

    def result(self) -> StepResult:
        return self.outcome


class Script:
    """Answers a request's steps with the next of `outcomes`: a token, or a text that is an error.
    `finishing` are places in it where the grammar is through. What an overlapping device samples
    behind them is for nobody."""

    def __init__(
        self, outcomes: list[int | str], finishing: set[int] | None, overlaps: bool
    ) -> None:
        self._outcomes = outcomes
        self._finishing = finishing or set()
        self._place = 0
        self.steps: list[StepInput] = []
        self.overlaps = overlaps

    def launch(self, step: StepInput) -> Answer:
        self.steps.append(step)
        result = StepResult([None] * len(step.rows), [None] * len(step.rows))
        for i, due in enumerate(step.sample):
            if not due:
                continue
            behind = self.overlaps and self._place >= len(self._outcomes)
            outcome = UNSEEN if behind else self._outcomes[self._place]
            if isinstance(outcome, str):
                result.errors[i] = EngineError(outcome)
            else:
                result.token_ids[i] = outcome
            if self._place in self._finishing:
                result.grammar_finished.add(i)
            self._place += 1
        return Answer(result)

    def close(self) -> None:
        pass


def scripted(
    outcomes: list[int | str], finishing: set[int] | None = None, *, overlaps: bool = False
) -> Engine:
    return Engine(
        Script(outcomes, finishing, overlaps),
        Constraints(None, VOCAB, [EOS, EOS_2]),
        num_blocks=16,
        block_size=4,
        max_model_len=32,
        max_running_requests=2,
        max_waiting_requests=2,
        step_token_budget=8,
        prefix_caching=True,
    )


def make_request(
    name: str = "r",
    prompt: list[int] | None = None,
    *,
    owner: str = "",
    weight: float = 1.0,
    **params: Any,
) -> EngineRequest:
    prompt = [5, 6, 7] if prompt is None else prompt
    return EngineRequest(
        name, prompt, SamplingParams(**{"seed": 0, **params}), owner, weight=weight
    )


def lasting_seed(prompt: list[int], num_tokens: int) -> int:
    """A seed with which the simulated device lets this prompt go on for that many tokens."""
    for seed in itertools.count():
        request = make_request(prompt=prompt, seed=seed, ignore_eos=True)
        if len(solo_output(request, seed, 64)[0]) >= num_tokens:
            return seed
    raise AssertionError


def run(engine: Engine) -> list[TokenDelta]:
    deltas = []
    while engine.has_work():
        deltas += engine.step()
    return deltas


def run_one(engine: Engine, request: EngineRequest) -> TokenDelta:
    """All deltas of the request as one."""
    engine.add_request(request)
    first, *rest = run(engine)
    for delta in rest:
        assert first.finish_reason is None
        first.extend(delta)
    return first


# What is refused


@pytest.mark.parametrize(
    ("request_", "param", "message"),
    [
        (make_request(prompt=[]), "prompt", "the prompt is empty"),
        (make_request(prompt=[1, 64]), "prompt", "token id 64; this model has 0 to 63"),
        (make_request(prompt=[-1, 5]), "prompt", "token id -1"),
        (make_request(stop_token_ids=(99,)), "stop_token_ids", "token id 99"),
        (make_request(logit_bias={64: 1.0}), "logit_bias", "token id 64"),
        (make_request(min_tokens=62), "min_tokens", r"min_tokens is 62.*room for 61"),
        (make_request(weight=0.0), "weight", r"weight is 0.0; .* between 0.001 and 1000"),
        (make_request(weight=float("nan")), "weight", "weight is nan"),
    ],
    ids=["empty", "beyond", "negative", "stop", "bias", "min_tokens", "weightless", "nan"],
)
def test_a_wrong_request_is_refused(request_: EngineRequest, param: str, message: str) -> None:
    engine, _ = make_engine()
    with pytest.raises(InvalidRequestError, match=message) as caught:
        engine.add_request(request_)
    assert caught.value.param == param
    assert not engine.has_work()


def test_a_prompt_that_fills_the_context_is_refused_with_both_numbers() -> None:
    engine, _ = make_engine(max_model_len=64)
    with pytest.raises(ContextLengthError, match=r"64 tokens.*context is 64.*to 63") as caught:
        engine.add_request(make_request(prompt=[5] * 64))
    assert caught.value.code == "context_length_exceeded"
    delta = run_one(engine, make_request(prompt=[5] * 63))
    assert len(delta.new_token_ids) == 1


def test_a_prompt_that_the_cache_can_never_hold_is_refused() -> None:
    engine, _ = make_engine(num_blocks=8, block_size=4, max_model_len=64)
    with pytest.raises(ContextLengthError, match=r"has 32 .*is 64 .*KV cache holds 32.* to 31"):
        engine.add_request(make_request(prompt=[5] * 32))
    assert run_one(engine, make_request(prompt=[5] * 31)).finish_reason is not None


def test_an_id_in_use_is_refused_until_its_request_has_ended() -> None:
    engine, _ = make_engine()
    engine.add_request(make_request("a"))
    with pytest.raises(InvalidRequestError, match="'a' is in use") as caught:
        engine.add_request(make_request("a"))
    assert caught.value.code == "duplicate_request_id"
    run(engine)
    engine.add_request(make_request("a"))
    engine.abort(["a"])
    engine.add_request(make_request("a"))


def test_a_full_queue_says_when_to_come_back() -> None:
    engine, _ = make_engine(max_running_requests=2, max_waiting_requests=3)
    for n in range(5):  # two have a row to start in
        engine.add_request(make_request(str(n), ignore_eos=True))
    with pytest.raises(EngineOverloadedError, match="the queue takes 3") as caught:
        engine.add_request(make_request("5"))
    assert caught.value.retry_after_s >= 1
    engine.abort(["1"])
    engine.add_request(make_request("5"))
    with pytest.raises(EngineOverloadedError):
        engine.add_request(make_request("6"))


def test_who_fills_the_queue_does_not_shut_others_out() -> None:
    engine, _ = make_engine(max_running_requests=2, max_waiting_requests=3)
    for n in range(5):
        engine.add_request(make_request(str(n), ignore_eos=True))
    for n in range(3):
        engine.add_request(make_request(f"other {n}", owner=f"other {n}"))
        with pytest.raises(EngineOverloadedError):  # one is the share of each of so many
            engine.add_request(make_request("second", owner=f"other {n}"))
    with pytest.raises(EngineOverloadedError, match="the queue takes 3"):
        engine.add_request(make_request("last", owner="last"))


def test_a_grammar_is_checked_at_the_door() -> None:
    engine, _ = make_engine()  # of a model that has no tokenizer
    with pytest.raises(GrammarError, match="no tokenizer"):
        engine.add_request(make_request(grammar=GrammarSpec("json_object")))
    assert not engine.has_work()


# How requests end


@pytest.mark.parametrize(
    ("params", "outcomes", "tokens", "reason", "stop_token_id"),
    [
        ({}, [PLAIN, EOS], [PLAIN, EOS], "stop", EOS),
        ({}, [EOS_2], [EOS_2], "stop", EOS_2),
        ({"ignore_eos": True, "max_tokens": 2}, [EOS, EOS], [EOS, EOS], "length", None),
        ({"stop_token_ids": (STOP,)}, [PLAIN, STOP], [PLAIN, STOP], "stop", STOP),
        ({"ignore_eos": True, "stop_token_ids": (EOS,)}, [EOS], [EOS], "stop", EOS),
        ({"max_tokens": 1}, [EOS], [EOS], "stop", EOS),
        ({"max_tokens": 3}, [PLAIN] * 3, [PLAIN] * 3, "length", None),
        ({}, [PLAIN] * 29, [PLAIN] * 29, "length", None),
        ({"max_tokens": 1000}, [PLAIN] * 29, [PLAIN] * 29, "length", None),
    ],
    ids=[
        "eos",
        "another-eos",
        "ignored-eos",
        "stop-token",
        "eos-as-stop-token",
        "eos-at-the-limit",
        "max-tokens",
        "context",
        "max-tokens-beyond-the-context",
    ],
)
def test_endings(
    params: dict[str, Any],
    outcomes: list[int | str],
    tokens: list[int],
    reason: str,
    stop_token_id: int | None,
    overlaps: bool,
) -> None:
    engine = scripted(outcomes, overlaps=overlaps)
    delta = run_one(engine, make_request(**params))
    assert delta.new_token_ids == tokens
    assert (delta.finish_reason, delta.stop_token_id) == (reason, stop_token_id)
    stats = engine.stats()
    assert (stats.generated_tokens, stats.kv_blocks_free) == (len(tokens), stats.kv_blocks_total)
    late = overlaps and reason == "stop" and len(tokens) < params.get("max_tokens", 29)
    assert stats.steps == len(tokens) + late, "only a stop token is found late"


def test_the_runner_is_told_how_many_tokens_there_can_be() -> None:
    engine, device = make_engine(num_blocks=8, block_size=4, max_model_len=64)
    engine.add_request(make_request(prompt=[5] * 20))
    engine.step()
    assert device.steps[0].new_requests[0].params.max_tokens == 12


def test_a_finished_grammar_stops_the_request(overlaps: bool) -> None:
    delta = run_one(scripted([PLAIN, PLAIN], {1}, overlaps=overlaps), make_request())
    assert (delta.finish_reason, delta.stop_token_id) == ("stop", None)
    delta = run_one(scripted([PLAIN, EOS], {1}, overlaps=overlaps), make_request())
    assert (delta.finish_reason, delta.stop_token_id) == ("stop", EOS)


def test_an_error_ends_only_the_request_it_belongs_to() -> None:
    engine = scripted([PLAIN, PLAIN, "cannot go on", PLAIN, EOS])
    engine.add_request(make_request("bad"))
    engine.add_request(make_request("good"))
    deltas = run(engine)
    [error] = [delta for delta in deltas if delta.error]
    assert (error.request_id, error.error) == ("bad", "cannot go on")
    assert (error.finish_reason, error.new_token_ids) == ("error", [])
    good = [delta for delta in deltas if delta.request_id == "good"]
    assert [delta.new_token_ids for delta in good] == [[PLAIN], [PLAIN], [EOS]]
    assert engine.stats().finished_requests == 2


def test_an_error_that_is_found_late_ends_its_request_alone() -> None:
    engine = scripted([PLAIN, PLAIN, "cannot go on", PLAIN, "again", PLAIN, EOS], overlaps=True)
    engine.add_request(make_request("bad"))
    engine.add_request(make_request("good"))
    deltas = run(engine)
    bad = [(delta.new_token_ids, delta.error) for delta in deltas if delta.request_id == "bad"]
    assert bad == [([PLAIN], None), ([], "cannot go on")]
    good = [delta.new_token_ids for delta in deltas if delta.request_id == "good"]
    assert good == [[PLAIN], [PLAIN], [PLAIN], [EOS]]
    assert engine.stats().generated_tokens == 5


def test_aborting_gives_one_last_delta_to_each_live_request(overlaps: bool) -> None:
    engine, _ = make_engine(max_running_requests=1, overlaps=overlaps)
    for name in "abc":
        engine.add_request(make_request(name, ignore_eos=True, seed=lasting_seed([5, 6, 7], 5)))
    engine.step()
    deltas = engine.abort(["a", "unknown", "c", "a"])
    assert [(delta.request_id, delta.finish_reason) for delta in deltas] == [
        ("a", "abort"),
        ("c", "abort"),
    ]
    assert engine.abort(["a"]) == []
    assert {delta.request_id for delta in run(engine)} == {"b"}


def test_the_more_important_request_starts_first() -> None:
    engine, device = make_engine(max_running_requests=1)
    for name, priority in (("low", -1), ("usual", 0), ("high", 2)):
        engine.add_request(msgspec.structs.replace(make_request(name), priority=priority))
    run(engine)
    started = [new.request_id for step in device.steps for new in step.new_requests]
    assert started == ["high", "usual", "low"]


# What deltas tell


def test_logprobs_come_with_their_tokens_if_asked_for() -> None:
    engine, _ = make_engine()
    request = make_request(logprobs=0, seed=lasting_seed([5, 6, 7], 5))
    delta = run_one(engine, request)
    tokens = [5, 6, 7, *delta.new_token_ids]
    assert delta.logprobs == [logprob_of(tokens[:n]) for n in range(4, len(tokens) + 1)]
    assert run_one(engine, make_request()).logprobs is None


def expected_prompt_logprobs(prompt: list[int]) -> list[TokenLogprob | None]:
    return [None, *(logprob_of(prompt[:n]) for n in range(2, len(prompt) + 1))]


def test_prompt_logprobs_are_gathered_over_chunks_and_sent_with_the_first_token(
    overlaps: bool,
) -> None:
    engine, _ = make_engine(step_token_budget=8, overlaps=overlaps)
    prompt = list(range(10, 45))
    seed = lasting_seed(prompt, 3)
    run_one(engine, make_request("before", prompt))  # now in the prefix cache
    engine.add_request(make_request(prompt=prompt, prompt_logprobs=0, max_tokens=3, seed=seed))
    first, *rest = run(engine)
    assert len(first.new_token_ids) == 1
    assert first.prompt_logprobs == expected_prompt_logprobs(prompt)
    assert first.num_cached_tokens == 0
    assert all(delta.prompt_logprobs is None for delta in rest)


@pytest.mark.parametrize("steps_before", [1, 2, 4, 6])
def test_a_restart_neither_repeats_nor_loses_prompt_logprobs(steps_before: int) -> None:
    engine, device = make_engine(step_token_budget=8)
    prompt = list(range(10, 35))
    seed = lasting_seed(prompt, 5)
    request = make_request(prompt=prompt, prompt_logprobs=0, ignore_eos=True, seed=seed)
    engine.add_request(request)
    deltas = []
    for _ in range(steps_before):
        deltas += engine.step()
    device.fail_next = RuntimeError("a kernel failed")
    with pytest.raises(RuntimeError):
        engine.step()
    deltas += run(engine)
    assert [delta.prompt_logprobs for delta in deltas if delta.prompt_logprobs is not None] == [
        expected_prompt_logprobs(prompt)
    ]
    assert deltas[0].prompt_logprobs is not None
    [restart] = device.steps[steps_before + 1].new_requests
    assert restart.params.prompt_logprobs == (0 if steps_before < 4 else None)  # sent with step 4
    tokens = [token for delta in deltas for token in delta.new_token_ids]
    assert tokens == solo_output(request, seed, 64)[0]


def test_cached_tokens_and_the_start_are_told_with_each_delta() -> None:
    engine, _ = make_engine()
    run_one(engine, make_request("before", [5] * 10, owner="ada"))
    before = time.time()
    seed = lasting_seed([5] * 11, 3)
    engine.add_request(make_request("ada", [5] * 11, owner="ada", seed=seed, max_tokens=3))
    time.sleep(0.01)
    added = time.time()
    deltas = run(engine)
    assert len(deltas) == 3
    assert {delta.num_cached_tokens for delta in deltas} == {8}
    [started] = {delta.scheduled_time for delta in deltas}
    assert before < added <= started <= time.time()
    assert run_one(engine, make_request("bob", [5] * 11, owner="bob")).num_cached_tokens == 0


def test_an_answer_is_found_again_as_part_of_the_next_prompt(overlaps: bool) -> None:
    engine, _ = make_engine(overlaps=overlaps)
    prompt = [5] * 3
    seed = lasting_seed(prompt, 10)
    first = run_one(engine, make_request("1", prompt, seed=seed, ignore_eos=True, max_tokens=10))
    conversation = [*prompt, *first.new_token_ids, 6, 7]
    assert run_one(engine, make_request("2", conversation)).num_cached_tokens == 12


def test_an_aborted_request_that_never_ran_was_never_scheduled() -> None:
    engine, _ = make_engine()
    engine.add_request(make_request())
    assert engine.abort(["r"]) == [TokenDelta("r", [], "abort")]


def test_requests_without_a_seed_get_different_ones() -> None:
    engine, device = make_engine()
    for name in "abc":
        engine.add_request(make_request(name, seed=None))
    engine.add_request(make_request("given", seed=-5))
    run(engine)
    assert device.seeds.pop("given") == -5
    assert len(set(device.seeds.values())) == 3
    assert all(-(2**63) <= seed < 2**63 for seed in device.seeds.values())


# The engine itself


def test_stats_tell_the_truth() -> None:
    engine, device = make_engine(num_blocks=32, block_size=4, max_running_requests=2)
    params = {"seed": lasting_seed([5] * 9, 2), "ignore_eos": True, "max_tokens": 2}
    for name in "abc":
        engine.add_request(make_request(name, [5] * 9, **params))
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.steps) == (0, 3, 0)
    engine.step()
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.steps) == (2, 1, 1)
    assert (stats.kv_blocks_total, stats.kv_blocks_free) == (32, 32 - 5)  # 9 tokens, then 7
    assert 0 < stats.last_schedule_ms < stats.last_step_ms
    run(engine)
    stats = engine.stats()
    assert (stats.running, stats.waiting) == (0, 0)
    assert stats.kv_blocks_free == 32
    assert stats.steps == len(device.steps)
    assert stats.prompt_tokens == 27
    assert stats.generated_tokens == 6
    assert stats.prefix_hit_tokens == 8
    assert stats.finished_requests == 3


def test_a_step_without_work_does_nothing() -> None:
    engine, device = make_engine()
    assert engine.step() == []
    assert device.steps == []


@pytest.mark.parametrize("fail_at", ["launch", "result"])
def test_after_a_step_that_failed_all_go_on_from_where_they_stood(
    overlaps: bool, fail_at: Literal["launch", "result"]
) -> None:
    engine, device = make_engine(overlaps=overlaps)
    device.fail_at = fail_at
    requests = [make_request(str(n), prompt=[5 + n] * 7, seed=n, ignore_eos=True) for n in range(6)]
    for request in requests:
        engine.add_request(request)
    deltas = engine.step() + engine.step()
    device.fail_next = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    deltas += run(engine)
    for request in requests:
        mine = [delta for delta in deltas if delta.request_id == request.request_id]
        tokens = [token for delta in mine for token in delta.new_token_ids]
        assert tokens == solo_output(request, request.params.seed or 0, 64)[0]


def test_a_step_runs_while_the_last_ones_tokens_are_taken_in() -> None:
    engine, device = make_engine(overlaps=True)
    for n in range(3):
        seed = lasting_seed([5 + n] * 7, 20)
        engine.add_request(make_request(str(n), [5 + n] * 7, seed=seed, ignore_eos=True))
    for n in range(10):
        engine.step()
        assert len(device.steps) == n + 2
    assert device.num_early == 10
    engine.abort(["0", "1", "2"])
    assert engine.stats().kv_blocks_free == engine.stats().kv_blocks_total
    assert engine.has_work(), "the step that nobody wants is still to be waited for"
    assert engine.step() == []
    assert not engine.has_work()


@pytest.mark.parametrize(
    "params",
    [{"presence_penalty": 1.0}, {"frequency_penalty": 0.5}, {"repetition_penalty": 1.2}],
)
def test_a_token_that_depends_on_the_last_one_is_not_sampled_before_that_is_known(
    params: dict[str, Any],
) -> None:
    engine, device = make_engine(overlaps=True)
    request = make_request("a", seed=lasting_seed([5, 6, 7], 9), ignore_eos=True, **params)
    engine.add_request(request)
    for n in range(1, 9):
        assert len(engine.step()) == 1
        assert len(device.steps) == n + 1, "it is launched as soon as that is known"
    assert device.num_early == 0


def test_a_result_that_is_not_the_steps_is_an_error_of_the_engine() -> None:
    engine, device = make_engine()
    engine.add_request(make_request())
    device.launch = lambda _: Answer(StepResult([], []))  # type: ignore[method-assign, assignment]
    with pytest.raises(EngineError, match="1 rows came back with 0 tokens"):
        engine.step()


def test_closing_closes_the_executor() -> None:
    engine, device = make_engine()
    engine.close()
    assert device.closed
