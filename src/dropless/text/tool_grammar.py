"""The grammar of an answer that calls functions."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from dropless.text.tool_calls import CLOSE, MAX_SPACES, OPEN

MAX_CALLS = 32  # of one answer: a small model may repeat itself
_FIRST_ARGUMENTS_LINE = 8  # of the grammar as `lark` writes it
_MAX_REASON_CHARS = 400


@dataclass(frozen=True, slots=True)
class Function:
    """What may be called: `schema` is the arguments' JSON schema, of an object. Unless it is
    `strict`, keywords of it that cannot be followed are passed over."""

    name: str
    schema: dict[str, Any]
    strict: bool = False


@dataclass(frozen=True, slots=True)
class ToolGrammar:
    """What an answer may call. `text_first`: it may be text, or text and then calls. `parallel`:
    several calls."""

    functions: tuple[Function, ...]
    text_first: bool
    parallel: bool

    def encode(self) -> str:
        functions = [[f.name, f.schema, f.strict] for f in self.functions]
        return json.dumps([functions, self.text_first, self.parallel])

    @classmethod
    def decode(cls, text: str) -> ToolGrammar:
        functions, text_first, parallel = json.loads(text)
        return cls(tuple(Function(*function) for function in functions), text_first, parallel)

    def lark(self, json_options: dict[str, Any]) -> str:
        """Of the calls, in llguidance's notation: with marks around them, or where text may stand
        first also without."""
        more = f"{{0,{MAX_CALLS - 1}}}"
        marked = f"call (SPACES? call){more}" if self.parallel else "call"
        unmarked = f"object (SPACES? block? object){more}" if self.parallel else "object"
        pairs = [
            f'{json.dumps(json.dumps(f.name))} SPACES? "," SPACES? arguments arguments_{i}'
            for i, f in enumerate(self.functions)
        ]
        rules = [
            f"start: {marked}" + (f' | {unmarked} (SPACES? "```")?' if self.text_first else ""),
            'block: "```" SPACES? "```" "json"? SPACES?',
            f'call: "{OPEN}" SPACES? object SPACES? "{CLOSE}"',
            'object: "{" SPACES? "\\"name\\"" SPACES? ":" SPACES? pair SPACES? "}"',
            f"pair: {' | '.join(pairs)}",
            'arguments: "\\"arguments\\"" SPACES? ":" SPACES?',
            f"SPACES: /[ \\t\\r\\n]{{1,{MAX_SPACES}}}/",
        ]
        assert len(rules) == _FIRST_ARGUMENTS_LINE - 1
        for i, f in enumerate(self.functions):
            options = {**json_options, "lenient": not f.strict}
            rules.append(f"arguments_{i}: %json {json.dumps({**f.schema, 'x-guidance': options})}")
        return "\n".join(rules) + "\n"

    def problem(self, error: str) -> str:
        """What llguidance has to say of that, as far as it concerns the caller."""
        first, _, _ = error.partition("\n")
        place = re.match(r"at (\d+)\(\d+\): ", first)
        if place is None:
            return f"the parameters of a tool cannot be used: {first[:_MAX_REASON_CHARS]}"
        function = self.functions[int(place[1]) - _FIRST_ARGUMENTS_LINE]
        reason = first[place.end() :][:_MAX_REASON_CHARS]
        return f"the parameters of the function {function.name!r} cannot be used: {reason}"
