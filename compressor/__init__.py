"""bocompress: a trained vision network in, a smaller and faster one out.

What is listed here is loaded on first use, so that asking for `--help` does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compressor.data.images import ImageSet as ImageSet
    from compressor.errors import InputError as InputError
    from compressor.pipeline.compress import apply_plan as apply_plan
    from compressor.pipeline.compress import compress as compress
    from compressor.pipeline.delivery.weights import load_compressed as load_compressed
    from compressor.pipeline.plan import Plan as Plan
    from compressor.pipeline.recipe import Recipe as Recipe
    from compressor.pipeline.settings import Settings as Settings
    from compressor.pipeline.settings import Target as Target
    from compressor.pipeline.state import CompressedModel as CompressedModel
    from compressor.version import VERSION as __version__

__all__ = [
    "CompressedModel",
    "ImageSet",
    "InputError",
    "Plan",
    "Recipe",
    "Settings",
    "Target",
    "__version__",
    "apply_plan",
    "compress",
    "load_compressed",
]

_HOMES = {
    "CompressedModel": "compressor.pipeline.state",
    "ImageSet": "compressor.data.images",
    "InputError": "compressor.errors",
    "Plan": "compressor.pipeline.plan",
    "Recipe": "compressor.pipeline.recipe",
    "Settings": "compressor.pipeline.settings",
    "Target": "compressor.pipeline.settings",
    "apply_plan": "compressor.pipeline.compress",
    "compress": "compressor.pipeline.compress",
    "load_compressed": "compressor.pipeline.delivery.weights",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("compressor.version").VERSION
    if name not in _HOMES:
        raise AttributeError(f"module 'compressor' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
