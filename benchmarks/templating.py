"""Where the pages' templates lie, and how they are read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template


def load_template(
    name: str, filters: Mapping[str, Any], escape: bool = True, keep_trailing_newline: bool = False
) -> Template:
    """The template of this name; a value that is missing is an error."""
    # Autoescape is switched on outright: jinja's choice by file ending would leave it off for ".jinja".
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=keep_trailing_newline,
    )
    environment.filters.update(filters)
    return environment.get_template(name)
