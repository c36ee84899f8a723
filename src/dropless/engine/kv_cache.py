"""Which request holds which cache block, and which free blocks still hold a known prefix."""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Sequence

from dropless.engine.request import Request
from dropless.errors import EngineError

_DIGEST_SIZE = 32  # collisions are out of reach, so that equal hashes mean equal owner and tokens


def root_hash(owner: str) -> bytes:
    """What the first block's hash chains to. Owners have different ones, so that nobody can learn
    from a fast answer what somebody else has asked."""
    return hashlib.blake2b(owner.encode(), digest_size=_DIGEST_SIZE, person=b"owner").digest()


def chain_hash(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """The hash of a full block: of its tokens and, through `parent`, of all before them."""
    tokens = struct.pack(f"{len(token_ids)}i", *token_ids)
    return hashlib.blake2b(parent + tokens, digest_size=_DIGEST_SIZE).digest()


class BlockPool:
    """Numbered blocks with reference counts.

    A block that nobody refers to is free. It may still be known by the hash of its content, until
    it is taken for something else: blocks without known content go first, then those that have
    been free the longest.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._references = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._by_hash: dict[bytes, int] = {}
        self._empty = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()  # free longest stands first

    @property
    def num_free(self) -> int:
        return len(self._empty) + len(self._cached)

    def is_free(self, block: int) -> bool:
        return self._references[block] == 0

    def num_unshared(self, blocks: Sequence[int]) -> int:
        """How many of these would be free with one reference less."""
        return sum(self._references[block] == 1 for block in blocks)

    def find(self, block_hash: bytes) -> int | None:
        """The block that is known by this hash, free or not."""
        return self._by_hash.get(block_hash)

    def take(self, count: int) -> list[int]:
        """`count` free blocks, of which there must be as many, with one reference each."""
        blocks = []
        for _ in range(count):
            block = self._empty.pop() if self._empty else self._evict()
            self._references[block] = 1
            blocks.append(block)
        return blocks

    def share(self, blocks: Sequence[int]) -> None:
        """One more reference to each of these known blocks."""
        for block in blocks:
            if self._references[block] == 0:
                del self._cached[block]
            self._references[block] += 1

    def register(self, block: int, block_hash: bytes) -> None:
        """Make the content of a referenced block known, unless another block has the same."""
        if self._by_hash.setdefault(block_hash, block) == block:
            self._hashes[block] = block_hash

    def give_back(self, blocks: Sequence[int]) -> None:
        """One reference less to each of a sequence's blocks. Its last ones are reused first,
        because the first ones are of no use to a prefix that lacks them."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                if self._hashes[block] is None:
                    self._empty.append(block)
                else:
                    self._cached[block] = None

    def check_all_free(self) -> None:
        """Raises EngineError if a block is referenced, lost or free twice."""
        referenced = self.num_blocks - self._references.count(0)
        if referenced or self.num_free != self.num_blocks:
            raise EngineError(
                f"the KV cache is inconsistent: no request is left, but of {self.num_blocks} "
                f"blocks {referenced} are referenced, {len(self._empty)} empty and "
                f"{len(self._cached)} cached; restart the engine and report this"
            )

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        block_hash = self._hashes[block]
        if block_hash is not None:
            del self._by_hash[block_hash]
            self._hashes[block] = None
        return block


class KVCache:
    """Cache blocks of requests: `block_size` tokens each, full ones shared between requests of the
    same owner whose tokens agree up to there. A shared block is never written again."""

    def __init__(self, num_blocks: int, block_size: int, *, prefix_caching: bool) -> None:
        self.block_size = block_size
        self._pool = BlockPool(num_blocks)
        self._prefix_caching = prefix_caching

    @property
    def num_blocks(self) -> int:
        return self._pool.num_blocks

    @property
    def num_free(self) -> int:
        """Blocks that no request holds."""
        return self._pool.num_free

    def num_known(self, request: Request) -> int:
        """How many of its tokens a request that holds nothing would find computed."""
        return len(self._known_prefix(request)) * self.block_size

    def num_missing(self, request: Request) -> int:
        """Blocks that it lacks until all its tokens are computed."""
        return max(0, -(-len(request.token_ids) // self.block_size) - len(request.blocks))

    def num_own(self, request: Request) -> int:
        """Blocks that would be free without it."""
        return self._pool.num_unshared(request.blocks)

    def num_needed(self, request: Request) -> int:
        """Free blocks that a request without any takes until all its tokens are computed."""
        return self._num_taken(request, self._known_prefix(request))

    def start(self, request: Request, reserve: int) -> bool:
        """Give a request that holds nothing the blocks of its longest known prefix, which count as
        computed. Refused, and nothing changed, if fewer than `reserve` blocks would be left free
        when all its tokens are computed."""
        known = self._known_prefix(request)
        if self._pool.num_free - self._num_taken(request, known) < reserve:
            return False
        self._pool.share(known)
        request.blocks = known
        request.new_blocks = list(known)
        request.num_registered = len(known)
        request.num_computed = len(known) * self.block_size
        return True

    def grow(self, request: Request, num_tokens: int) -> int:
        """Make room for up to `num_tokens` more computed tokens, as far as there are free blocks.
        Returns for how many there is room now."""
        wanted = request.num_computed + num_tokens
        missing = -(-wanted // self.block_size) - len(request.blocks)
        if missing > 0:
            blocks = self._pool.take(min(missing, self._pool.num_free))
            request.blocks += blocks
            request.new_blocks += blocks
        return min(num_tokens, len(request.blocks) * self.block_size - request.num_computed)

    def register(self, request: Request, num_computed: int) -> None:
        """Offer the blocks that its first `num_computed` tokens fill to later requests."""
        if not self._prefix_caching:
            return
        for i in range(request.num_registered, num_computed // self.block_size):
            self._pool.register(request.blocks[i], self._hash(request, i))
            request.num_registered = i + 1

    def release(self, request: Request) -> None:
        """Take all blocks back."""
        self._pool.give_back(request.blocks)
        request.blocks = []
        request.new_blocks = []

    def check_all_free(self) -> None:
        """Raises EngineError if a block is held though no request is left, or lost."""
        self._pool.check_all_free()

    def _num_taken(self, request: Request, known: Sequence[int]) -> int:
        """Free blocks taken with this known prefix: some of it is free, and the rest is new."""
        to_compute = -(-len(request.token_ids) // self.block_size) - len(known)
        return sum(map(self._pool.is_free, known)) + to_compute

    def _known_prefix(self, request: Request) -> list[int]:
        """Known blocks from the start on; the last token is left to compute, for its logits."""
        blocks: list[int] = []
        if not self._prefix_caching or not request.reuses_prefix:
            return blocks
        for i in range((len(request.token_ids) - 1) // self.block_size):
            block = self._pool.find(self._hash(request, i))
            if block is None:
                break
            blocks.append(block)
        return blocks

    def _hash(self, request: Request, i: int) -> bytes:
        """The hash of block i, whose tokens are all there; those before it were asked for."""
        hashes = request.block_hashes
        if i == len(hashes):
            parent = hashes[-1] if hashes else root_hash(request.owner)
            start = i * self.block_size
            hashes.append(chain_hash(parent, request.token_ids[start : start + self.block_size]))
        return hashes[i]
