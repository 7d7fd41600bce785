"""bocompress: a trained vision network in, a smaller and faster one out.

What is listed here is loaded on first use, so that asking for `--help` does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from compressor.version import VERSION as __version__

if TYPE_CHECKING:
    from compressor.pipeline.compress import apply_plan, compress

__all__ = ["__version__", "apply_plan", "compress"]

_HOMES = {
    "apply_plan": "compressor.pipeline.compress",
    "compress": "compressor.pipeline.compress",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'compressor' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
