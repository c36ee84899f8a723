from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropless.errors import ChatTemplateError, CheckpointError
from dropless.text.chat_template import ChatTemplate, load_chat_template
from dropless.text.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer
from tests.text.chat_templates import CHATML, DBRX_WITH_DEFAULT, FAMILIES
from tests.text.test_tokenizer import byte_level_folder, dbrx_folder, sentencepiece_folder
from tests.text.vocabularies import byte_tokenizer

Messages = list[dict[str, str]]


def family(name: str) -> tuple[ChatTemplate, Tokenizer]:
    source, control = FAMILIES[name]
    tokenizer = byte_tokenizer(control, bos=control[0])
    return ChatTemplate(source, tokenizer), tokenizer


TEMPLATES = {name: family(name) for name in FAMILIES}
SPELLINGS = sorted({text for _, control in FAMILIES.values() for text in control})


def pieces_of(spelling: str) -> st.SearchStrategy[str]:
    cuts = st.tuples(st.integers(0, len(spelling)), st.integers(0, len(spelling)))
    return cuts.map(lambda cut: spelling[min(cut) : max(cut)])


evil_text = st.lists(
    st.one_of(
        st.sampled_from(SPELLINGS),
        st.sampled_from(SPELLINGS).flatmap(pieces_of),
        st.text(max_size=3),
        st.sampled_from([" ", "\n", "<", "|>", "﷐", "﷑", "</", "s>"]),
    ),
    max_size=6,
).map("".join)


@given(
    st.sampled_from(sorted(FAMILIES)), st.lists(evil_text, min_size=1, max_size=4), st.booleans()
)
def test_user_text_never_becomes_a_control_token(
    name: str, contents: list[str], with_system: bool
) -> None:
    template, tokenizer = TEMPLATES[name]
    # Mixtral's has no system message, DBRX's writes one only before another message.
    with_system = with_system and name != "mixtral" and len(contents) > 1
    roles = [*(["system"] if with_system else []), *["user", "assistant"] * 2][: len(contents)]
    evil = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
    plain = [{"role": role, "content": "x"} for role in roles]
    ids = template.render(evil)
    control = list(filter(tokenizer.is_control, ids))
    assert control == list(filter(tokenizer.is_control, template.render(plain)))
    # Nothing is lost either: every text is there as the template would have put it.
    spelled = tokenizer.decode(ids, skip_control=False)
    trims = name in ("llama3", "glued")
    for content in contents[: len(evil)]:
        expected = content.strip() if trims else content
        assert expected.encode("utf-8", "replace").decode() in spelled


@given(evil_text, evil_text)
def test_tools_are_user_text_too(key: str, value: str) -> None:
    template, tokenizer = TEMPLATES["glued"]
    ids = template.render([{"role": "user", "content": "x"}], tools=[{key: {"d": [value]}}])
    end = tokenizer.control_tokens["<|im_end|>"]
    assert [i for i in ids if tokenizer.is_control(i)] == [end]
    assert ids[-1] == end


CONVERSATIONS: list[Messages] = [
    [{"role": "user", "content": "Hello there!"}],
    [
        {"role": "user", "content": " 2 < 3 | 4 > 1? \n"},
        {"role": "assistant", "content": "Yes: ¡sí! 😀"},
        {"role": "user", "content": "> quoted\n| table |"},
    ],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "def f(): ..."}],
]


@pytest.mark.parametrize("name", ["chatml", "smollm2", "dbrx"])
@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("prompt", [True, False])
def test_equal_to_transformers(tmp_path: Path, name: str, messages: Messages, prompt: bool) -> None:
    transformers = pytest.importorskip("transformers")
    byte_level_folder(tmp_path)
    source = FAMILIES[name][0]
    config = {"eos_token": "<|im_end|>", "chat_template": source}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    expected = reference.apply_chat_template(messages, tokenize=True, add_generation_prompt=prompt)
    template = load_chat_template(tmp_path, load_tokenizer(tmp_path))
    assert template.render(messages, add_generation_prompt=prompt) == expected


@pytest.mark.parametrize("scheme", [None, "first"])
def test_equal_to_transformers_with_leading_spaces(tmp_path: Path, scheme: str | None) -> None:
    transformers = pytest.importorskip("transformers")
    sentencepiece_folder(tmp_path, prepend_scheme=scheme)
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": FAMILIES["mixtral"][0]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    template = load_chat_template(tmp_path, load_tokenizer(tmp_path))
    for messages in CONVERSATIONS[:2]:
        assert template.render(messages) == reference.apply_chat_template(messages, tokenize=True)


@pytest.mark.parametrize("name", ["smollm2", "dbrx"])
def test_the_default_system_prompt_once_or_replaced(name: str) -> None:
    template, tokenizer = TEMPLATES[name]

    def text(messages: Messages) -> str:
        return tokenizer.decode(template.render(messages), skip_control=False)

    chat = CONVERSATIONS[1]
    assert text(chat).count("Be the default.") == 1
    own = text([{"role": "system", "content": "Mine."}, *chat])
    assert "Be the default." not in own
    assert own.startswith("<|im_start|>system\nMine.<|im_end|>\n<|im_start|>user\n")


def test_dbrx_without_a_template_gets_its_chatml(tmp_path: Path) -> None:
    dbrx_folder(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    template = load_chat_template(tmp_path, tokenizer)
    chat = [*CONVERSATIONS[2], {"role": "assistant", "content": "ok"}, CONVERSATIONS[0][0]]
    assert tokenizer.decode(template.render(chat), skip_control=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\ndef f(): ...<|im_end|>\n"
        "<|im_start|>assistant\nok<|im_end|>\n<|im_start|>user\nHello there!<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    bare = tokenizer.decode(template.render(CONVERSATIONS[0]), skip_control=False)
    assert bare == "<|im_start|>user\nHello there!<|im_end|>\n<|im_start|>assistant\n"


def test_a_dbrx_template_of_its_own_is_used(tmp_path: Path) -> None:
    dbrx_folder(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(DBRX_WITH_DEFAULT)
    tokenizer = load_tokenizer(tmp_path)
    ids = load_chat_template(tmp_path, tokenizer).render(CONVERSATIONS[0])
    assert "Be the default." in tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages is empty"),
        ([{"role": "user", "content": "a"}, {"role": "system", "content": "b"}], r"messages\[1\]"),
        ([{"role": "system", "content": "a"}] * 2, "there may be only one"),
        ([{"role": "<|im_end|>", "content": "a"}], "has the role '<|im_end|>'"),
        ([{"content": "a"}], "has the role None"),
        ([{"role": "user", "content": ["a"]}], "refused these messages"),
    ],
)
def test_wrong_messages(messages: list[dict[str, object]], message: str) -> None:
    with pytest.raises(ChatTemplateError, match=message):
        TEMPLATES["chatml"][0].render(messages)


def test_what_a_template_raises_is_passed_on() -> None:
    with pytest.raises(ChatTemplateError, match="Conversation roles must alternate"):
        TEMPLATES["mixtral"][0].render([CONVERSATIONS[1][1]])


def test_no_template_and_a_broken_one() -> None:
    with pytest.raises(ChatTemplateError, match="has no chat template"):
        ChatTemplate(None, ByteTokenizer()).render(CONVERSATIONS[0])
    with pytest.raises(CheckpointError, match="does not compile"):
        ChatTemplate("{% for %}", ByteTokenizer())


def test_noncharacters_may_be_used_but_not_all_at_once() -> None:
    template, tokenizer = TEMPLATES["chatml"]
    content = "\ufdd0<|im_end|>\ufdd1"
    ids = template.render([{"role": "user", "content": content}])
    assert content in tokenizer.decode(ids, skip_control=False)
    everything = "".join(map(chr, range(0xFDD0, 0xFDF0)))
    with pytest.raises(ChatTemplateError, match="noncharacters"):
        template.render([{"role": "user", "content": everything}])


def test_bytes_bring_chatml() -> None:
    tokenizer = ByteTokenizer()
    assert load_chat_template(Path("absent"), tokenizer).source == tokenizer.chat_template
    assert tokenizer.chat_template != CHATML  # DBRX's has no line break at the end
