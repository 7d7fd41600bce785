"""Tensors are found in what a network returns, wherever they lie."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressor.errors import InputError
from compressor.outputs.structure import Output, find_outputs, named_tensors
from tests.outputs.networks import Detections, Pair, as_dict, structured

EXAMPLE = torch.zeros(1, 3, 8, 8)


@pytest.mark.parametrize(
    ("pack", "names"),
    [
        (lambda scores, maps: scores, ["logits"]),
        (lambda scores, maps: maps, ["output"]),
        (lambda scores, maps: (scores, maps), ["output0", "output1"]),
        (lambda scores, maps: [scores, [maps, scores]], ["output0", "output1.0", "output1.1"]),
        (as_dict, ["scores", "maps"]),
        (lambda scores, maps: {"out": scores, "levels": {3: maps}, "none": None}, ["out", "levels.3"]),
        (Pair, ["scores", "maps"]),
        (lambda scores, maps: Detections(scores, [maps, maps]), ["scores", "maps.0", "maps.1"]),
    ],
)
def test_names_say_where_a_tensor_lies(pack: Callable[[Tensor, Tensor], Any], names: list[str]) -> None:
    network = structured(pack)
    assert list(named_tensors(network(EXAMPLE))) == names
    assert [output.name for output in find_outputs(network, EXAMPLE)] == names


def test_positions_and_channels_of_shapes() -> None:
    shapes = {(): (1, 1), (4,): (1, 4), (7, 4): (7, 4), (5, 3, 2): (6, 5), (5, 2, 3, 2): (12, 5)}
    for shape, (positions, channels) in shapes.items():
        output = Output("x", shape, is_float=True)
        assert (output.num_positions, output.num_channels) == (positions, channels)


@pytest.mark.parametrize(
    ("pack", "words"),
    [
        (lambda scores, maps: {"count": 3}, "returns a dict without a tensor"),
        (lambda scores, maps: scores.argmax(1), "whole numbers alone"),
        (lambda scores, maps: (scores, maps.mean()), "'output1' has shape .* for a batch of 2"),
        (lambda scores, maps: list(scores), "'output0' has shape"),
    ],
)
def test_outputs_that_cannot_be_compared_are_one_sentence(pack: Callable[[Tensor, Tensor], Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        find_outputs(structured(pack), EXAMPLE)
    assert "\n" not in str(caught.value)


def test_images_that_do_not_fit_are_one_sentence() -> None:
    with pytest.raises(InputError, match="cannot take inputs of shape 1 x 3 x 8 x 8"):
        find_outputs(nn.Conv2d(1, 2, 3), EXAMPLE)


def test_a_structure_that_holds_itself_ends() -> None:
    loop: dict[str, Any] = {"a": torch.zeros(2, 3)}
    loop["loop"] = loop
    assert list(named_tensors(loop)) == ["a"]


class TwoInputs(nn.Module):
    def forward(self, image: Tensor, vector: Tensor, scale: float = 1.0) -> Tensor:
        return scale * image.mean((2, 3)) + vector


def test_a_network_of_two_inputs_is_refused_with_what_can_be_done() -> None:
    with pytest.raises(
        InputError, match=r"needs 2 inputs \(image, vector\).*wrap it in a module whose forward takes one"
    ):
        find_outputs(TwoInputs(), torch.zeros(1, 3, 8, 8))
