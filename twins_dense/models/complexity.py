"""Numbers of parameters and multiply-accumulates of a model."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(net: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in net.parameters())


def count_macs(net: nn.Module, size: tuple[int, int]) -> int:
    """Return the number of multiply-accumulates for one image, without running the model.

    Every convolution and matrix product counts, including those of attention. The published numbers for Twins are
    lower, because they omit the products of attention.

    Args:
        net: Model from `create_backbone` or `create_classifier`. It is not changed.
        size: Height and width of the image in pixels.
    """
    net = copy.deepcopy(net).to("meta").eval()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        net(torch.empty(1, 3, *size, device="meta"))
    return counter.get_total_flops() // 2
