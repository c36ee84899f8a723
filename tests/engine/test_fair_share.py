"""Owners who share an engine: whose turn it is, who gives way, and that nobody waits for ever."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .owners import BLOCK, Shared

# Whose turn it is


def test_who_was_served_least_starts_first_and_within_an_owner_who_came_first() -> None:
    shared = Shared(rows=1, budget=4)
    for _ in range(3):
        shared.add("ada", output=2)
    shared.step()
    for owner in ("bob", "ada", "bob", "cleo", "cleo"):
        shared.add(owner, output=2)
    order = [name for step in shared.steps(16) for name in step][1::2]
    assert order == ["bob 0", "cleo 0", "ada 1", "bob 1", "cleo 1", "ada 2", "ada 3"]


def test_a_prompt_of_an_owner_served_less_goes_before_one_that_is_under_way() -> None:
    shared = Shared(budget=16)
    shared.add("ada", 100)
    shared.add("ada", 100)
    assert shared.steps(2) == [{"ada 0": 16}, {"ada 0": 16}]
    shared.add("bob", 10)
    assert shared.steps(2) == [{"bob 0": 10, "ada 0": 6}, {"bob 0": 1, "ada 0": 15}]


def test_among_equals_a_step_is_filled_with_the_prompts_of_all() -> None:
    shared = Shared(budget=32, rows=8)
    for owner in ("ada", "bob", "cleo", "dan"):
        shared.add(owner, 8)
    assert shared.step() == {"ada 0": 8, "bob 0": 8, "cleo 0": 8, "dan 0": 8}


def test_two_long_texts_are_computed_side_by_side() -> None:
    shared = Shared(budget=16)
    for owner in ("ada", "bob"):
        shared.add(owner, 160)
    for _ in range(12):
        shared.step()
        assert abs(shared.computed["ada"] - shared.computed["bob"]) <= 16


def test_who_is_within_its_share_has_a_head_start() -> None:
    shared = Shared(rows=4, budget=32)
    shared.add("ada", output=100)
    for _ in range(20):
        shared.add("hog", output=6)
    shared.steps(8)
    first = shared.add("ada", 20, output=1)
    shared.step()
    assert first.share.served > shared.live[1].share.served + 4
    shared.add("ada", 4)
    assert "ada 2" in shared.step()


@pytest.mark.parametrize("weight", [1.0, 2.0, 5.0])
def test_tokens_are_shared_by_weight(weight: float) -> None:
    shared = Shared(rows=12, budget=32)
    for _ in range(400):
        shared.add("ada", 6, output=10)
        shared.add("bob", 6, output=10, weight=weight)
    shared.steps(300)
    assert {request.owner for request in shared.live} == {"ada", "bob"}
    assert shared.computed["bob"] / shared.computed["ada"] == pytest.approx(weight, rel=0.1)


def test_what_was_not_used_is_not_saved() -> None:
    shared = Shared(rows=4, budget=32)
    for _ in range(300):
        shared.add("ada", output=5)
    shared.add("bob", output=200)  # one row, and wants no more
    shared.steps(150)
    assert shared.computed["ada"] > 2.5 * shared.computed["bob"]
    before = shared.computed.copy()
    for _ in range(100):
        shared.add("bob", output=5)
    shared.steps(60)
    gained = shared.computed - before
    assert gained["ada"] == pytest.approx(gained["bob"], rel=0.25)


def test_who_comes_back_owes_nothing() -> None:
    shared = Shared(rows=4, budget=32)
    for _ in range(8):
        shared.add("ada", output=20)
    shared.steps(1)
    shared.add("bob", output=400)
    shared.run_out(1000)
    for _ in range(100):
        shared.add("bob", output=5)
        shared.add("ada", output=5)
    before = shared.computed.copy()
    shared.steps(100)
    gained = shared.computed - before
    assert gained["ada"] == pytest.approx(gained["bob"], rel=0.1)


def test_cached_prompts_cost_nothing() -> None:
    """So who asks the same again and again is not behind for it."""
    shared = Shared(rows=1, budget=64)
    shared.add("ada", 41, output=1, token_id=1)
    shared.step()
    for _ in range(8):
        shared.add("ada", 41, output=1, token_id=1)  # one token of it is new
        shared.add("bob", 8, output=1)
    names = [name for step in shared.steps(10) for name in step]
    assert names.count("ada 1") == 1
    assert sum(name.startswith("ada") for name in names) >= 7


def test_what_is_computed_again_costs_nothing() -> None:
    """Whoever was preempted for others would pay for it twice."""
    shared = Shared(rows=4, budget=64, prefix_caching=False)
    ada, bob = shared.add("ada", 30), shared.add("bob", 30)
    shared.step()
    shared.scheduler.preempt_all()
    shared.steps(2)
    assert shared.computed == {"ada": 62, "bob": 62}
    assert (ada.share.served, bob.share.served) == (32, 32)


def test_priority_is_above_fairness() -> None:
    shared = Shared(rows=1)
    for _ in range(3):
        shared.add("ada", output=1, priority=1)
    shared.add("bob", output=1)
    order = [name for step in shared.steps(4) for name in step]
    assert order == ["ada 0", "ada 1", "ada 2", "bob 0"]


def test_who_had_begun_goes_on_before_others_of_owners_within_their_share_begin() -> None:
    shared = Shared(rows=3, blocks=9, budget=64)
    for owner in "abcd":
        shared.add(owner, 7, output=22)
    seen: list[str] = []
    while any(request.owner == "d" for request in shared.live):
        seen += [name for name in shared.step() if name not in seen[-3:]]
    assert shared.preemptions >= 2
    assert seen.index("d 0") > max(len(seen) - 1 - seen[::-1].index(f"{owner} 0") for owner in "b")


# The first token of others


def hog(shared: Shared, count: int, num_prompt: int = 4, *, output: int = 50) -> None:
    """One owner with many requests, which take all rows or blocks in a few steps."""
    for _ in range(count):
        shared.add("hog", num_prompt, output=output)
    shared.steps(12)


def test_a_newcomer_has_a_row_at_once_and_the_youngest_gives_way() -> None:
    shared = Shared(rows=4)
    hog(shared, 100)
    assert shared.running == {"hog": 4}
    shared.add("ada")
    step = shared.step()
    assert step == {"hog 0": 1, "hog 1": 1, "hog 2": 1, "ada 0": 4}
    assert shared.preemptions == 1


def test_no_more_is_taken_than_leaves_both_the_same() -> None:
    shared = Shared(rows=8)
    hog(shared, 100)
    for _ in range(4):
        shared.add("ada")
    shared.steps(3)
    assert shared.running == {"hog": 4, "ada": 4}
    shared.add("ada")  # more than its share, so it waits as all do
    shared.steps(3)
    assert shared.running == {"hog": 4, "ada": 4}
    assert shared.preemptions == 4


def test_two_with_many_requests_each_have_something_at_once_and_half_in_time() -> None:
    shared = Shared(rows=8, budget=16)
    hog(shared, 100, output=1000)
    for _ in range(100):
        shared.add("ada", output=1000)
    shared.step()
    assert shared.running == {"hog": 7, "ada": 1}
    shared.steps(40)
    assert shared.running == {"hog": 4, "ada": 4}
    assert shared.preemptions == 4
    shared.steps(200)
    assert shared.preemptions == 4, "and there it stays"


def test_nobody_within_its_share_gives_way() -> None:
    shared = Shared(rows=4)
    for owner in ("ada", "bob", "cleo", "dan"):
        shared.add(owner)
    shared.steps(3)
    shared.add("eve")
    shared.steps(10)
    assert shared.preemptions == 0
    assert "eve" not in shared.running


def test_a_newcomer_has_blocks_at_once() -> None:
    shared = Shared(rows=50, blocks=30, budget=32)
    hog(shared, 100, 9, output=60)
    assert shared.cache.num_free < 8
    ada = shared.add("ada", 20)
    assert shared.step()["ada 0"] == 20
    assert ada.has_displaced
    assert shared.running["hog"] >= 1


def test_more_blocks_than_half_are_waited_for() -> None:
    shared = Shared(rows=50, blocks=30, budget=100)
    hog(shared, 100, 9, output=30)
    ada = shared.add("ada", 80)
    assert ada.share.is_within
    for _ in range(200):
        if "ada 0" in shared.step():
            break
    assert ada.row >= 0
    assert not ada.has_displaced


def test_shared_blocks_of_a_hog_are_not_taken_for_its_own() -> None:
    shared = Shared(rows=50, blocks=40, budget=64)
    shared.add("hog", 81, output=1, token_id=1)
    shared.steps(2)
    for _ in range(30):
        shared.add("hog", 81, output=40, token_id=1)  # 20 blocks all have, and few each
    shared.steps(3)
    assert shared.running["hog"] > 5
    shared.add("ada", 12, output=10)
    assert "ada 0" in shared.step()


def test_a_growing_request_takes_a_block_from_who_has_more_than_its_share() -> None:
    shared = Shared(rows=8, blocks=32, budget=64)
    for _ in range(5):
        shared.add("hog", 9, output=60)
    shared.steps(6)
    ada = shared.add("ada", 4, output=100)
    for number in range(40):
        assert "ada 0" in shared.step(), number
    assert shared.preemptions > 1
    assert len(ada.token_ids) == 44


def test_higher_priority_never_gives_way() -> None:
    shared = Shared(rows=4)
    for _ in range(4):
        shared.add("hog", priority=1)
    shared.steps(4)
    ada = shared.add("ada")
    shared.steps(10)
    assert not shared.live[0].share.is_within
    assert ada.row < 0
    assert shared.preemptions == 0


def test_requests_of_one_owner_never_give_way_to_each_other() -> None:
    shared = Shared(rows=4)
    for _ in range(3):
        shared.add("ada", priority=-1)
    shared.add("bob", priority=-1)
    shared.steps(3)
    important = shared.add("ada", priority=1)
    shared.steps(5)
    assert not shared.live[0].share.is_within
    assert important.row < 0
    assert shared.preemptions == 0


def test_where_rows_come_free_by_themselves_nobody_gives_way() -> None:
    """Two with many requests of different sizes, whose shares go up and down by a prompt."""
    shared = Shared(rows=4, budget=16, overlaps=True)
    for _ in range(800):
        shared.add("ada", 7, output=6)
        for _ in range(3):
            shared.add("bob", 4, output=1, weight=3.0)
    shared.steps(400)
    assert shared.preemptions == 0


def test_beside_a_newcomers_prompt_no_prompt_of_a_hog_is_computed() -> None:
    shared = Shared(rows=8, budget=64)
    for _ in range(100):
        shared.add("hog", 30, output=3)
    shared.steps(7)
    shared.add("ada", 10)
    step = shared.step()
    assert step["ada 0"] == 10
    assert all(count == 1 for name, count in step.items() if name != "ada 0")


def test_a_newcomer_has_its_part_of_a_step_full_of_decodes() -> None:
    shared = Shared(rows=16, budget=16)
    hog(shared, 100, 1, output=1000)
    shared.steps(10)
    shared.add("ada", 8)
    step = shared.step()
    assert step["ada 0"] == 8
    assert len(step) == 1 + 8
    after = shared.step()
    assert len(after) == 16, "all go on"


def test_who_stands_by_while_others_prompts_are_computed_is_not_forgotten() -> None:
    """A user who sends prompt after prompt, each of a whole step, has half of the tokens."""
    shared = Shared(rows=8, budget=16)
    for _ in range(400):
        shared.add("hog", 8, output=4)
    shared.steps(8)
    before = shared.computed.copy()
    for _ in range(200):
        if not any(request.owner == "ada" for request in shared.live):
            shared.add("ada", 16, output=1)
        shared.step()
    gained = shared.computed - before
    assert gained["hog"] > 0.8 * gained["ada"]


def test_prompts_of_others_do_not_stop_an_owner_who_is_behind() -> None:
    shared = Shared(rows=7, budget=8)
    mine = [shared.add("ada", 6, output=6) for _ in range(2)]
    for number in range(200):
        if shared.scheduler.num_waiting < 20:
            shared.add(f"stranger {number}", 8, output=1)
        shared.step()
    assert all(request.ended for request in mine)


# Whatever comes

arrivals = st.tuples(
    st.sampled_from("abc"),  # owner
    st.integers(1, 30),  # prompt
    st.integers(1, 12),  # output
    st.sampled_from([0.5, 1.0, 4.0]),  # weight
    st.sampled_from([0, 0, 0, 1]),  # priority
    st.integers(0, 3),  # steps until the next
)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 6),
    budget=st.integers(1, 24),
    blocks=st.integers(11, 60),
    overlaps=st.booleans(),
    coming=st.lists(arrivals, max_size=25),
)
def test_every_request_ends_and_no_block_is_lost(
    rows: int,
    budget: int,
    blocks: int,
    overlaps: bool,
    coming: list[tuple[str, int, int, float, int, int]],
) -> None:
    shared = Shared(rows=rows, budget=budget, blocks=blocks, overlaps=overlaps)
    for owner, num_prompt, output, weight, priority, pause in coming:
        shared.add(owner, num_prompt, output=output, weight=weight, priority=priority)
        shared.steps(pause)
    tokens = sum(request.max_len for request in shared.live)
    shared.run_out(20 + 8 * tokens)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(2, 8),
    budget=st.integers(8, 32),
    overlaps=st.booleans(),
    many=st.integers(2, 12),
    each_step=st.integers(1, 3),
    others=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 6)), min_size=1, max_size=8),
)
def test_nobody_starves_however_many_new_owners_come(
    rows: int,
    budget: int,
    overlaps: bool,
    many: int,
    each_step: int,
    others: list[tuple[int, int]],
) -> None:
    """Strangers come in every step, each once, and more than can be served; 20 may wait."""
    shared = Shared(rows=rows, budget=budget, overlaps=overlaps)
    mine = [shared.add("ada", 6, output=6) for _ in range(many)]
    owners = rows + 21
    limit = 50 + 4 * owners * sum(request.max_len for request in mine) // rows
    for number in range(limit):
        if all(request.ended for request in mine):
            return
        for k in range(each_step):
            if shared.scheduler.num_waiting < 20:
                num_prompt, output = others[(number + k) % len(others)]
                shared.add(f"stranger {number}.{k}", num_prompt, output=output)
        shared.step()
    raise AssertionError(f"not ended after {limit} steps")


@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(4, 12),
    budget=st.integers(16, 48),
    overlaps=st.booleans(),
    weight=st.sampled_from([1.0, 2.0, 3.0]),
    shapes=st.tuples(*[st.tuples(st.integers(1, 20), st.integers(1, 12))] * 2),
)
def test_shares_stay_within_a_bound_of_the_weights(
    rows: int,
    budget: int,
    overlaps: bool,
    weight: float,
    shapes: tuple[tuple[int, int], tuple[int, int]],
) -> None:
    """Two owners who always have more to do, in whatever sizes: however long they do, what one is
    ahead of the other by weight is no more than two steps and what two times the rows hold."""
    shared = Shared(rows=rows, budget=budget, overlaps=overlaps)
    weights = {"ada": 1.0, "bob": weight}
    bound = 2 * (budget + rows * max(map(sum, shapes)))
    for _ in range(200):
        live = Counter(request.owner for request in shared.live)
        for owner, (num_prompt, output) in zip(weights, shapes, strict=True):
            for _ in range(3 * rows - live[owner]):
                shared.add(owner, num_prompt, output=output, weight=weights[owner])
        shared.step()
        ahead = shared.computed["ada"] - shared.computed["bob"] / weight
        assert abs(ahead) <= bound


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(2, 8),
    overlaps=st.booleans(),
    coming=st.lists(st.sampled_from("aaaabcd"), max_size=60),
    output=st.integers(1, 30),
)
def test_no_request_costs_others_more_than_one_row(
    rows: int, overlaps: bool, coming: list[str], output: int
) -> None:
    shared = Shared(rows=rows, budget=16, overlaps=overlaps)
    for number, owner in enumerate(coming, 1):
        shared.add(owner, 1 + number % BLOCK, output=output)
        shared.step()
        assert shared.preemptions <= number
    shared.run_out(100 + 60 * len(coming) * (output + BLOCK))
    assert shared.preemptions <= len(coming)
