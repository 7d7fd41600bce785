"""Networks of torchvision that cannot be compressed, recognized all the same, so that a person is told why."""

from compressor.network.architectures import Fingerprint, Task

# Parts of tensors' names that no network of another family has; the first that is there decides.
FAMILIES: tuple[tuple[str, str, Task], ...] = (("update_block.flow_head.", "RAFT", "optical_flow"),)


def recognize_other(shapes: Fingerprint) -> tuple[str, Task] | None:
    """The family of the network that has these tensors, and what it is for; None for none that is known.

    Args:
        shapes: of the file's tensors, by name, under any prefix.
    """
    for part, family, task in FAMILIES:
        if any(f".{part}" in f".{name}" for name in shapes):
            return family, task
    return None
