"""The functions that a request offers, and whether they may or must be called."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from dropless.engine.sampling_params import GrammarSpec
from dropless.errors import InvalidRequestError
from dropless.server.strict_body import StrictBody
from dropless.server.unsupported_fields import refuse_unsupported
from dropless.text.tool_grammar import Function, ToolGrammar

MAX_TOOLS = 32
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
# Keywords that tell of further properties.
_SAY_MORE = frozenset(
    ("additionalProperties", "patternProperties", "$ref", "allOf", "anyOf", "oneOf", "if")
)
_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}


def check_name(name: str, param: str) -> None:
    """Raises InvalidRequestError."""
    if not _NAME.fullmatch(name):
        raise InvalidRequestError(
            f"a function is called {name[:80]!r}; a name has 1 to 64 letters, digits, _ and -",
            param=param,
        )


class FunctionBody(StrictBody):
    name: Annotated[str, Field(json_schema_extra={"pattern": f"^{_NAME.pattern}$"})]
    description: str | None = None
    parameters: dict[str, Any] | None = None  # a JSON schema; none: it takes no arguments
    strict: bool | None = None

    @model_validator(mode="after")
    def _check_fields(self) -> FunctionBody:
        refuse_unsupported(self.model_extra or {}, where="tools")
        check_name(self.name, "tools")
        kind = (self.parameters or {}).get("type", "object")
        if kind != "object":
            raise InvalidRequestError(
                f"the parameters of the function {self.name!r} are a JSON schema of type "
                f"{json.dumps(kind)[:80]}; arguments are an object",
                param="tools",
            )
        return self

    @property
    def schema_of_arguments(self) -> dict[str, Any]:
        if self.parameters is None:
            return _NO_PARAMETERS
        return {"type": "object", **self.parameters}


class ToolBody(StrictBody):
    type: Literal["function"]
    function: FunctionBody

    @model_validator(mode="after")
    def _check_fields(self) -> ToolBody:
        refuse_unsupported(self.model_extra or {}, where="tools")
        return self

    def for_template(self) -> dict[str, Any]:
        """As chat templates know it."""
        function: dict[str, Any] = {"name": self.function.name}
        if self.function.description is not None:
            function["description"] = self.function.description
        function["parameters"] = self.function.schema_of_arguments
        return {"type": "function", "function": function}


class NamedFunction(StrictBody):
    name: str


class NamedChoice(StrictBody):
    type: Literal["function"]
    function: NamedFunction


def _checked_choice(value: Any) -> Any:
    """One message for whatever is no choice, in place of one for each kind of choice."""
    function = value.get("function") if isinstance(value, dict) else None
    is_named = (
        isinstance(value, dict)
        and value.keys() == {"type", "function"}
        and value["type"] == "function"
        and isinstance(function, dict)
        and function.keys() == {"name"}
        and isinstance(function["name"], str)
    )
    if value is None or is_named or value in ("none", "auto", "required"):
        return value
    raise InvalidRequestError(
        'tool_choice must be "none", "auto", "required" or '
        '{"type": "function", "function": {"name": "..."}}',
        param="tool_choice",
    )


ToolChoice = Annotated[
    Literal["none", "auto", "required"] | NamedChoice | None, BeforeValidator(_checked_choice)
]


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The functions that an answer may call; `must_call`: it is nothing but calls."""

    offered: Sequence[ToolBody]  # what the model is told of
    callable: Sequence[ToolBody]
    must_call: bool
    parallel: bool

    def grammar(self) -> GrammarSpec:
        functions = tuple(
            Function(f.name, _closed(f.schema_of_arguments), bool(f.strict))
            for f in (tool.function for tool in self.callable)
        )
        grammar = ToolGrammar(functions, text_first=not self.must_call, parallel=self.parallel)
        return GrammarSpec("tool_calls", grammar.encode())


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema that lists properties and says nothing of others allows them, by the letter; a
    function that lists its parameters has no others."""
    if "properties" not in schema or _SAY_MORE.intersection(schema):
        return schema
    return {**schema, "additionalProperties": False}


def tool_use(
    tools: Sequence[ToolBody] | None,
    choice: Literal["none", "auto", "required"] | NamedChoice | None,
    parallel: bool | None,
) -> ToolUse | None:
    """What a request's fields mean together; None if no function may be called.

    Raises:
        InvalidRequestError: they contradict each other.
    """
    tools = tools or ()
    if len(tools) > MAX_TOOLS:
        raise InvalidRequestError(
            f"tools has {len(tools)} functions; at most {MAX_TOOLS} are allowed", param="tools"
        )
    names = [tool.function.name for tool in tools]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise InvalidRequestError(
                f"tools has two functions called {name!r}; give each its own name", param="tools"
            )
    if choice == "none" or (choice in (None, "auto") and not tools):
        return None
    if isinstance(choice, NamedChoice):
        named = [tool for tool in tools if tool.function.name == choice.function.name]
        if not named:
            raise InvalidRequestError(
                f"tool_choice names the function {choice.function.name[:80]!r}, which is not "
                f"among tools: {', '.join(names) or 'there are none'}",
                param="tool_choice",
            )
        return ToolUse(tools, named, must_call=True, parallel=False)
    if not tools:
        raise InvalidRequestError(
            "tool_choice is required, but there are no tools", param="tool_choice"
        )
    must_call = choice == "required"
    return ToolUse(tools, tools, must_call=must_call, parallel=parallel is not False)
