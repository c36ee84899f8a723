"""Rows of tables on a terminal and in files."""

from __future__ import annotations

import csv
import datetime
import json
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dropless.tables.conversations import read_conversation
from dropless.tables.rows import US_PER_S, PayloadRow

if TYPE_CHECKING:
    from dropless.tables.sql import QueryResult

MAX_SHOWN_ROWS = 100
MAX_SHOWN_CHARACTERS = 300
_PREVIEW_CHARACTERS = 60
_READABLE_WIDTH = 40  # of a column: longer texts are folded


def write_result(result: QueryResult, format: str, out: Path | None) -> None:
    """As `table`, `json` (one object a line) or `csv`, into the file or on standard output."""
    if out is None:
        _write(result, format, sys.stdout)
        return
    with out.open("w", encoding="utf-8", newline="") as file:
        _write(result, format, file)


def _write(result: QueryResult, format: str, file: IO[str]) -> None:
    if format == "json":
        for row in result:
            values = dict(zip(result.columns, row, strict=True))
            print(json.dumps(values, ensure_ascii=False, default=_plain), file=file)
    elif format == "csv":
        writer = csv.writer(file)
        writer.writerow(result.columns)
        writer.writerows([_csv(value) for value in row] for row in result)
    else:
        _write_table(result, file)


def _write_table(result: QueryResult, file: IO[str]) -> None:
    """Columns side by side, or one below the other where they would not be readable so."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=file, highlight=False)
    shown: list[list[str]] = []
    total = 0
    for row in result:
        total += 1
        if total <= MAX_SHOWN_ROWS:
            shown.append([_shortened(value) for value in row])
    columns = list(zip(result.columns, *shown, strict=True))
    widths = [max(min(len(cell), _READABLE_WIDTH) for cell in column) + 2 for column in columns]
    if sum(widths) > console.width:
        name_width = max(len(name) for name in result.columns)
        for cells in shown:
            for name, cell in zip(result.columns, cells, strict=True):
                console.print(Text(f"{name:<{name_width}}  {cell}"), soft_wrap=True)
            console.print()
    else:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for name in result.columns:
            table.add_column(Text(name), overflow="fold")
        for cells in shown:
            table.add_row(*(Text(cell) for cell in cells))
        console.print(table)
    more = "" if total <= MAX_SHOWN_ROWS else f", the first {MAX_SHOWN_ROWS} shown"
    console.print(f"({total} row{'' if total == 1 else 's'}{more})")


def size_text(size: float) -> str:
    """A number of bytes as people read it."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def type_text(delta_type: Any) -> str:
    """A type of Delta as its documentation writes it."""
    match delta_type.type:
        case "array":
            return f"ARRAY<{type_text(delta_type.element_type)}>"
        case "map":
            return f"MAP<{type_text(delta_type.key_type)}, {type_text(delta_type.value_type)}>"
        case "integer":
            return "INT"
        case "long":
            return "BIGINT"
        case name:
            return str(name).upper()


def call_line(row: PayloadRow) -> str:
    """A call on one line: when, how it ended, who, how long the model took, what was said."""
    when = datetime.datetime.fromtimestamp(row.request_time / US_PER_S, datetime.UTC)
    took = "" if row.execution_duration_ms is None else f"{row.execution_duration_ms} ms"
    said = _said(row)
    return (
        f"{when:%Y-%m-%d %H:%M:%S}  {row.status_code}  {row.requester or '-'}  {took:>9}  "
        f"{row.databricks_request_id}  {said}"
    )


def _said(row: PayloadRow) -> str:
    """The last question and the answer, or whatever stands in the bodies."""
    request, response = row.request or "", row.response or ""
    conversation = read_conversation(
        row.databricks_request_id, datetime.datetime.min, None, request, response
    )
    if conversation is not None:
        request, response = (
            str(message.get("content") or "") for message in conversation.messages[-2:]
        )
    return f"{_one_line(request)} → {_one_line(response)}"


def _one_line(text: str) -> str:
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= _PREVIEW_CHARACTERS else line[: _PREVIEW_CHARACTERS - 1] + "…"


def _shortened(value: Any) -> str:
    text = "" if value is None else value if isinstance(value, str) else _shown(value)
    text = "".join(c if c.isprintable() or c == "\n" else "�" for c in text)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else text[: MAX_SHOWN_CHARACTERS - 1] + "…"


def _shown(value: Any) -> str:
    if isinstance(value, datetime.datetime):
        return f"{value:%Y-%m-%d %H:%M:%S.%f}".rstrip("0").rstrip(".")
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=_plain)
    return str(value)


def _csv(value: Any) -> Any:
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=_plain)
    return value.isoformat() if isinstance(value, datetime.datetime) else value


def _plain(value: Any) -> Any:
    """What JSON has no word for."""
    return value.isoformat() if isinstance(value, datetime.date) else str(value)
