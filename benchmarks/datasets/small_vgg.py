"""A small VGG with batch normalization, trained here on an image folder of 32 x 32 pixels.

Six convolutions and three linear layers, named as torchvision names VGG's. The checkpoint holds the whole
network, since its architecture is not torchvision's.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.demo.training import OnStep, train_classifier
from compressor.files import replace_when_whole

SIZE, CLASSES = 32, 10
WIDTHS = (32, "M", 64, "M", 128, 128, "M", 256, 256, "M")
HIDDEN = 512
EPOCHS, BATCH_SIZE, MAX_LR = 6, 64, 0.05


class SmallVGG(nn.Module):
    """Images (N, 3, 32, 32) to logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models.vgg import make_layers

        self.features = make_layers(list(WIDTHS), batch_norm=True)
        self.classifier = nn.Sequential(
            nn.Linear(256 * 2 * 2, HIDDEN),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(HIDDEN, CLASSES),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 10) of normalized images (N, 3, 32, 32)."""
        return self.classifier(self.features(images).flatten(1))


def train_small_vgg(
    inputs: Tensor, labels: Tensor, epochs: int = EPOCHS, on_step: OnStep = lambda done, total, loss: None
) -> nn.Module:
    """The network trained on normalized images (n, 3, 32, 32) and labels (n,); in eval mode.

    Args:
        inputs: normalized images (n, 3, 32, 32).
        labels: their classes (n,).
        epochs: passes over the images.
        on_step: called with steps done, steps in all and the loss.
    """
    torch.manual_seed(0)
    return train_classifier(SmallVGG(), inputs, labels, epochs, BATCH_SIZE, MAX_LR, on_step)


def log(done: int, total: int, loss: float) -> None:
    """Print progress every 200 steps.

    Args:
        done: steps so far.
        total: steps in all.
        loss: cross-entropy of the step's batch.
    """
    if done % 200 == 0 or done == total:
        print(f"training a small VGG: step {done} of {total}, loss {loss:.3f}", file=sys.stderr, flush=True)


def save_small_vgg(model: nn.Module, path: Path) -> None:
    """Write the whole network, for --trust-pickle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_when_whole(path) as partial:
        torch.save(model, partial)
