"""A small real network without downloads: torchvision's ResNet-18 on scikit-learn's handwritten digits.

Used by `bocompress demo` and by the tests. 1,797 scanned digits of 8 x 8 pixels are enlarged to 32 x 32; the last 500
stay out of training and are written as an image folder.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from benchmarks.demo.class_folders import write_class_folders
from benchmarks.demo.training import OnStep, train_classifier
from compressor.files import replace_when_whole

CHECKPOINT, IMAGES = "resnet18-digits.pt", "images"  # in the folder that `main` writes
SIZE = 32
NUM_TEST_IMAGES = 500
BATCH_SIZE, MAX_LR = 64, 0.05
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load_digits_images() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All digits as grey images (1797, 32, 32) and their labels (1797,), in a fixed random order."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images = np.round(digits.images[order] * (255 / 16)).astype(np.uint8)
    enlarged = [np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BILINEAR)) for image in images]
    return np.stack(enlarged), digits.target[order].astype(np.int64)


def as_inputs(images: NDArray[np.uint8]) -> Tensor:
    """Grey images (n, 32, 32) as normalized colour inputs (n, 3, 32, 32)."""
    pixels = torch.from_numpy(images.copy()).float().div(255)[:, None].expand(-1, 3, -1, -1)
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def train_resnet18(epochs: int, on_step: OnStep = lambda done, total, loss: None) -> nn.Module:
    """torchvision's resnet18 with ten outputs, trained on all but the last 500 digits; in eval mode."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    images, labels = load_digits_images()
    inputs, targets = as_inputs(images[:-NUM_TEST_IMAGES]), torch.from_numpy(labels[:-NUM_TEST_IMAGES])
    model = resnet18(num_classes=10)
    return train_classifier(model, inputs, targets, epochs, BATCH_SIZE, MAX_LR, on_step)


def write_image_folder(folder: Path, count: int = NUM_TEST_IMAGES) -> None:
    """Write the last `count` digits as PNG files in class subfolders 0 to 9."""
    images, labels = load_digits_images()
    write_class_folders(folder, images[-count:], labels[-count:])


def save_checkpoint(model: nn.Module, path: Path) -> None:
    """Write the state_dict, as a user's training script would."""
    with replace_when_whole(path) as partial:
        torch.save(model.state_dict(), partial)


def main(folder: Path, epochs: int = 8) -> None:
    """Train, write CHECKPOINT and IMAGES into `folder`, and print the test accuracy."""

    def log(done: int, total: int, loss: float) -> None:
        if done % 20 == 0 or done == total:
            print(f"training resnet18 on handwritten digits: step {done} of {total}, loss {loss:.3f}", file=sys.stderr)

    folder.mkdir(parents=True, exist_ok=True)
    model = train_resnet18(epochs, log)
    save_checkpoint(model, folder / CHECKPOINT)
    write_image_folder(folder / IMAGES)
    images, labels = load_digits_images()
    with torch.inference_mode():
        decisions = model(as_inputs(images[-NUM_TEST_IMAGES:])).argmax(1)
    correct = float((decisions == torch.from_numpy(labels[-NUM_TEST_IMAGES:])).double().mean())
    print(f"trained: {100 * correct:.1f} % of {NUM_TEST_IMAGES} test digits recognized", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
