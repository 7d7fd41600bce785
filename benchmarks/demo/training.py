"""Training of the small classifiers for the demo and the studies."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

OnStep = Callable[[int, int, float], None]


def train_classifier(
    model: nn.Module, inputs: Tensor, targets: Tensor, epochs: int, batch_size: int, max_lr: float, on_step: OnStep
) -> nn.Module:
    """`model` trained by SGD on one cycle of learning rates; in eval mode.

    The inputs come in the same order in every run.

    Args:
        model: trained in place.
        inputs: what it takes (n, ...).
        targets: classes (n,).
        epochs: passes over the inputs.
        batch_size: inputs per step.
        max_lr: the highest learning rate of the cycle.
        on_step: called with steps done, steps in all and the loss.
    """
    model.train()
    steps = epochs * (len(inputs) // batch_size)
    optimizer = torch.optim.SGD(model.parameters(), lr=max_lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=max_lr, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        chosen = torch.randint(len(inputs), (batch_size,), generator=generator)
        loss = nn.functional.cross_entropy(model(inputs[chosen]), targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        on_step(step + 1, steps, loss.item())
    return model.eval()
