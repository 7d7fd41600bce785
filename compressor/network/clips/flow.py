"""Optical flow as a network of one input: RAFT (Teed and Deng 2020) on clips of two frames.

RAFT looks up how alike both frames are where its flow points, and updates the flow: again and again by the same layers,
which are one layer with several calls in everything that is measured and fitted here.
"""

import copy
from typing import Any

from torch import Tensor, nn

NUM_FRAMES = 2
NUM_CHANNELS = 2  # of a flow: to the right and down
NUM_UPDATES = 12  # as torchvision's
STRIDE = 8  # pixels between the places at which features are compared
OUTPUT = "flow"


class FlowNetwork(nn.Module):
    """How far each pixel of one frame has moved in the next: "flow" (N, 2, H, W), in pixels to the right and down.

    It takes clips (N, 3, 2, H, W) and has the parts of torchvision's RAFT under the same names. Gradients pass through
    all updates, which torchvision cuts apart for training: here they tell how the outputs move.

    Args:
        raft: torchvision's, with which it shares all parts.
        num_updates: of the flow, which starts from zero.
    """

    def __init__(self, raft: Any, num_updates: int = NUM_UPDATES) -> None:
        super().__init__()
        self.feature_encoder, self.context_encoder = raft.feature_encoder, raft.context_encoder
        self.corr_block, self.update_block = raft.corr_block, raft.update_block
        self.mask_predictor = raft.mask_predictor
        self.num_updates = num_updates

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        """The flow after the last update.

        Raises:
            ValueError: clips are not of two frames, or of sides that torchvision's RAFT does not take.
        """
        from torchvision.models.optical_flow.raft import make_coords_grid, upsample_flow

        self._require_pairs(clips)
        context, correlations = self.context_encoder(clips[:, :, 0]), self._correlations(clips)
        size = self.update_block.hidden_state_size
        state, context = context[:, :size].tanh(), context[:, size:].relu()
        start = make_coords_grid(context.shape[0], *context.shape[2:]).to(context)
        places = start
        for _ in range(self.num_updates):
            state, step = self.update_block(state, context, correlations.index_pyramid(places), places - start)
            places = places + step
        mask = None if self.mask_predictor is None else self.mask_predictor(state)
        return {OUTPUT: upsample_flow(places - start, mask)}

    def _correlations(self, clips: Tensor) -> Any:
        """The pyramid of products of both frames' features, which is kept in a block of its own for this pass."""
        features = self.feature_encoder(clips.movedim(2, 1).flatten(0, 1))  # an image's frames in a row
        first, second = features.reshape(-1, NUM_FRAMES, *features.shape[1:]).unbind(1)
        block = copy.copy(self.corr_block)
        block.build_pyramid(first, second)
        return block

    def _require_pairs(self, clips: Tensor) -> None:
        frames, height, width = (int(size) for size in clips.shape[2:])
        if frames != NUM_FRAMES:
            raise ValueError(f"flow is between {NUM_FRAMES} frames, not {frames}")
        least = STRIDE * 2**self.corr_block.num_levels  # the pyramid's last level then has two places a side
        if height % STRIDE or width % STRIDE or min(height, width) < least:
            raise ValueError(f"sides must be multiples of {STRIDE} from {least} on, not {height} x {width}")


def flow_network(module: nn.Module) -> FlowNetwork | None:
    """The network of a module that is one, or torchvision's RAFT, or of a class made from that; None for others."""
    if isinstance(module, FlowNetwork):
        return module
    names = [f"{kind.__module__}.{kind.__name__}" for kind in type(module).__mro__]
    return FlowNetwork(module) if "torchvision.models.optical_flow.raft.RAFT" in names else None
