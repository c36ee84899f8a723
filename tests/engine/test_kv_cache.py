"""Blocks: given, shared, found again, taken back."""

from __future__ import annotations

import pytest

from dropless.engine.kv_cache import BlockPool, KVCache, chain_hash, root_hash
from dropless.engine.request import Request
from dropless.engine.sampling_params import SamplingParams
from dropless.errors import EngineError

BLOCK = 4


def make_request(
    token_ids: list[int], *, owner: str = "", prompt_logprobs: int | None = None
) -> Request:
    return Request(
        request_id="",
        owner=owner,
        order=(0, 0),
        params=SamplingParams(max_tokens=8, prompt_logprobs=prompt_logprobs),
        seed=0,
        token_ids=list(token_ids),
        num_prompt_tokens=len(token_ids),
        max_len=len(token_ids) + 8,
        end_token_ids=frozenset(),
    )


def compute(cache: KVCache, request: Request) -> Request:
    """Start a request and compute all its tokens."""
    assert cache.start(request, reserve=0)
    count = len(request.token_ids) - request.num_computed
    assert cache.grow(request, count) == count
    request.num_computed += count
    cache.register(request, request.num_computed)
    return request


def num_hits(cache: KVCache, request: Request) -> int:
    """How many tokens of a new request are found; it holds nothing afterwards."""
    assert cache.start(request, reserve=0)
    cache.release(request)
    return request.num_computed


@pytest.fixture
def cache() -> KVCache:
    return KVCache(8, BLOCK, prefix_caching=True)


def test_hashes_tell_owners_tokens_and_places_apart() -> None:
    roots = [root_hash(owner) for owner in ("", "a", "b")]
    tokens = ([1, 2, 3, 4], [1, 2, 3, 5])
    firsts = [chain_hash(root, block) for root in roots for block in tokens]
    seconds = [chain_hash(first, block) for first in firsts for block in tokens]
    everything = roots + firsts + seconds
    assert len(set(everything)) == len(everything)
    assert chain_hash(roots[0], tokens[0]) == firsts[0]


def test_a_prefix_is_found_again_by_its_owner_only(cache: KVCache) -> None:
    cache.release(compute(cache, make_request([*range(10)], owner="ada")))
    assert num_hits(cache, make_request([*range(10)], owner="ada")) == 8
    assert num_hits(cache, make_request([*range(7), 0], owner="ada")) == 4
    assert num_hits(cache, make_request([9, *range(9)], owner="ada")) == 0
    assert num_hits(cache, make_request([*range(10)], owner="bob")) == 0
    cache.check_all_free()


def test_a_block_is_found_only_behind_the_blocks_it_was_computed_behind(cache: KVCache) -> None:
    head, tail = [*range(4)], [*range(8, 12)]
    first = compute(cache, make_request([*head, 20, 21, 22, 23, *tail]))
    second = compute(cache, make_request([*head, 30, 31, 32, 33, *tail]))
    third = make_request([*second.token_ids, 0])
    assert cache.start(third, reserve=0)
    assert third.blocks == second.blocks
    assert third.blocks[2] != first.blocks[2]


def test_one_token_of_a_known_prompt_is_left_to_compute(cache: KVCache) -> None:
    cache.release(compute(cache, make_request([*range(8)])))
    assert num_hits(cache, make_request([*range(8)])) == 4
    assert num_hits(cache, make_request([*range(9)])) == 8


def test_prompt_logprobs_need_every_position_computed(cache: KVCache) -> None:
    cache.release(compute(cache, make_request([*range(10)])))
    request = make_request([*range(10)], prompt_logprobs=0)
    assert num_hits(cache, request) == 0
    request.prompt_logprobs = None  # sent
    assert num_hits(cache, request) == 8


def test_without_prefix_caching_nothing_is_found() -> None:
    cache = KVCache(8, BLOCK, prefix_caching=False)
    cache.release(compute(cache, make_request([*range(10)])))
    assert num_hits(cache, make_request([*range(10)])) == 0


def test_blocks_are_known_only_once_they_are_computed(cache: KVCache) -> None:
    first = make_request([*range(10)])
    assert cache.start(first, reserve=0)
    assert cache.grow(first, 10) == 10
    assert num_hits(cache, make_request([*range(10)])) == 0
    first.num_computed = 6
    cache.register(first, first.num_computed)
    assert num_hits(cache, make_request([*range(10)])) == 4


def test_a_shared_block_is_free_when_the_last_holder_is_gone(cache: KVCache) -> None:
    first = compute(cache, make_request([*range(10)]))
    second = compute(cache, make_request([*range(9), 0]))
    assert first.blocks[:2] == second.blocks[:2]
    assert first.blocks[2] != second.blocks[2]
    assert cache.num_free == 8 - 4
    cache.release(first)
    assert cache.num_free == 8 - 3
    cache.release(second)
    assert cache.num_free == 8
    cache.check_all_free()


def test_equal_blocks_computed_side_by_side_are_known_once(cache: KVCache) -> None:
    twins = [make_request([*range(8)]) for _ in range(2)]
    for twin in twins:
        assert cache.start(twin, reserve=0)
        assert cache.grow(twin, 8) == 8
    for twin in twins:
        twin.num_computed = 8
        cache.register(twin, twin.num_computed)
    third = make_request([*range(9)])
    assert cache.start(third, reserve=0)
    assert third.blocks == twins[0].blocks
    for request in (*twins, third):
        cache.release(request)
    assert num_hits(cache, make_request([*range(9)])) == 8
    cache.check_all_free()


def test_empty_blocks_go_first_then_those_free_the_longest(cache: KVCache) -> None:
    old, young = [*range(8)], [*range(20, 28)]
    cache.release(compute(cache, make_request(old)))
    cache.release(compute(cache, make_request(young)))
    filler = make_request([50] * 16)  # all that is empty
    assert cache.start(filler, reserve=0)
    assert cache.grow(filler, 16) == 16
    assert num_hits(cache, make_request([*old, 0])) == 8  # touched: now free for a shorter time
    assert cache.grow(filler, 20) == 20
    assert num_hits(cache, make_request([*young, 0])) == 4  # its last block went first
    assert num_hits(cache, make_request([*old, 0])) == 8
    assert cache.grow(filler, 24) == 24
    assert num_hits(cache, make_request(young[:5])) == 0
    assert num_hits(cache, make_request(old[:5])) == 4


def test_a_block_in_use_is_never_given_away(cache: KVCache) -> None:
    holder = compute(cache, make_request([*range(10)]))
    other = make_request([50] * 40)
    assert not cache.start(other, reserve=0)
    other.token_ids = other.token_ids[:20]
    assert cache.start(other, reserve=0)
    assert cache.grow(other, 40) == 20
    assert not set(other.blocks) & set(holder.blocks)
    assert cache.num_free == 0
    assert cache.grow(other, 21) == 20


def test_a_request_starts_only_if_the_reserve_stays(cache: KVCache) -> None:
    request = make_request([*range(17)])  # five blocks
    assert not cache.start(request, reserve=4)
    assert request.blocks == []
    assert cache.start(request, reserve=3)


def test_free_blocks_of_its_own_prefix_count_as_taken(cache: KVCache) -> None:
    cache.release(compute(cache, make_request([*range(16)])))
    holder = compute(cache, make_request([50] * 16))
    request = make_request([*range(17)])  # four known blocks, all that is free, and one more
    assert not cache.start(request, reserve=0)
    assert cache.num_free == 4
    cache.release(holder)
    assert cache.start(request, reserve=3)
    assert request.num_computed == 16


def test_new_blocks_are_those_that_the_runner_has_not_seen(cache: KVCache) -> None:
    cache.release(compute(cache, make_request([*range(8)])))
    request = make_request([*range(9)])
    assert cache.start(request, reserve=0)
    assert cache.grow(request, 1) == 1
    assert request.new_blocks == request.blocks
    assert len(request.blocks) == 3


def test_a_lost_block_is_noticed() -> None:
    pool = BlockPool(4)
    blocks = pool.take(2)
    pool.give_back(blocks[:1])
    with pytest.raises(EngineError, match="of 4 blocks 1 are referenced, 3 empty and 0 cached"):
        pool.check_all_free()
    pool.give_back(blocks[1:])
    pool.check_all_free()


def test_a_block_freed_twice_is_noticed() -> None:
    pool = BlockPool(4)
    [block] = pool.take(1)
    pool.give_back([block])
    pool.give_back([block])
    with pytest.raises(EngineError, match="inconsistent"):
        pool.check_all_free()
