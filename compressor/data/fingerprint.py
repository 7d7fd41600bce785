"""Hashes of weights and images, by which a resumed run recognizes its inputs."""

import hashlib
from collections.abc import Iterable

from torch import Tensor

from compressor.data.images import ImageSet


def hash_tensors(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of the tensors' bytes, in order."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def hash_images(images: ImageSet) -> str:
    """SHA-256 of the normalized inputs."""
    return hash_tensors(images.batch(slice(start, start + 64)) for start in range(0, len(images), 64))
