"""Networks of torchvision that cannot be compressed, recognized all the same, so that a person is told why."""

import inspect

import torch

from compressor.network.architectures import (
    Fingerprint,
    SkipParameterData,
    Task,
    import_torchvision,
    list_task,
    shapes_of,
)

OTHERS: tuple[Task, ...] = ("detection", "video", "optical_flow")


def recognize_other(shapes: Fingerprint) -> tuple[str, Task] | None:
    """The network whose tensors have these names, and of several the one with most of the shapes; None for none.

    Args:
        shapes: of the file's tensors, by name.
    """
    found: list[tuple[int, str, Task]] = []
    for task in OTHERS:
        for arch in list_task(task):
            expected = _shapes(arch)
            if expected.keys() <= shapes.keys():
                found.append((sum(shapes[name] == shape for name, shape in expected.items()), arch, task))
    if not found:
        return None
    _, arch, task = max(found)
    return arch, task


def _shapes(arch: str) -> Fingerprint:
    models = import_torchvision().models
    builder = models.get_model_builder(arch)
    arguments = {"weights_backbone": None} if "weights_backbone" in inspect.signature(builder).parameters else {}
    with SkipParameterData(), torch.random.fork_rng(devices=[]):
        return shapes_of(models.get_model(arch, weights=None, **arguments).state_dict())
