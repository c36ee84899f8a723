"""Messages to prompt token ids through the model's own chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import meta

from dropless.errors import ChatTemplateError, CheckpointError
from dropless.text.control_guard import ControlGuard
from dropless.text.hf_vocab import read_chat_template
from dropless.text.template_sandbox import TemplateSandbox, render_bounded
from dropless.text.tokenizer import Tokenizer
from dropless.text.tool_calls import OPEN

_ROLES = ("system", "user", "assistant", "tool")


class ChatTemplate:
    """A compiled template. What messages say can never become a control token: only the
    template's own text can."""

    def __init__(self, source: str | None, tokenizer: Tokenizer) -> None:
        """`source` is Jinja; None for a model without a template, which then refuses messages.

        Raises:
            CheckpointError: the template does not compile.
        """
        self.source = source
        self._tokenizer = tokenizer
        self._guard = ControlGuard(tokenizer.control_tokens)
        try:
            self._template = TemplateSandbox().compile_template(source) if source else None
        except Exception as error:  # a template is a program by somebody else
            raise CheckpointError(f"the model's chat template does not compile: {error}") from error

    @cached_property
    def knows_calls(self) -> bool:
        """Whether it tells the model of functions, and of calls in the form that is served."""
        if self.source is None or OPEN not in self.source:
            return False
        return "tools" in meta.find_undeclared_variables(TemplateSandbox().parse(self.source))

    @cached_property
    def takes_system(self) -> bool:
        """Whether a system message may come first."""
        try:
            self.render([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}])
        except ChatTemplateError:
            return False
        return True

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """Prompt token ids of a conversation: `{"role": ..., "content": ...}` messages, and as
        transformers has them `tool_calls`, whose arguments are mappings, and `tools`.

        The template's default system prompt, if it has one, appears when no system message is
        given. `add_generation_prompt` ends the prompt with the opening of the assistant's answer.

        Raises:
            ChatTemplateError: messages out of order, no template, or the template failed.
        """
        if self._template is None:
            raise ChatTemplateError(
                "this model has no chat template; send a plain prompt to /v1/completions instead"
            )
        _check_order(messages)
        sentinel = self._guard.sentinel([self.source, messages, tools])
        variables = {
            **self._tokenizer.special_texts,
            "messages": self._guard.protect(messages, sentinel),
            "tools": self._guard.protect(tools, sentinel),
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            rendered = render_bounded(self._template, variables)
        except Exception as error:  # a template is a program by somebody else
            reason = str(error) or type(error).__name__
            raise ChatTemplateError(
                f"the model's chat template refused these messages: {reason}"
            ) from error
        return self._encode(rendered, sentinel)

    def _encode(self, rendered: str, sentinel: str) -> list[int]:
        ids: list[int] = []
        after_control = False
        for part in self._guard.split(rendered, sentinel):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self._tokenizer.encode(part, after_control=after_control)
            after_control = isinstance(part, int)
        return ids


def load_chat_template(path: Path, tokenizer: Tokenizer) -> ChatTemplate:
    """The template that came with the tokenizer, else the one in the model folder `path`.

    Raises:
        CheckpointError: the template does not compile.
    """
    source = tokenizer.chat_template
    if source is None and Path(path).is_dir():
        source = read_chat_template(Path(path))
    return ChatTemplate(source, tokenizer)


def _check_order(messages: Sequence[Mapping[str, Any]]) -> None:
    if not messages:
        raise ChatTemplateError("messages is empty; send at least one message")
    for i, message in enumerate(messages):
        role = message.get("role")
        if role not in _ROLES:
            raise ChatTemplateError(
                f"messages[{i}] has the role {role!r}; roles are {', '.join(_ROLES)}"
            )
        if role == "system" and i > 0:
            raise ChatTemplateError(
                f"messages[{i}] is a system message; only the first message may be one, and there "
                "may be only one"
            )
