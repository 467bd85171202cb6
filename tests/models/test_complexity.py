"""Counting does not change the model. The counts themselves are tested through `twins-dense info`."""

from __future__ import annotations

import torch
from torch import nn

from twins_dense.models.complexity import count_macs, count_parameters


def test_known_answer() -> None:
    """A 2x2 convolution with stride 2 on a 6x10 map has 3 * 5 outputs of 7 channels, each from 3 * 2 * 2 inputs."""
    net = nn.Conv2d(3, 7, 2, stride=2)
    assert count_macs(net, (6, 10)) == 3 * 5 * 7 * 3 * 2 * 2
    assert count_parameters(net) == 7 * 3 * 2 * 2 + 7


def test_the_model_stays_as_it_is() -> None:
    net = nn.Conv2d(3, 7, 2).train()
    before = net.weight.clone()
    count_macs(net, (8, 8))
    assert net.training and torch.equal(net.weight, before)
