"""bocompress: a trained vision network in, a smaller and faster one out.

`compress` is loaded on first use, so that importing a record or asking for `--help` does not load torch.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("bocompress")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__", "apply_plan", "compress"]


def __getattr__(name: str) -> Any:
    if name in ("apply_plan", "compress"):
        from compressor import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module 'compressor' has no attribute {name!r}")
