"""Nodes that compute where features are looked up: boxes and the numbers of their images, or points of a grid.

In 8 bits numbers of images would end at those of the calibration's batches, and boxes and points would be rounded to a
255th of an image's side.
"""

import onnx

from exporters.precision.sensitivity import WEIGHTED

LOOKUPS = ("RoiAlign", "GridSample")  # take features first, and then the places
ENDS = (*WEIGHTED, "Shape")  # behind which there are features, not places


def place_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of all nodes between layers, or the network's input, and the places that features are looked up at."""
    makers = {name: node for node in model.graph.node for name in node.output}
    waiting = [name for node in model.graph.node if node.op_type in LOOKUPS for name in node.input[1:]]
    found: dict[str, None] = {}
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and node.name not in found and node.op_type not in ENDS:
            found[node.name] = None
            waiting += node.input
    return list(found)
