"""Jinja templates of the pages."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template


def load_template(
    folder: Path | Sequence[Path],
    name: str,
    filters: Mapping[str, Any],
    escape: bool = True,
    keep_trailing_newline: bool = False,
) -> Template:
    """A template, in which a missing value is an error, not an empty string.

    Args:
        folder: that holds it, or several, of which the first that does is taken.
        name: of its file.
        filters: functions by the names that the template has for them.
        escape: whether texts are escaped for HTML.
        keep_trailing_newline: whether a newline at the end of the file stays.
    """
    # Autoescape is switched on outright: jinja's choice by file ending would leave it off for ".jinja".
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=keep_trailing_newline,
    )
    environment.filters.update(filters)
    return environment.get_template(name)
