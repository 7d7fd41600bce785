"""The multiple to which ranks are rounded, measured: latency of factorized layers against their rank.

Kernels work on blocks of channels. A rank just above a multiple of the block pays for a whole further block, and the
fastest memory layouts of a CPU take some multiples only. Which ones depends on processor, provider and version, so all
ranks of a range are timed in turn, for a few shapes of layers.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from compressor.cost.layer_latency import time_in_turn
from exporters.session import CPU

CANDIDATES = (1, 2, 4, 8, 16)
RANKS = tuple(range(12, 52))
TOLERANCE = 0.01  # a smaller multiple is preferred to a larger one that is faster by no more than this share
# Channels and side of the input of a pair of convolutions, kh x 1 and 1 x kw, as the spatial method builds them.
SHAPES = ((64, 28), (128, 14), (256, 7))
OPSET, IR_VERSION = 17, 9


def measure_rank_multiple(
    threads: int = 1,
    provider: str = CPU,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[int, dict[int, float]]:
    """The multiple to which ranks should be rounded: the smallest candidate within 1 % of the best.

    Args:
        threads: threads of ONNX Runtime.
        provider: provider of ONNX Runtime, one of `available_providers()`.
        on_step: called with the number of shapes done and of all shapes.

    Returns:
        The multiple, and for every candidate the mean latency at its multiples, as a share of what a straight line
        through the latencies of all ranks gives: 0.95 means 5 % faster than ranks at large.
    """
    shares = []
    for count, (channels, side) in enumerate(SHAPES):
        on_step(count, len(SHAPES))
        shares.append(shares_of_multiples(measure_ranks(channels, side, RANKS, threads, provider)))
    means = {number: float(np.mean([share[number] for share in shares])) for number in CANDIDATES}
    best = min(means.values())
    return next(number for number in CANDIDATES if means[number] <= best + TOLERANCE), means


def shares_of_multiples(latencies_ms: Mapping[int, float]) -> dict[int, float]:
    """For each candidate the mean, over its multiples, of the latency as a share of a straight line's."""
    ranks = np.array(list(latencies_ms), dtype=float)
    values = np.array(list(latencies_ms.values()))
    line = np.polyval(np.polyfit(ranks, values, 1), ranks)
    return {number: float((values / line)[ranks % number == 0].mean()) for number in CANDIDATES}


def measure_ranks(
    channels: int, side: int, ranks: Sequence[int], threads: int, provider: str = CPU
) -> dict[int, float]:
    """Median latency in milliseconds by rank; the ranks are run in turn, in a new order each round.

    Args:
        channels: of the layer, in and out.
        side: of its input, in pixels.
        ranks: to compare.
        threads: of the runtime.
        provider: where it runs.
    """
    value = np.random.default_rng(0).standard_normal((1, channels, side, side), dtype=np.float32)
    models = [pair_of_convolutions(channels, side, rank) for rank in ranks]
    return dict(zip(ranks, time_in_turn(models, value, threads, provider), strict=True))


def pair_of_convolutions(channels: int, side: int, rank: int) -> bytes:
    """The content of an ONNX file: 3 x 1 to `rank` channels and 1 x 3 back, between two other layers.

    Args:
        channels: of all layers, but for those between the pair.
        side: of the input (N, channels, side, side).
        rank: channels between the pair.
    """
    nodes: list[NodeProto] = []
    weights = []
    value = "x"
    steps = (
        (channels, channels, 1, 1),
        (channels, rank, 3, 1),
        (rank, channels, 1, 3),
        (channels, channels, 1, 1),
    )
    rng = np.random.default_rng(0)
    for number, (num_in, num_out, height, width) in enumerate(steps):
        kernel = 0.05 * rng.standard_normal((num_out, num_in, height, width), dtype=np.float32)
        weights.append(numpy_helper.from_array(kernel, f"w{number}"))
        pads = [height // 2, width // 2] * 2
        nodes.append(helper.make_node("Conv", [value, f"w{number}"], [f"c{number}"], pads=pads))
        nodes.append(helper.make_node("Relu", [f"c{number}"], [f"r{number}"]))
        value = f"r{number}" if number != 1 else f"c{number}"
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, side, side])
    output = helper.make_tensor_value_info(value, TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "pair", [image], [output], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    return model.SerializeToString()
