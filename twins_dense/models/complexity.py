"""Parameters and multiply-accumulates, counted without computing anything."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(net: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in net.parameters())


def count_macs(net: nn.Module, size: tuple[int, int]) -> int:
    """Multiply-accumulates of one image: every convolution and matrix product, those of attention included.

    Published Twins numbers leave the products of attention out and are lower.

    Args:
        net: from `create_backbone` or `create_classifier`; not changed.
        size: (height, width) of the image in pixels.
    """
    net = copy.deepcopy(net).to("meta").eval()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        net(torch.empty(1, 3, *size, device="meta"))
    return counter.get_total_flops() // 2
