"""Tokenizers of Hugging Face folders: tokenizer.json, tokenizer_config.json, generation_config."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from dropless.errors import CheckpointError
from dropless.text.tiktoken_vocab import load_tiktoken_vocabulary
from dropless.text.vocabulary import (
    CHATML,
    Vocabulary,
    byte_level_piece,
    ordinary_encoder,
    sentencepiece_piece,
)

_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")


def load_hf_vocabulary(folder: Path) -> Vocabulary:
    """The tokenizer of a Hugging Face folder: tokenizer.json, or DBRX's tiktoken files.

    Raises:
        CheckpointError: files are missing, unreadable, or of a kind that is not supported.
    """
    config = _read_json(folder / "tokenizer_config.json")
    specials = _special_texts(folder, config)
    template = read_chat_template(folder)
    if (folder / "tokenizer.json").exists():
        return _from_tokenizer_json(folder, config, specials, template)
    if config.get("tokenizer_class") == "TiktokenTokenizerWrapper":
        control = _added_control_tokens(folder, config)
        ends = _eos_token_ids(folder, control.get(specials.get("eos_token", "")))
        return load_tiktoken_vocabulary(
            folder, {**config, "chat_template": template}, control, specials, ends
        )
    raise CheckpointError(
        f"{folder} has no tokenizer.json, and no tokenizer_config.json of DBRX's tiktoken kind; "
        "add the model's tokenizer files or name a folder that has them with --tokenizer"
    )


def _from_tokenizer_json(
    folder: Path, config: Mapping[str, Any], specials: dict[str, str], template: str | None
) -> Vocabulary:
    layout = _read_json(folder / "tokenizer.json")
    fast = _fast_tokenizer(folder, layout)
    steps = _decoder_steps(folder, layout)
    added = fast.get_added_tokens_decoder()
    control = {token.content: i for i, token in added.items() if token.special}
    for text in specials.values():  # some files forget to flag theirs
        token_id = fast.token_to_id(text)
        if token_id is not None:
            control[text] = token_id
    pieces = _pieces(fast, steps, control)
    bos = control.get(specials.get("bos_token", ""))
    encode = ordinary_encoder(fast)
    return Vocabulary(
        pieces=pieces,
        control_tokens=control,
        encode=encode,
        encode_after_control=_encoder_after_control(folder, layout) or encode,
        bos_token_id=bos,
        eos_token_ids=_eos_token_ids(folder, control.get(specials.get("eos_token", ""))),
        add_bos=bos is not None and _adds_bos(fast, config, bos),
        leading_space=_strips_leading_space(steps),
        chat_template=template,
        special_texts=specials,
    )


def _fast_tokenizer(folder: Path, layout: Mapping[str, Any]) -> FastTokenizer:
    try:
        fast = FastTokenizer.from_str(json.dumps(layout))
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"{folder / 'tokenizer.json'} is not usable: {error}") from error
    fast.no_truncation()
    fast.no_padding()
    return fast


def _decoder_steps(folder: Path, layout: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The decoder's steps by type."""
    decoder = layout.get("decoder") or {}
    steps = decoder.get("decoders", [decoder]) if decoder else []
    by_type = {step["type"]: step for step in steps}
    if not by_type.keys() & {"ByteLevel", "Metaspace", "ByteFallback", "Replace"}:
        raise CheckpointError(
            f"{folder / 'tokenizer.json'}: decoder {sorted(by_type)} is not supported; supported "
            "are byte-level and SentencePiece tokenizers"
        )
    return by_type


def _strips_leading_space(steps: Mapping[str, dict[str, Any]]) -> bool:
    if "Metaspace" in steps:
        return bool(steps["Metaspace"].get("prepend_scheme", "always") != "never")
    strip = steps.get("Strip", {})
    return bool(strip.get("content") == " " and strip.get("start", 0) > 0)


def _pieces(fast: FastTokenizer, steps: Mapping[str, Any], control: dict[str, int]) -> list[bytes]:
    vocab = fast.get_vocab(with_added_tokens=True)
    added = {token.content for token in fast.get_added_tokens_decoder().values()}
    normal_piece: Callable[[str], bytes] = (
        byte_level_piece if "ByteLevel" in steps else sentencepiece_piece
    )
    pieces = [b""] * (max(vocab.values()) + 1)
    for token, token_id in vocab.items():
        if token not in control:
            pieces[token_id] = token.encode("utf-8") if token in added else normal_piece(token)
    return pieces


def _encoder_after_control(
    folder: Path, layout: dict[str, Any]
) -> Callable[[str], list[int]] | None:
    """With `prepend_scheme: first`, only the very start of a prompt gets the leading space."""
    if (layout.get("pre_tokenizer") or {}).get("prepend_scheme") != "first":
        return None
    changed = copy.deepcopy(layout)
    changed["pre_tokenizer"]["prepend_scheme"] = "never"
    return ordinary_encoder(_fast_tokenizer(folder, changed))


def _adds_bos(fast: FastTokenizer, config: Mapping[str, Any], bos: int) -> bool:
    if "add_bos_token" in config:
        return bool(config["add_bos_token"])
    ids: list[int] = fast.encode("a").ids  # as the file's post-processor would have it
    return ids[:1] == [bos]


def _special_texts(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    special_map = _read_json(folder / "special_tokens_map.json")
    texts = {}
    for name in _SPECIAL_NAMES:
        value = config.get(name, special_map.get(name))
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            texts[name] = text
    return texts


def _added_control_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, int]:
    control: dict[str, int] = dict(_read_json(folder / "added_tokens.json"))
    for token_id, token in config.get("added_tokens_decoder", {}).items():
        control[token["content"]] = int(token_id)
    return control


def _eos_token_ids(folder: Path, tokenizer_eos: int | None) -> tuple[int, ...]:
    """generation_config.json's end ids and the tokenizer's own; config.json's where the former
    says nothing."""
    ends = {tokenizer_eos} - {None}
    for name in ("generation_config.json", "config.json"):
        value = _read_json(folder / name).get("eos_token_id")
        if value is not None:
            ends |= set(value) if isinstance(value, list) else {value}
            break
    return tuple(sorted(i for i in ends if i is not None))


def read_chat_template(folder: Path) -> str | None:
    """The folder's own template: chat_template.jinja, or tokenizer_config.json's (the one named
    `default` of several). DBRX's ChatML for a DBRX folder that has none."""
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    template = _read_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):
        by_name = {entry["name"]: entry["template"] for entry in template}
        template = by_name.get("default")
    if isinstance(template, str):
        return template
    is_dbrx = _read_json(folder / "config.json").get("model_type") == "dbrx"
    return CHATML if is_dbrx else None


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no such file."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a JSON {type(content).__name__}, not an object")
    return content
