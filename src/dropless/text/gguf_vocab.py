"""Tokenizers inside GGUF files: byte-level BPE (`gpt2`) and SentencePiece (`llama`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import BPE

from dropless.errors import CheckpointError
from dropless.text.gguf_metadata import read_gguf_metadata
from dropless.text.vocabulary import (
    SPACE_MARK,
    Vocabulary,
    byte_level_piece,
    ordinary_encoder,
    sentencepiece_piece,
)

# Token types of GGUF's tokenizer.ggml.token_type.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How tokenizer.ggml.pre cuts a text into words, one pattern after the other.
_PRE_TOKENIZERS = {
    "default": [r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"],
    "gpt-2": [_GPT2],
    "smollm": [r"\p{N}", _GPT2],
    "qwen2": [_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")],
    "llama-bpe": [_LLAMA3],
    "dbrx": [_LLAMA3],
}
_WHOLE_WORDS_FIRST = {"llama-bpe"}  # a word that is one token is never built from merges
_BOS_BY_DEFAULT = {"llama-bpe"}

# A GGUF file names one end token; a chat model also ends at its family's other one.
_END_TOKENS = {"<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"}


def load_gguf_vocabulary(path: Path) -> Vocabulary:
    """The tokenizer inside a GGUF file.

    Raises:
        CheckpointError: no tokenizer in the file, or of a kind that is not supported.
    """
    metadata = {
        key.removeprefix("tokenizer."): value
        for key, value in read_gguf_metadata(path).items()
        if key.startswith("tokenizer.")
    }
    tokens = metadata.get("ggml.tokens")
    if not tokens:
        raise CheckpointError(f"{path} holds no tokenizer (tokenizer.ggml.tokens is missing)")
    types = metadata.get("ggml.token_type") or [_NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise CheckpointError(
            f"{path}: {len(tokens)} tokens but {len(types)} token types; fetch the file again"
        )
    model = metadata.get("ggml.model")
    if model == "gpt2":
        return _byte_level(path, metadata, tokens, types)
    if model == "llama":
        return _sentencepiece(path, metadata, tokens, types)
    raise CheckpointError(
        f"{path}: tokenizer model {model!r} is not supported; supported are gpt2 and llama"
    )


def _byte_level(
    path: Path, metadata: dict[str, Any], tokens: list[str], types: list[int]
) -> Vocabulary:
    pre = metadata.get("ggml.pre", "default")
    if pre not in _PRE_TOKENIZERS:
        raise CheckpointError(
            f"{path}: pre-tokenizer {pre!r} is not supported; supported are "
            f"{', '.join(sorted(_PRE_TOKENIZERS))}. Pass a tokenizer folder instead."
        )
    merges = [tuple(merge.split(" ", 1)) for merge in metadata.get("ggml.merges", [])]
    fast = FastTokenizer(
        BPE(_text_tokens(tokens, types), merges, ignore_merges=pre in _WHOLE_WORDS_FIRST)
    )
    splits = [
        pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        for pattern in _PRE_TOKENIZERS[pre]
    ]
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.pre_tokenizer = pre_tokenizers.Sequence([*splits, letters])
    _add_user_defined(fast, tokens, types)
    add_bos = metadata.get("ggml.add_bos_token", pre in _BOS_BY_DEFAULT)
    return _vocabulary(metadata, tokens, types, byte_level_piece, fast, add_bos=add_bos)


def _sentencepiece(
    path: Path, metadata: dict[str, Any], tokens: list[str], types: list[int]
) -> Vocabulary:
    scores = metadata.get("ggml.scores")
    if scores is None or len(scores) != len(tokens):
        raise CheckpointError(f"{path}: tokenizer.ggml.scores is missing or of the wrong length")
    vocab = _text_tokens(tokens, types)
    unknown = next((tokens[i] for i, kind in enumerate(types) if kind == _UNKNOWN), None)
    if unknown is not None:
        vocab[unknown] = tokens.index(unknown)
    merges = _merges_from_scores(vocab, scores, types)
    fast = FastTokenizer(BPE(vocab, merges, unk_token=unknown, byte_fallback=True, fuse_unk=True))
    prefix = bool(metadata.get("ggml.add_space_prefix", True))
    marks = [normalizers.Replace(" ", SPACE_MARK)]
    fast.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE_MARK), *marks] if prefix else marks
    )
    _add_user_defined(fast, tokens, types)
    add_bos = metadata.get("ggml.add_bos_token", True)
    return _vocabulary(
        metadata, tokens, types, sentencepiece_piece, fast, add_bos=add_bos, leading_space=prefix
    )


def _merges_from_scores(
    vocab: dict[str, int], scores: list[float], types: list[int]
) -> list[tuple[str, str]]:
    """SentencePiece joins the pair whose joint token scores highest; BPE wants that as a list of
    pairs, best first. Of equal scores the lower token id goes first."""
    ranked: list[tuple[float, int, str, str]] = []
    for token, token_id in vocab.items():
        if types[token_id] != _NORMAL:
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                ranked.append((-scores[token_id], token_id, left, right))
    ranked.sort(key=lambda merge: merge[:2])
    return [(left, right) for _, _, left, right in ranked]


def _text_tokens(tokens: list[str], types: list[int]) -> dict[str, int]:
    """Token text to id for the tokens that text may become. Of equal texts the first counts."""
    vocab: dict[str, int] = {}
    for token_id, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind in (_NORMAL, _USER_DEFINED, _BYTE):
            vocab.setdefault(token, token_id)
    return vocab


def _add_user_defined(fast: FastTokenizer, tokens: list[str], types: list[int]) -> None:
    fast.add_tokens(
        [
            AddedToken(token, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind == _USER_DEFINED and token
        ]
    )


def _vocabulary(
    metadata: dict[str, Any],
    tokens: list[str],
    types: list[int],
    normal_piece: Callable[[str], bytes],
    fast: FastTokenizer,
    *,
    add_bos: bool,
    leading_space: bool = False,
) -> Vocabulary:
    def piece(token: str, kind: int) -> bytes:
        if kind in (_UNKNOWN, _CONTROL, _UNUSED):
            return b""
        return token.encode("utf-8") if kind == _USER_DEFINED else normal_piece(token)

    control = {
        token: token_id
        for token_id, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (_UNKNOWN, _CONTROL)
    }
    named = [metadata.get(f"ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    ends = {token_id for token_id in named if token_id is not None}
    ends |= {token_id for token, token_id in control.items() if token in _END_TOKENS}
    bos = metadata.get("ggml.bos_token_id")
    specials = {"bos_token": bos, "eos_token": metadata.get("ggml.eos_token_id")}
    specials |= {"unk_token": metadata.get("ggml.unknown_token_id")}
    specials |= {"pad_token": metadata.get("ggml.padding_token_id")}
    encode = ordinary_encoder(fast)
    return Vocabulary(
        pieces=[piece(token, kind) for token, kind in zip(tokens, types, strict=True)],
        control_tokens=control,
        encode=encode,
        encode_after_control=encode,
        bos_token_id=bos,
        eos_token_ids=tuple(sorted(ends)),
        add_bos=bool(add_bos) and bos is not None,
        leading_space=leading_space,
        chat_template=metadata.get("chat_template"),
        special_texts={name: tokens[i] for name, i in specials.items() if i is not None},
    )
