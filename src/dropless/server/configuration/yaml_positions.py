"""YAML that remembers where each value stands, and takes no key twice."""

from __future__ import annotations

from typing import Any

import yaml

from dropless.errors import SettingsError

Path = tuple[str | int, ...]


class PositionedYaml:
    """A document as plain values, with the line of each. Dates stay the text they are written as.

    Raises:
        SettingsError: no YAML, a key given twice, a value that contains itself.
    """

    def __init__(self, text: str, source: str) -> None:
        """`source` names the text in errors."""
        self.source = source
        self._lines: dict[Path, int] = {}
        try:
            self._loader = _Loader(text)
            root = self._loader.get_single_node()
            self.value: Any = {} if root is None else self._value(root, (), ())
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            raise self.error(error.problem or "no YAML", mark.line + 1 if mark else 1) from error
        except (yaml.YAMLError, ValueError) as error:  # ValueError: a number that is none
            raise self.error(f"no YAML: {' '.join(str(error).split())}", 1) from error
        except RecursionError as error:
            raise self.error("values are nested too deep", 1) from error

    def line(self, path: Path) -> int:
        """The line of this value, or of the nearest one around it that is in the text. From 1."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 1)

    def error(self, message: str, line: int) -> SettingsError:
        return SettingsError(f"{self.source}:{line}: {message}")

    def _value(self, node: yaml.Node, path: Path, around: tuple[yaml.Node, ...]) -> Any:
        self._lines.setdefault(path, node.start_mark.line + 1)
        if node in around:
            raise self.error("a value contains itself", node.start_mark.line + 1)
        around = (*around, node)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, around)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, (*path, i), around) for i, item in enumerate(node.value)]
        return self._loader.construct_object(node)

    def _mapping(
        self, node: yaml.MappingNode, path: Path, around: tuple[yaml.Node, ...]
    ) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or not key_node.value.isprintable():
                raise self.error("a key must be a plain name", line)
            key = str(key_node.value)
            if key in values:
                raise self.error(f"{key!r} is given twice", line)
            self._lines[(*path, key)] = line
            values[key] = self._value(value_node, (*path, key), around)
        return values


class _Loader(yaml.SafeLoader):
    """Knows no dates: a value that looks like one is a text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
