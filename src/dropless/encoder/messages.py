"""The typed messages between the HTTP process and the encoder process.

They travel over one socket pair, each as one msgpack frame behind its length. Every message to the
encoder has a number of its own and gets exactly one reply, in any order.
"""

from __future__ import annotations

import struct

import msgspec

HEADER = struct.Struct("!i")  # as multiprocessing.connection writes it


class Needs(msgspec.Struct, frozen=True):
    """What a process must have loaded before it answers: the embedding model (for embeddings,
    safety and topics), recognizers of personal data, the language model that names are recognized
    with, and the scorer of prompt injections."""

    embeddings: bool = False
    pii: bool = False
    names: bool = False
    injection: bool = False

    def also(self, other: Needs) -> Needs:
        return Needs(
            self.embeddings or other.embeddings,
            self.pii or other.pii,
            self.names or other.names,
            self.injection or other.injection,
        )

    def cover(self, other: Needs) -> bool:
        return self.also(other) == self


class Prepare(msgspec.Struct, frozen=True, tag="prepare"):
    number: int
    needs: Needs
    model_folder: str | None  # of the embedding model


class Embed(msgspec.Struct, frozen=True, tag="embed"):
    """`token_ids` of one text, with the model's begin and end tokens."""

    number: int
    token_ids: list[int]


class Judge(msgspec.Struct, frozen=True, tag="judge"):
    """One piece of text. What it says before character `start` was judged already and is there as
    context. `entities` are the kinds of personal data to find, `topics` the allowed topics."""

    number: int
    text: str
    start: int = 0
    safety: bool = False
    entities: tuple[str, ...] = ()
    topics: tuple[str, ...] = ()
    injection: bool = False


ToEncoder = Prepare | Embed | Judge


class Prepared(msgspec.Struct, frozen=True, tag="prepared"):
    number: int


class Embedded(msgspec.Struct, frozen=True, tag="embedded"):
    """`vector` is little-endian float32, of length 1."""

    number: int
    vector: bytes


class Entity(msgspec.Struct, frozen=True, array_like=True):
    """Personal data of a kind, from character `start` to before `end`."""

    start: int
    end: int
    kind: str


class Verdict(msgspec.Struct, frozen=True, tag="verdict"):
    """`scores` are how sure each safety category is, 0 to 1, empty if not asked for; those of
    `unsafe` are over their threshold. `entities` are those that reach beyond the context, in order
    and apart from each other. `topic` is the similarity to the nearest allowed topic, -1 to 1,
    None if none were given. `injection` is how much it reads like a prompt injection, 0 to 1, None
    if not asked for."""

    number: int
    scores: dict[str, float]
    unsafe: list[str]
    entities: list[Entity]
    topic: float | None
    injection: float | None = None


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    number: int
    message: str


FromEncoder = Prepared | Embedded | Verdict | Failed
