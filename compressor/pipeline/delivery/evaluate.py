"""The compressed network on the test images, which nothing was fitted to or chosen by."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from compressor.fidelity.decisions import decide, share
from compressor.fidelity.evaluation import TestOutputs, make_fidelity
from compressor.fidelity.function_norm import FunctionNorm
from compressor.fidelity.risk import compare_risks
from compressor.pipeline.context import Context
from compressor.pipeline.stage import Stage
from compressor.pipeline.state import State
from compressor.schema import Pair


@dataclass(frozen=True)
class Evaluate(Stage):
    """Fills in `test`, and with labels `top1` and `risk`; the network then moves to the CPU, as the original does."""

    def run(self, context: Context, state: State) -> State:
        test, top1, risk = _evaluate(context, state.network)
        context.original.cpu()
        return replace(state, network=state.network.cpu(), test=test, top1=top1, risk=risk)


def _evaluate(context: Context, network: nn.Module) -> tuple[TestOutputs, Pair[float] | None, Pair[float] | None]:
    """Function norm, top-1 and cross-entropy on the test images."""
    with context.progress.stage(f"evaluating on {len(context.test_images)} test images"):
        norm = FunctionNorm(context.original, context.test_images, context.device)
        every = torch.arange(len(context.test_images))
        outputs = norm.outputs(network, every)
    squares = torch.from_numpy(norm.compare(outputs, every))
    outputs, targets = outputs.cpu(), norm.targets.cpu()
    fidelity = make_fidelity(squares, norm.output_energy, outputs, targets)
    labels = norm.labels
    evaluated = TestOutputs(targets, outputs, fidelity, labels)
    if labels is None:
        return evaluated, None, None
    top1 = Pair[float](original=share(decide(targets) == labels), compressed=share(decide(outputs) == labels))
    return evaluated, top1, compare_risks(targets, outputs, labels)
