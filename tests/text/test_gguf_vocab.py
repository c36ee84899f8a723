from __future__ import annotations

import gc
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from dropless.errors import CheckpointError
from dropless.text.gguf_metadata import read_gguf_metadata
from dropless.text.tokenizer import Tokenizer, load_tokenizer
from tests.text.gguf_files import byte_level_metadata, sentencepiece_metadata, write_model
from tests.text.texts import TEXTS

BYTE_LEVEL = ["smollm", "qwen2", "llama-bpe", "gpt-2", "default", "dbrx"]


@contextmanager
def llama_cpp_tokenizer(path: Path) -> Iterator[Callable[[str], list[int]]]:
    xllamacpp = pytest.importorskip("xllamacpp")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_gpu_layers, params.warmup, params.port = 64, 0, False, port
    server = xllamacpp.Server(params)
    with httpx.Client(base_url=server.listening_address) as client:

        def tokenize(text: str) -> list[int]:
            body = {"content": text, "add_special": False, "parse_special": False}
            ids: list[int] = client.post("/tokenize", json=body).json()["tokens"]
            return ids

        yield tokenize
    del server
    gc.collect()


@pytest.mark.parametrize("pre", [*BYTE_LEVEL, "sentencepiece"])
def test_tokens_are_llama_cpps(tmp_path: Path, pre: str) -> None:
    path = tmp_path / "model.gguf"
    metadata = sentencepiece_metadata() if pre == "sentencepiece" else byte_level_metadata(pre)
    write_model(path, metadata)
    tokenizer = load_tokenizer(path)
    with llama_cpp_tokenizer(path) as tokenize:
        for text in TEXTS:
            ids = tokenizer.encode(text)
            assert ids == tokenize(text), text
            # SentencePiece puts its leading space behind added tokens as well.
            if "<tool>" not in text or pre != "sentencepiece":
                assert tokenizer.decode(ids) == text
            assert not any(map(tokenizer.is_control, ids))


def load(tmp_path: Path, metadata: dict[str, Any]) -> Tokenizer:
    write_model(tmp_path / "model.gguf", metadata)
    return load_tokenizer(tmp_path / "model.gguf")


def test_byte_level_facts(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, byte_level_metadata("smollm"))
    start = tokenizer.control_tokens["<|im_start|>"]
    assert tokenizer.control_tokens == {"<|im_start|>": start, "<|im_end|>": start + 1}
    assert tokenizer.eos_token_ids == (start + 1,)
    assert not tokenizer.add_bos
    assert tokenizer.encode("<tool>") == [start + 2]  # user-defined: text may become it
    assert tokenizer.token_bytes(start + 2) == b"<tool>"
    assert tokenizer.unsampleable_ids(500) == list(range(start + 3, 500))
    assert tokenizer.decode([start, *tokenizer.encode("hi")]) == "hi"
    assert tokenizer.decode([start, *tokenizer.encode("hi")], skip_control=False).endswith("|>hi")


def test_llama_3_adds_a_bos(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, byte_level_metadata("llama-bpe"))
    assert tokenizer.add_bos
    assert tokenizer.encode("a", add_bos=True)[0] == tokenizer.bos_token_id


def test_sentencepiece_facts(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, sentencepiece_metadata())
    assert tokenizer.add_bos
    assert tokenizer.bos_token_id == 1
    assert tokenizer.eos_token_ids == (2,)
    assert tokenizer.control_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2}
    ids = tokenizer.encode("the 😀")
    assert b"".join(map(tokenizer.token_bytes, ids)) == " the 😀".encode()
    assert tokenizer.decode(ids) == "the 😀"
    assert tokenizer.token_bytes(3 + 0x0A) == b"\n"


def test_an_unknown_pre_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'mystery' is not supported; supported are dbrx"):
        load(tmp_path, byte_level_metadata("mystery"))


def test_an_unknown_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'bert' is not supported"):
        load(tmp_path, byte_level_metadata("smollm") | {"model": "bert"})


def test_not_a_gguf_file(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGML and more")
    with pytest.raises(CheckpointError, match="not a GGUF file"):
        read_gguf_metadata(path)


def test_every_cut_of_the_metadata_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_model(path, {"model": "gpt2", "tokens": ["a", "b"], "token_type": [1, 1], "merges": []})
    whole = path.read_bytes()
    metadata = read_gguf_metadata(path)
    assert metadata["tokenizer.ggml.tokens"] == ["a", "b"]
    end = whole.index(b"tokenizer.ggml.token_type") + 30
    for size in range(end):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            read_gguf_metadata(path)
