"""Jinja for chat templates that come with a model: no access to the machine, bounded time and size.

Jinja's own sandbox keeps a template away from the machine but lets it loop and build strings
without end. Here the parsed template is rewritten so that every loop step, output and joined or
nested value passes a limit, and only functions whose result cannot outgrow their input are kept.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from types import BuiltinMethodType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError, UndefinedError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_SOURCE_CHARS = 1 << 20
MAX_RENDERED_CHARS = 32 << 20  # also of any value in between
MAX_RENDER_SECONDS = 5.0
_MAX_INTEGER_BITS = 4096
_MAX_INDENT = 16
_CHARS_PER_ITEM = 8  # what an item of a container counts beside its own text

_FILTERS = (
    "abs", "attr", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first",
    "float", "int", "items", "last", "length", "list", "lower", "map", "max", "min", "reject",
    "rejectattr", "reverse", "round", "safe", "select", "selectattr", "sort", "title", "trim",
    "unique", "upper",
)  # fmt: skip
_STRING_METHODS = {
    "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha",
    "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "join",
    "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex",
    "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase",
    "title", "upper",
}  # fmt: skip


@dataclass
class _Budget:
    """What one rendering may still use."""

    deadline: float
    chars: int

    def step(self) -> None:
        if time.monotonic() > self.deadline:
            raise SecurityError(f"the template ran longer than {MAX_RENDER_SECONDS:g} s")

    def spend(self, chars: int) -> None:
        self.step()
        self.chars -= chars
        if self.chars < 0:
            raise SecurityError(f"the template makes more than {MAX_RENDERED_CHARS} characters")


_budget: ContextVar[_Budget] = ContextVar("template_budget")


def render_bounded(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    """Render within the limits.

    Raises:
        SecurityError: a limit was passed or something forbidden was tried.
        Exception: whatever else the template does wrong.
    """
    token = _budget.set(_Budget(time.monotonic() + MAX_RENDER_SECONDS, MAX_RENDERED_CHARS))
    try:
        return template.render(**variables)
    finally:
        _budget.reset(token)


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """Compiles chat templates written for transformers: same whitespace rules, filters, globals."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # constants are not worked out before the limits apply
            extensions=[loopcontrols, _GenerationBlocks],
        )
        own: dict[str, Callable[..., Any]] = {
            "tojson": _tojson,
            "string": _string,
            "join": _join_filter,
            "replace": _replace_filter,
            "limited_loop": _limited_loop,
            "limited_output": _limited_output,
            "limited_concat": _limited_concat,
            "limited_value": _limited_value,
        }
        self.filters = {name: self.filters[name] for name in _FILTERS} | own
        self.globals = {name: self.globals[name] for name in ("range", "dict", "namespace")}
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def compile_template(self, source: str) -> jinja2.Template:
        """Parse, rewrite and compile.

        Raises:
            jinja2.TemplateError, SecurityError, RecursionError: the source is not usable.
        """
        if len(source) > MAX_SOURCE_CHARS:
            raise SecurityError(f"the template is longer than {MAX_SOURCE_CHARS} characters")
        tree = _AddLimits().visit(self.parse(source))
        return self.template_class.from_code(self, self.compile(tree), self.make_globals(None))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        _budget.get().step()
        if isinstance(__obj, BuiltinMethodType) and isinstance(__obj.__self__, str):
            if __obj.__name__ not in _STRING_METHODS:
                raise SecurityError(f"str.{__obj.__name__} is not available to templates")
            if __obj.__name__ == "replace":
                _check_replace(__obj.__self__, *args[:2])
            elif __obj.__name__ == "join":
                args = (_joinable(__obj.__self__, args[0]),)
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            _check_product(left, right)
        elif operator == "**":
            _check_power(left, right)
        elif operator == "%" and isinstance(left, str):
            raise SecurityError("formatting with % is not available to templates; use ~")
        result = super().call_binop(context, operator, left, right)
        return _limited_value(result) if operator == "+" else result

    def wrap_str_format(self, value: Any) -> None:
        """No `str.format`: its widths make strings of any length."""


class _GenerationBlocks(Extension):
    """`{% generation %}` marks what a model wrote, for training; here it means nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _AddLimits(NodeTransformer):
    """Routes loops, outputs, joins and container literals through the `limited_` filters."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.iter = _through("limited_loop", node.iter)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [_through("limited_output", _expression(child)) for child in node.nodes]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _through("limited_concat", nodes.List(node.nodes, lineno=node.lineno))

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        return _through("limited_value", self.generic_visit(node))

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        return _through("limited_value", self.generic_visit(node))

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _through("limited_value", node) if node.ctx == "load" else node


def _expression(node: nodes.Node) -> nodes.Node:
    return (
        nodes.Const(node.data, lineno=node.lineno) if isinstance(node, nodes.TemplateData) else node
    )


def _through(name: str, node: nodes.Node) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


@jinja2.pass_context  # a filter that needs the context is never run at compile time
def _limited_output(_context: Context, value: Any) -> str:
    text = _as_text(value)
    _budget.get().spend(len(text))
    return text


@jinja2.pass_context
def _limited_concat(_context: Context, values: list[Any]) -> str:
    texts = [_as_text(value) for value in values]
    _budget.get().spend(sum(map(len, texts)))
    return "".join(texts)


@jinja2.pass_context
def _limited_loop(_context: Context, values: Iterable[Any]) -> Iterator[Any]:
    step = _budget.get().step
    for value in values:
        step()
        yield value


def _limited_value(value: Any) -> Any:
    _check_size(value)
    return value


def _check_size(value: Any) -> None:
    """Refuse a value whose text would be longer than the limit, shared parts counted each time."""
    _budget.get().step()
    left = MAX_RENDERED_CHARS
    todo = [value]
    while todo:
        part = todo.pop()
        if isinstance(part, str):
            left -= len(part)
        elif isinstance(part, Mapping):
            todo += part.keys()
            todo += part.values()
            left -= _CHARS_PER_ITEM * len(part)
        elif isinstance(part, list | tuple):
            todo += part
            left -= _CHARS_PER_ITEM * len(part)
        if left < 0:
            raise SecurityError(f"a value would hold more than {MAX_RENDERED_CHARS} characters")


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    _check_size(value)
    return str(value)


def _string(value: Any) -> str:
    return _as_text(value)


def _joinable(separator: str, values: Iterable[Any]) -> list[str]:
    texts = [_as_text(value) for value in values]
    _budget.get().spend(sum(map(len, texts)) + len(separator) * len(texts))
    return texts


def _join_filter(values: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    if attribute is not None:
        values = [_field(value, attribute) for value in values]
    return str(d).join(_joinable(str(d), values))


def _field(value: Any, name: str) -> Any:
    return value.get(name, "") if isinstance(value, Mapping) else ""


def _replace_filter(value: Any, old: str, new: str, count: int | None = None) -> str:
    text = _as_text(value)
    _check_replace(text, old, new)
    return text.replace(old, new, -1 if count is None else count)


def _check_replace(text: str, old: str, new: str) -> None:
    hits = text.count(old)
    _budget.get().spend(len(text) + hits * max(0, len(new) - len(old)))


def _check_product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > _MAX_INTEGER_BITS:
            raise SecurityError(f"an integer would have more than {_MAX_INTEGER_BITS} bits")
        return
    for value, times in ((left, right), (right, left)):
        if isinstance(value, str | list | tuple) and isinstance(times, int):
            _budget.get().spend(len(value) * max(0, times))


def _check_power(left: Any, right: Any) -> None:
    if (
        isinstance(left, int)
        and isinstance(right, int)
        and left.bit_length() * abs(right) > _MAX_INTEGER_BITS
    ):
        raise SecurityError(f"an integer would have more than {_MAX_INTEGER_BITS} bits")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As in transformers: no HTML escapes, and the arguments of json.dumps."""
    if isinstance(value, Undefined):
        raise UndefinedError("tojson of an undefined value")
    if indent is not None and not 0 <= indent <= _MAX_INDENT:
        raise SecurityError(f"tojson indent is {indent}; at most {_MAX_INDENT} is allowed")
    _check_size(value)
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)
