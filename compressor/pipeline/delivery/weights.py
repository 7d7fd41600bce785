"""compressed.safetensors: the compressed network for torch, and how to have it back."""

import copy
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from compressor.errors import InputError
from compressor.failures import blaming
from compressor.files.tensors import read_tensors
from compressor.network.attention import open_attention
from compressor.network.detection.proposals import with_proposals
from compressor.network.inputs import of_one_input
from compressor.network.serialization import put_together, save_network
from compressor.outputs.auxiliary import AUXILIARY, drop_auxiliary
from compressor.pipeline.outputs import WEIGHTS

INPUT_SHAPE = "input_shape"  # in the metadata: attention shows only on an input how it is called


def save_compressed(original: nn.Module, network: nn.Module, example: Tensor, folder: Path) -> None:
    """Write the compressed network into the run's folder, with what its changed layers are.

    Args:
        original: the network before, prepared as for a run.
        network: the compressed one.
        example: one input (1, ...).
        folder: of the run.
    """
    save_network(original, network, folder / WEIGHTS, {INPUT_SHAPE: json.dumps(list(example.shape[1:]))})


def load_compressed(model: nn.Module, folder: str | Path) -> nn.Module:
    """The compressed network of a run, as a torch module to use, train or export.

    Args:
        model: the network that was compressed, or one of its architecture with any weights (but a detector of two
            stages with its own: it proposes the boxes); left untouched.
        folder: of the run.

    Returns:
        The network on the CPU, in eval mode, which returns what `model` does; a detector its raw outputs.

    Raises:
        InputError: there is no compressed.safetensors, or it is of another network.
    """
    path = Path(folder) / WEIGHTS
    weights, texts = read_tensors(path, "compressed network")
    with blaming(lambda _: InputError(f"{path} does not hold a network compressed from this one")):
        original = with_proposals(of_one_input(copy.deepcopy(model)).eval()).cpu()
        if not {name.partition(".")[0] for name in weights} & set(AUXILIARY.values()):
            drop_auxiliary(original)
        example = torch.zeros(1, *json.loads(texts[INPUT_SHAPE]))
        return put_together(open_attention(original, example), weights, texts)
