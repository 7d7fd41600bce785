"""Tables in Markdown."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any


def table(columns: Mapping[str, Callable[[Any], str]], rows: Sequence[Any]) -> str:
    """A Markdown table: each column's title and how it shows a row."""
    head = "| " + " | ".join(columns) + " |"
    rule = "|" + " --- |" * len(columns)
    body = ["| " + " | ".join(show(row) for show in columns.values()) + " |" for row in rows]
    return "\n".join([head, rule, *body])
