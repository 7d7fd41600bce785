"""FC3, the paper's 784-1000-1000-10 network, on Fashion-MNIST as Debian packages it.

    python -m benchmarks.datasets.fashion FOLDER

The paper trains it on MNIST; Fashion-MNIST has the same shape and is in a distribution's archive (the package
`dataset-fashion-mnist`). Inputs are the pixels over 255, flat (n, 784). FOLDER gets a checkpoint for
pictures, with the whole network since its architecture is not torchvision's, and the test images in class folders.
"""

import gzip
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.demo.class_folders import write_class_folders
from benchmarks.demo.training import OnStep, train_classifier
from compressor.data.images import ImageSet
from compressor.errors import InputError
from compressor.files import replace_when_whole

FOLDER = Path("/usr/share/datasets/fashion-mnist")
CACHE = Path("build/fc3-fashion.pt")
FC3 = "fc3"  # in place of a checkpoint, in studies: the trained network with the test images
EPOCHS, BATCH_SIZE, MAX_LR = 10, 256, 0.1
PREFIXES = {True: "train", False: "t10k"}
SIDE = 28


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array in a gzipped idx file of bytes.

    Raises:
        InputError: there is no such file.
    """
    try:
        with gzip.open(path) as file:
            content = file.read()
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: install Debian's dataset-fashion-mnist") from error
    num_dims = content[3]
    shape = np.frombuffer(content, dtype=">i4", count=num_dims, offset=4)
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * num_dims).reshape(shape)


def load_fashion(train: bool, folder: Path = FOLDER) -> tuple[Tensor, Tensor]:
    """Inputs (n, 784) between 0 and 1 and labels (n,): 60,000 to train on, or the 10,000 test images.

    Raises:
        InputError: the package is not installed.
    """
    pixels = read_idx(folder / f"{PREFIXES[train]}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{PREFIXES[train]}-labels-idx1-ubyte.gz")
    inputs = torch.from_numpy(pixels.reshape(len(pixels), -1).astype(np.float32) / 255)
    return inputs, torch.from_numpy(labels.astype(np.int64))


def load_test_images(folder: Path = FOLDER) -> ImageSet:
    """The 10,000 test images as inputs (n, 784), with their labels.

    Raises:
        InputError: the package is not installed.
    """
    inputs, labels = load_fashion(train=False, folder=folder)
    return ImageSet(inputs, "Fashion-MNIST's test images", labels=labels)


def new_fc3() -> nn.Sequential:
    """784-1000-1000-10 with ReLU, untrained."""
    return nn.Sequential(nn.Linear(784, 1000), nn.ReLU(), nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, 10))


def train_fc3(
    inputs: Tensor,
    labels: Tensor,
    epochs: int = EPOCHS,
    on_step: OnStep = lambda done, total, loss: None,
) -> nn.Module:
    """FC3 trained on inputs (n, 784) and labels (n,); in eval mode.

    Args:
        inputs: normalized images (n, 784).
        labels: their classes (n,).
        epochs: passes over the images.
        on_step: called with steps done, steps in all and the loss.
    """
    torch.manual_seed(0)
    return train_classifier(new_fc3(), inputs, labels, epochs, BATCH_SIZE, MAX_LR, on_step)


def trained_fc3(cache: Path = CACHE) -> nn.Module:
    """FC3 as trained by `train_fc3`, with weights from `cache` if they are there."""
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        weights = train_fc3(*load_fashion(train=True), on_step=log).state_dict()
        with replace_when_whole(cache) as partial:
            torch.save(weights, partial)
    model = new_fc3()
    model.load_state_dict(torch.load(cache, weights_only=True))
    return model.eval()


def log(done: int, total: int, loss: float) -> None:
    """Print progress every 200 steps.

    Args:
        done: steps so far.
        total: steps in all.
        loss: cross-entropy of the step's batch.
    """
    if done % 200 == 0 or done == total:
        print(f"training FC3 on Fashion-MNIST: step {done} of {total}, loss {loss:.3f}", file=sys.stderr)


def with_picture_input(fc3: nn.Module) -> nn.Sequential:
    """FC3 on the mean colour of pictures (n, 3, 28, 28) with values between 0 and 1."""
    grey = nn.Conv2d(3, 1, 1, bias=False)
    nn.init.constant_(grey.weight, 1 / 3)
    return nn.Sequential(grey, nn.Flatten(), fc3).eval()


def write_image_folder(folder: Path) -> None:
    """Write the test images as PNG files in class subfolders 0 to 9."""
    inputs, labels = load_fashion(train=False)
    pixels = (255 * inputs).round().to(torch.uint8).reshape(-1, SIDE, SIDE).numpy()
    write_class_folders(folder, pixels, labels.numpy())


def main(folder: Path) -> None:
    """Train, write `fc3-fashion.pt` and `images/` into `folder`, and print the test accuracy."""
    folder.mkdir(parents=True, exist_ok=True)
    model = trained_fc3()
    with replace_when_whole(folder / "fc3-fashion.pt") as partial:
        torch.save(with_picture_input(model), partial)
    write_image_folder(folder / "images")
    inputs, labels = load_fashion(train=False)
    with torch.inference_mode():
        correct = float((model(inputs).argmax(1) == labels).double().mean())
    print(f"trained: {100 * correct:.1f} % of 10,000 test images recognized", file=sys.stderr)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except InputError as error:
        sys.exit(str(error))
