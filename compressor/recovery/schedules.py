"""Learning rates of fine-tuning, by torch's schedulers."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, StepLR

from compressor.recovery.records import Schedule

MIN_CYCLIC_RATE = 1e-7
STEP_FACTOR = 0.1


def make_scheduler(optimizer: Optimizer, schedule: Schedule, steps_per_epoch: int, epochs: int) -> LRScheduler:
    """The scheduler that is stepped once after every step of the optimizer, whose rate is the highest.

    step: a tenth after each epoch; cosine: from the highest rate to zero along half a cosine; cyclic: from 1e-7 to the
    highest rate and back once an epoch (Smith 2017), a step having the rate of its middle. torch's CyclicLR takes that
    of its beginning, which wastes the first.

    Args:
        optimizer: its rate is the highest.
        schedule: by name.
        steps_per_epoch: steps of the optimizer in an epoch.
        epochs: of the whole training.
    """
    if schedule == "step":
        return StepLR(optimizer, steps_per_epoch, STEP_FACTOR)
    if schedule == "cosine":
        return CosineAnnealingLR(optimizer, steps_per_epoch * epochs)
    lowest = MIN_CYCLIC_RATE / optimizer.param_groups[0]["lr"]

    def share(step: int) -> float:
        """Of the highest rate, by the step counted over all epochs."""
        height = 1 - abs(2 * (step % steps_per_epoch + 0.5) / steps_per_epoch - 1)
        return lowest + (1 - lowest) * height

    return LambdaLR(optimizer, share)
