"""A RAFT of torchvision's classes with 60,000 parameters."""

from typing import Any

import torch
from torch import nn

from compressor.network.clips.flow import FlowNetwork


def tiny_raft() -> Any:
    """In eval mode; built by what `--arch` can call."""
    from torchvision.models.optical_flow import raft

    torch.manual_seed(0)
    options: dict[str, Any] = {"block": raft.BottleneckBlock, "layers": (8, 8, 12, 16, 40)}
    correlations = raft.CorrBlock(num_levels=4, radius=2)
    motion = raft.MotionEncoder(
        in_channels_corr=correlations.out_channels, corr_layers=(24,), flow_layers=(16, 12), out_channels=20
    )
    size = motion.out_channels + 16
    recurrent = raft.RecurrentBlock(input_size=size, hidden_size=24, kernel_size=(3,), padding=(1,))
    network = raft.RAFT(
        feature_encoder=raft.FeatureEncoder(norm_layer=nn.InstanceNorm2d, **options),
        context_encoder=raft.FeatureEncoder(norm_layer=None, **options),
        corr_block=correlations,
        update_block=raft.UpdateBlock(
            motion_encoder=motion, recurrent_block=recurrent, flow_head=raft.FlowHead(in_channels=24, hidden_size=24)
        ),
    )
    return network.eval().requires_grad_(False)


def two_updates() -> FlowNetwork:
    """The tiny one as a network of clips."""
    return FlowNetwork(tiny_raft(), num_updates=2)
