"""TwinsBackbone and create_backbone. Tests that both families share are in contracts.BackboneContract."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from contracts import (
    SLIM_PCPVT,
    SLIM_SVT,
    TINY_PCPVT,
    TINY_SVT,
    VARIANTS,
    WINDOW_PADDINGS,
    BackboneContract,
    random_backbone,
    shapes_of,
    state_dict_shapes,
    without_initialisation,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import twins_dense as td
from twins_dense.errors import TwinsError
from twins_dense.models.backbone import init_for_padding
from twins_dense.models.layers import Block, drop_path


class TestPcpvt(BackboneContract):
    tiny = TINY_PCPVT
    slim = SLIM_PCPVT

    @pytest.mark.parametrize("window_padding", ["zeros"])  # the others would compile the same graph again
    def test_compiles_without_graph_breaks(self, window_padding: str) -> None:
        super().test_compiles_without_graph_breaks(window_padding)

    @torch.no_grad()
    def test_window_padding_is_ignored(self) -> None:
        images = torch.randn(1, 3, 96, 131)
        zeros, mask, upstream = (random_backbone(self.tiny, window_padding=mode)(images) for mode in WINDOW_PADDINGS)
        for level, second, third in zip(zeros, mask, upstream, strict=True):
            assert torch.equal(level, second) and torch.equal(level, third)


class TestSvt(BackboneContract):
    tiny = TINY_SVT
    slim = SLIM_SVT

    @pytest.mark.parametrize(
        ("height", "width", "equal", "different"),
        [
            (80, 160, ("zeros", "mask"), None),  # no padding at any stage
            (64, 160, ("zeros", "upstream_mask"), "mask"),  # padded rows only
            (160, 72, ("zeros", "upstream_mask"), "mask"),  # padded columns only
            (96, 131, ("mask", "upstream_mask"), "zeros"),  # both
        ],
    )
    @torch.no_grad()
    def test_when_the_window_paddings_differ(
        self, height: int, width: int, equal: tuple[str, str], different: str | None
    ) -> None:
        images = torch.randn(1, 3, height, width)
        levels = {mode: random_backbone(self.tiny, window_padding=mode)(images) for mode in WINDOW_PADDINGS}
        for index in range(3):
            first, second = (levels[mode][index] for mode in equal)
            torch.testing.assert_close(first, second, rtol=0, atol=0)
            if different is not None:
                assert (levels[different][index] - first).abs().max() > 1e-3
            else:
                assert torch.equal(levels["upstream_mask"][index], first)


@given(height=st.integers(32, 150), width=st.integers(32, 150), batch=st.integers(1, 3))
@settings(max_examples=20)
def test_level_shapes(height: int, width: int, batch: int) -> None:
    with torch.no_grad():
        levels = random_backbone(SLIM_SVT, window_padding="mask")(torch.randn(batch, 3, height, width))
    shapes = [(batch, c, height // s, width // s) for c, s in ((8, 4), (12, 8), (20, 16), (28, 32))]
    assert [tuple(level.shape) for level in levels] == shapes
    assert all(level.isfinite().all() for level in levels)


@pytest.mark.parametrize("variant", ["pcpvt_small", "svt_small"])
@torch.no_grad()
def test_smallest_image_of_a_published_variant(variant: str) -> None:
    net = without_initialisation(lambda: td.create_backbone(variant)).eval()
    assert [tuple(level.shape[2:]) for level in net(torch.zeros(1, 3, 32, 32))] == [(8, 8), (4, 4), (2, 2), (1, 1)]
    with pytest.raises(td.TwinsError, match="at least 32x32"):
        net(torch.zeros(1, 3, 31, 32))


@pytest.mark.parametrize("kind", ["official_det", "official_seg"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_state_dict_is_the_official_one(variant: str, kind: str) -> None:
    """The official dense models also have the classifier's `norm` and `head`, but do not use them."""
    official = dict(state_dict_shapes(kind, variant))
    for unused in ("norm.weight", "norm.bias", "head.weight", "head.bias"):
        del official[unused]
    with torch.device("meta"):
        assert shapes_of(td.create_backbone(variant)) == official


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("level_norm", [True, False])
def test_level_norm(variant: str, level_norm: bool) -> None:
    with torch.device("meta"):
        net = td.create_backbone(variant, level_norm=level_norm, out_indices=(1, 2))
    norms = {f"norm_list.{stage}.{name}" for stage in range(3) for name in ("weight", "bias")}
    assert {name for name in net.state_dict() if name.startswith("norm_list")} == (norms if level_norm else set())


# Settings


@pytest.mark.parametrize("out_indices", [(), (4,), (-1,), (0, 0), (1, 0), (0, 1, 2, 3, 4)])
def test_bad_out_indices(out_indices: tuple[int, ...]) -> None:
    with pytest.raises(td.TwinsError) as caught:
        td.create_backbone(SLIM_SVT, out_indices=out_indices)
    assert f"out_indices={out_indices}" in str(caught.value)
    assert "give one or more stages of (0, 1, 2, 3) in ascending order" in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "shown", "remedy"),
    [
        ({"window_padding": "zero"}, "window_padding='zero'", "choose one of 'zeros', 'mask', 'upstream_mask'"),
        ({"window_padding": None}, "window_padding=None", "choose one of 'zeros', 'mask', 'upstream_mask'"),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0", "give a probability in [0, 1)"),
        ({"drop_path_rate": -0.1}, "drop_path_rate=-0.1", "give a probability in [0, 1)"),
        ({"drop_path_rate": math.nan}, "drop_path_rate=nan", "give a probability in [0, 1)"),
    ],
)
def test_bad_settings(setting: dict[str, Any], shown: str, remedy: str) -> None:
    with pytest.raises(td.TwinsError) as caught:
        td.create_backbone(SLIM_SVT, **setting)
    assert shown in str(caught.value) and remedy in str(caught.value) and "\n" not in str(caught.value)


def test_misspelt_variant() -> None:
    with pytest.raises(td.TwinsError, match="unknown variant 'svt_smal': did you mean 'svt_small'"):
        td.create_backbone("svt_smal")


def test_misspelt_keyword() -> None:
    with pytest.raises(TypeError, match="window_paddings"):
        td.create_backbone(SLIM_SVT, window_paddings="zeros")  # type: ignore[call-arg]


# Stochastic depth


def test_drop_path_zeroes_whole_images_and_keeps_the_mean() -> None:
    x = torch.randn(4001, 2, 3).abs() + 1
    out = drop_path(x, 0.3, training=True)
    kept = out.flatten(1).abs().sum(1) > 0
    assert not out[~kept].count_nonzero()
    torch.testing.assert_close(out[kept], x[kept] / 0.7)
    # Five standard deviations of a binomial share.
    assert abs(kept.float().mean().item() - 0.7) < 5 * math.sqrt(0.7 * 0.3 / 4001)


@pytest.mark.parametrize(("rate", "training"), [(0.0, True), (0.9, False)])
def test_drop_path_is_off(rate: float, training: bool) -> None:
    x = torch.randn(7, 2, 3)
    assert torch.equal(drop_path(x, rate, training), x)


@pytest.mark.parametrize("spec", [TINY_PCPVT, TINY_SVT], ids=lambda spec: spec.name)
@torch.no_grad()
def test_drop_path_acts_once_on_each_branch(spec: td.TwinsSpec) -> None:
    """Both branches add exactly 1. At rate 0.5, a kept branch adds 2; if it were scaled twice, it would add 4."""
    block = Block(
        spec.stages[0], 0, drop_path_rate=0.5, window_padding="zeros", norm_eps=1e-6, reduction_norm_eps=1e-5
    ).train()
    for last in (block.attn.proj, block.mlp.fc2):
        nn.init.zeros_(last.weight)
        nn.init.ones_(last.bias)
    out = block(torch.zeros(2000, 3, 3, 6))
    assert torch.equal(out, out[:, :1, :1, :1].expand_as(out))
    values, counts = out[:, 0, 0, 0].unique(return_counts=True)
    assert values.tolist() == [0, 2, 4]
    # One in four, two, one in four: two independent draws. Within five standard deviations.
    assert (counts / 2000 - torch.tensor([0.25, 0.5, 0.25])).abs().max() < 5 * math.sqrt(0.25 / 2000)


@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (0, 1)])
def test_drop_path_rates_grow_linearly(out_indices: tuple[int, ...]) -> None:
    """Rates are linear over all nine blocks of SLIM_SVT (2, 2, 3, 2), even if the last stages are not built."""
    net = td.create_backbone(SLIM_SVT, drop_path_rate=0.4, out_indices=out_indices)
    rates = [block.drop_path_rate for stage in net.blocks for block in stage]  # type: ignore[attr-defined]
    np.testing.assert_allclose(rates, np.linspace(0, 0.4, 9)[: len(rates)], rtol=1e-12)
    assert len(rates) == (9 if out_indices[-1] == 3 else 4)


def test_drop_path_of_a_spec_with_one_block() -> None:
    spec = td.TwinsSpec("one", (td.StageSpec(6, 1, 2, 2, 1, 4, None),), level_norm=False)
    net = td.create_backbone(spec, out_indices=(0,), drop_path_rate=0.4)
    assert net.blocks[0][0].drop_path_rate == 0.0  # type: ignore[index]


def test_same_seed_same_training_step() -> None:
    net = random_backbone(TINY_SVT, drop_path_rate=0.5).train()
    images = torch.randn(5, 3, 48, 67)
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(net(images)[-1])
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


# Initialisation

WIDE = td.TwinsSpec.from_columns(
    "wide",
    dims=(48, 96),
    num_heads=(2, 3),
    mlp_ratios=(4, 4),
    depths=(2, 2),
    sr_ratios=(4, 2),
    patch_sizes=(4, 2),
    window_size=7,
)


def test_initialisation() -> None:
    net = td.create_backbone(WIDE, out_indices=(0, 1))
    num_checked = 0
    for name, parameter in net.named_parameters():
        values = parameter.detach()
        if name.endswith("bias"):
            assert not values.count_nonzero(), name
        elif values.dim() == 1:
            assert torch.equal(values, torch.ones_like(values)), name
        else:
            if values.dim() == 4:
                groups = values.shape[0] if name.startswith("pos_block") else 1
                std = math.sqrt(2 / (values.shape[2] * values.shape[3] * values.shape[0] / groups))
            else:
                std = 0.02
            # Five standard errors of the mean and of the standard deviation.
            assert abs(values.mean().item()) < 5 * std / math.sqrt(values.numel()), name
            assert abs(values.std().item() / std - 1) < 5 / math.sqrt(2 * values.numel()), name
            num_checked += 1
    # 2 embeddings, 2 PEGs; blocks 0: qkv, proj, fc1, fc2; blocks 1: q, kv, proj, sr, fc1, fc2.
    assert num_checked == 2 + 2 + 2 * 4 + 2 * 6


def test_initialisation_follows_the_seed() -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(td.create_backbone(WIDE, out_indices=(0, 1)).state_dict()["blocks.1.1.mlp.fc1.weight"])
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


class TestFreeze:
    @pytest.mark.parametrize(("part", "num_stages"), [("stages:1", 1), ("stages:2", 2), ("backbone", 2)])
    def test_frozen_stages_stay_bit_equal(self, part: str, num_stages: int) -> None:
        """Even with weight decay; the other stages are trained."""
        net = td.create_backbone(WIDE, out_indices=(0, 1), level_norm=True, drop_path_rate=0.9)
        net.freeze(part)
        net.train()
        before = {name: value.clone() for name, value in net.state_dict().items()}
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.5)
        images = torch.rand(2, 3, 64, 64)
        for _ in range(2):
            loss = sum(level.square().mean() for level in net(images)) + 0 * torch.zeros(1, requires_grad=True)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        frozen = {name for name in before if int(name.split(".")[1]) < num_stages}
        after = net.state_dict()
        weights = {name for name in before if name.endswith("weight") and before[name].dim() > 1}
        assert {name for name in weights if torch.equal(before[name], after[name])} == weights & frozen
        assert all(torch.equal(before[name], after[name]) for name in frozen)
        assert frozen == {name for name, p in net.named_parameters() if not p.requires_grad}

    def test_no_stochastic_depth_in_frozen_stages(self) -> None:
        """`train` doesn't undo it, also in a copy, such as a moving average of the weights."""
        net = td.create_backbone(TINY_SVT, out_indices=(0, 1, 2), drop_path_rate=0.9)
        net.freeze("backbone")
        images = torch.rand(1, 3, 64, 64)
        expected = net.eval()(images)
        for other in (net, copy.deepcopy(net)):
            for _ in range(3):
                assert all(map(torch.equal, other.train()(images), expected))

    @pytest.mark.parametrize("part", ["", "stage:1", "stages", "stages:0", "stages:-1", "stages:x", "stages:9", "all"])
    def test_bad_part(self, part: str) -> None:
        with pytest.raises(TwinsError, match=re.escape(repr(part))) as caught:
            td.create_backbone(WIDE, out_indices=(0, 1)).freeze(part)
        assert "\n" not in str(caught.value) and "stages:" in str(caught.value)


def test_gradients_of_padded_images() -> None:
    """With the official initialisation, zeros around an image would make gradients hundreds of times as large."""
    norms = []
    for prepare in (lambda net: None, init_for_padding):
        torch.manual_seed(0)
        net = td.create_backbone(TINY_SVT, out_indices=(0, 1, 2), drop_path_rate=0.0)
        prepare(net)
        images = torch.zeros(1, 3, 128, 128)
        images[..., :64, :64] = torch.randn(3, 64, 64)
        torch.manual_seed(1)
        sum((level * torch.randn_like(level)).sum() for level in net(images)).backward()
        norms.append(torch.stack([p.grad.norm() for p in net.parameters()]).norm().item())
    assert norms[0] > 20 * norms[1]
