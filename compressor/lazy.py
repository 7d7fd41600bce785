"""What registries name by its place, so that it is loaded on first use only."""

from importlib import import_module
from typing import Any


def load_named(place: str) -> Any:
    """What a module calls `name`; `place` is "module:name"."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
