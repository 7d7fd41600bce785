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
STARTS = {"detection": ("rpn.", "head."), "optical_flow": ("feature_encoder.",)}  # of names that such networks have
CLIP_AXES = 5  # of the weights of convolutions over time


def recognize_other(shapes: Fingerprint) -> tuple[str, Task] | None:
    """The network whose tensors have these names, and of several the one with most of the shapes; None for none.

    Args:
        shapes: of the file's tensors, by name.
    """
    found: list[tuple[int, str, Task]] = []
    for task in filter(lambda each: _may_be(shapes, each), OTHERS):  # building all networks would take long
        for arch in list_task(task):
            expected = _shapes(arch)
            if expected.keys() <= shapes.keys():
                found.append((sum(shapes[name] == shape for name, shape in expected.items()), arch, task))
    if not found:
        return None
    _, arch, task = max(found)
    return arch, task


def _may_be(shapes: Fingerprint, task: Task) -> bool:
    if task == "video":
        return any(len(shape) == CLIP_AXES for shape in shapes.values())
    return any(name.startswith(STARTS[task]) for name in shapes)


def _shapes(arch: str) -> Fingerprint:
    models = import_torchvision().models
    builder = models.get_model_builder(arch)
    arguments = {"weights_backbone": None} if "weights_backbone" in inspect.signature(builder).parameters else {}
    with torch.random.fork_rng(devices=[]):
        try:
            with SkipParameterData():
                network = models.get_model(arch, weights=None, **arguments)
        except RuntimeError:  # some initialize their parameters with numbers of their own
            network = models.get_model(arch, weights=None, **arguments)
    return shapes_of(network.state_dict())
