"""Heads that were for training alone, which a network for deployment need not have."""

from torch import nn

# Classes of torchvision whose forward goes without the head where it is None; by name: torchvision is loaded late.
AUXILIARY = {"FCN": "aux_classifier", "DeepLabV3": "aux_classifier"}
MODULE = "torchvision.models.segmentation"


def drop_auxiliary(network: nn.Module) -> list[str]:
    """Remove a segmentation network's auxiliary head in place; the names of the modules that went."""
    kind = type(network)
    name = AUXILIARY.get(kind.__name__) if kind.__module__.startswith(MODULE) else None
    if name is None or getattr(network, name, None) is None:
        return []
    setattr(network, name, None)
    return [name]
