from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as FastTokenizer

from dropless.errors import CheckpointError
from dropless.text.tokenizer import ByteTokenizer, load_tokenizer
from tests.text.gguf_files import byte_level_metadata, sentencepiece_metadata
from tests.text.texts import TEXTS


def write_json(folder: Path, **files: Any) -> None:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def byte_level_folder(folder: Path) -> FastTokenizer:
    """As Qwen2's: byte-level BPE, special and ordinary added tokens."""
    metadata = byte_level_metadata("gpt-2")
    vocab = {token: i for i, token in enumerate(metadata["tokens"][:-4])}
    merges = [tuple(merge.split(" ")) for merge in metadata["merges"]]
    fast = FastTokenizer(models.BPE(vocab, merges))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken("<|im_start|>"), AddedToken("<|im_end|>")])
    fast.add_tokens([AddedToken("<tool>", normalized=False)])
    fast.save(str(folder / "tokenizer.json"))
    write_json(folder, tokenizer_config={"eos_token": "<|im_end|>", "chat_template": "{{ 1 }}"})
    return fast


def sentencepiece_folder(folder: Path, *, prepend_scheme: str | None = None) -> FastTokenizer:
    """As Llama 2's; with a `prepend_scheme` as the later Mistral's."""
    metadata = sentencepiece_metadata()
    tokens = metadata["tokens"]
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = sorted(
        (vocab[token], token[:cut], token[cut:])
        for token in tokens[259:-1]
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    )
    fast = FastTokenizer(
        models.BPE(
            vocab,
            [(left, right) for _, left, right in merges],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    if prepend_scheme is None:
        fast.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme, split=False)
    fast.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    fast.add_special_tokens([AddedToken(token) for token in ("<unk>", "<s>", "</s>")])
    fast.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    fast.save(str(folder / "tokenizer.json"))
    write_json(folder, tokenizer_config={"bos_token": {"content": "<s>"}, "eos_token": "</s>"})
    return fast


def test_byte_level_folder(tmp_path: Path) -> None:
    fast = byte_level_folder(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    start = fast.token_to_id("<|im_start|>")
    assert tokenizer.control_tokens == {"<|im_start|>": start, "<|im_end|>": start + 1}
    assert (tokenizer.vocab_size, tokenizer.add_bos) == (start + 3, False)
    assert tokenizer.eos_token_ids == (start + 1,)
    assert tokenizer.chat_template == "{{ 1 }}"
    assert tokenizer.encode("<tool>") == [start + 2]
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert not any(map(tokenizer.is_control, ids))
        assert tokenizer.decode(ids) == text == fast.decode(ids)
        if "<|" not in text:
            assert ids == fast.encode(text).ids


@pytest.mark.parametrize("scheme", [None, "first", "always"])
def test_sentencepiece_folder(tmp_path: Path, scheme: str | None) -> None:
    fast = sentencepiece_folder(tmp_path, prepend_scheme=scheme)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.add_bos
    assert tokenizer.bos_token_id == 1
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert not any(map(tokenizer.is_control, ids))
        assert tokenizer.decode(ids) == fast.decode(ids)
        if "<" not in text:
            assert ids == fast.encode(text, add_special_tokens=False).ids
            after = fast.encode("</s>" + text, add_special_tokens=False).ids
            assert [2, *tokenizer.encode(text, after_control=True)] == after
            assert tokenizer.encode(text, add_bos=True) == fast.encode(text).ids


@given(st.text())
def test_bytes_round_trip(text: str) -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(i < 256 for i in ids)


def test_lone_surrogates_become_replacement_characters() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode("a\ud800b\udfff")) == "a�b�"
    assert tokenizer.decode(tokenizer.encode("\ud83d\ude00")) == "😀"  # a pair is a character


def test_end_tokens_come_from_the_generation_config_too(tmp_path: Path) -> None:
    fast = byte_level_folder(tmp_path)
    write_json(tmp_path, generation_config={"eos_token_id": [7, 9]}, config={"eos_token_id": 11})
    assert load_tokenizer(tmp_path).eos_token_ids == (7, 9, fast.token_to_id("<|im_end|>"))


def test_a_config_alone_gets_bytes_and_weights_alone_an_error(tmp_path: Path) -> None:
    write_json(tmp_path, config={"model_type": "llama"})
    assert isinstance(load_tokenizer(tmp_path), ByteTokenizer)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_unusable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not readable JSON"):
        load_tokenizer(tmp_path)
    write_json(tmp_path, tokenizer={"version": "1.0"})
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not usable"):
        load_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="neither a model folder nor"):
        load_tokenizer(tmp_path / "absent")


# A DBRX folder in small: every byte, two longer tokens, control tokens far behind.
RANKS = [bytes([byte]) for byte in range(256)] + [b"he", b"hell"]
DBRX_CONFIG = {
    "tokenizer_class": "TiktokenTokenizerWrapper",
    "model_name": "gpt-4",
    "bos_token": "<|endoftext|>",
    "eos_token": "<|endoftext|>",
    "added_tokens_decoder": {"300": {"content": "<|endoftext|>", "special": True}},
}


def dbrx_folder(folder: Path, ranks: list[bytes] = RANKS) -> None:
    write_json(
        folder,
        tokenizer_config=DBRX_CONFIG,
        added_tokens={"<|im_start|>": 310, "<|im_end|>": 311},
        generation_config={"eos_token_id": [300, 311]},
        config={"model_type": "dbrx"},
    )
    lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(ranks)]
    (folder / "small.tiktoken").write_text("\n".join(lines))


def test_dbrx_folder(tmp_path: Path) -> None:
    dbrx_folder(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("hell") == [257]  # a word that is a token needs no merges
    assert tokenizer.encode("shell") == [ord("s"), 256, *b"ll"]
    assert tokenizer.control_tokens == {
        "<|endoftext|>": 300, "<|im_start|>": 310, "<|im_end|>": 311,
    }  # fmt: skip
    assert tokenizer.eos_token_ids == (300, 311)
    assert not tokenizer.add_bos
    holes = [*range(258, 300), *range(301, 310), *range(312, 320)]
    assert tokenizer.unsampleable_ids(320) == holes
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert max(ids) < 258
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("ranks", "message"),
    [(RANKS[:100], "truncated or damaged"), ([*RANKS[:-1], b"he"], "truncated or damaged")],
)
def test_damaged_ranks(tmp_path: Path, ranks: list[bytes], message: str) -> None:
    dbrx_folder(tmp_path, ranks)
    with pytest.raises(CheckpointError, match=message):
        load_tokenizer(tmp_path)


def test_missing_ranks_say_what_to_do(tmp_path: Path) -> None:
    dbrx_folder(tmp_path)
    (tmp_path / "small.tiktoken").unlink()
    with pytest.raises(CheckpointError, match=r"put cl100k_base\.tiktoken"):
        load_tokenizer(tmp_path)


def test_the_published_dbrx_tokenizer(tmp_path: Path) -> None:
    data = os.environ.get("DROPLESS_TEST_DATA")
    if not data:
        pytest.skip("DROPLESS_TEST_DATA names no folder with dbrx-config and cl100k")
    for file in [*Path(data, "dbrx-config").glob("*.json"), *Path(data, "cl100k").glob("*.tik*")]:
        (tmp_path / file.name).symlink_to(file)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("hello world <|im_end|>") == [15339, 1917, 83739, 318, 6345, 91, 29]
    assert tokenizer.eos_token_ids == (100257, 100279)
    assert tokenizer.unsampleable_ids(100352) == [
        100256, *range(100258, 100277), *range(100280, 100352),
    ]  # fmt: skip
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
