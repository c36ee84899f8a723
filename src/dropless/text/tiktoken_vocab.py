"""DBRX's tokenizer: GPT-4's cl100k ranks from a `*.tiktoken` file, control tokens from JSON."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tiktoken

from dropless.errors import CheckpointError
from dropless.text.vocabulary import Vocabulary

# How cl100k cuts a text into words. Possessive quantifiers keep it linear on long runs.
_CL100K_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)


def load_tiktoken_vocabulary(
    folder: Path,
    config: Mapping[str, Any],
    control_tokens: dict[str, int],
    special_texts: dict[str, str],
    eos_token_ids: tuple[int, ...],
) -> Vocabulary:
    """The tokenizer of a folder whose tokenizer_config.json (`config`) names GPT-4's.

    Ids between the ranks and the control tokens, and beyond them, have no token.

    Raises:
        CheckpointError: the ranks are missing, damaged, or of another encoding.
    """
    name = config.get("encoding_name") or config.get("model_name")
    if name not in ("cl100k_base", "gpt-4"):
        raise CheckpointError(
            f"{folder}: tiktoken encoding {name!r} is not supported; supported is cl100k_base"
        )
    ranks = _read_ranks(folder)
    taken = {text: i for text, i in control_tokens.items() if i < len(ranks)}
    if taken:
        raise CheckpointError(
            f"{folder}: control tokens {taken} have ids of ordinary tokens; "
            "the ranks file does not belong to this tokenizer_config.json"
        )
    encoding = tiktoken.Encoding(
        "cl100k_base", pat_str=_CL100K_PATTERN, mergeable_ranks=ranks, special_tokens={}
    )
    pieces = [b""] * (max([len(ranks) - 1, *control_tokens.values()]) + 1)
    for piece, rank in ranks.items():
        pieces[rank] = piece
    bos = control_tokens.get(special_texts.get("bos_token", ""))
    return Vocabulary(
        pieces=pieces,
        control_tokens=control_tokens,
        encode=encoding.encode_ordinary,
        encode_after_control=encoding.encode_ordinary,
        bos_token_id=bos,
        eos_token_ids=eos_token_ids,
        add_bos=bool(config.get("add_bos_token")) and bos is not None,
        leading_space=False,
        chat_template=config.get("chat_template"),
        special_texts=special_texts,
    )


def _read_ranks(folder: Path) -> dict[bytes, int]:
    files = sorted(folder.glob("*.tiktoken"))
    if len(files) != 1:
        raise CheckpointError(
            f"{folder} has {len(files)} *.tiktoken files; put cl100k_base.tiktoken (from the "
            "tiktoken package's download) there, exactly one"
        )
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(files[0].read_bytes().splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise CheckpointError(
                f"{files[0]} line {number} is not 'base64 rank': {line[:40]!r}; fetch it again"
            ) from error
    complete = sorted(ranks.values()) == list(range(len(ranks)))
    if not complete or not all(bytes([byte]) in ranks for byte in range(256)):
        raise CheckpointError(
            f"{files[0]} is truncated or damaged: {len(ranks)} tokens, ranks with gaps or single "
            "bytes missing; fetch it again"
        )
    return ranks
