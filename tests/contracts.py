"""Shared parts of the tests: small specs, random weights, formulas, and a contract for both Twins families."""

from __future__ import annotations

import gzip
import json
import math
import re
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import pytest
import torch
from reference import slow_twins
from torch import Tensor, nn

import twins_dense as td

Net = TypeVar("Net", bound=nn.Module)

GOLDEN = Path(__file__).parent / "golden"
WINDOW_PADDINGS = ("zeros", "mask", "upstream_mask")
VARIANTS = ("pcpvt_small", "pcpvt_base", "pcpvt_large", "svt_small", "svt_base", "svt_large")

# Two small Twins whose numbers differ as much as possible, so that swapped axes and mixed-up stages are noticed.
TINY_PCPVT = td.TwinsSpec.from_columns(
    "tiny_pcpvt",
    dims=(6, 10, 14),
    num_heads=(2, 5, 7),
    mlp_ratios=(3, 2, 1.5),
    depths=(2, 1, 3),
    sr_ratios=(3, 2, 1),
    patch_sizes=(4, 2, 2),
    window_size=None,
)
TINY_SVT = td.TwinsSpec.from_columns(
    "tiny_svt",
    dims=(6, 10, 14),
    num_heads=(2, 5, 7),
    mlp_ratios=(3, 2, 1.5),
    depths=(2, 1, 3),
    sr_ratios=(3, 2, 1),
    patch_sizes=(4, 2, 2),
    window_size=5,
)
# The reduction ratios, patch sizes and windows of the published variants, with few channels and blocks.
SLIM_PCPVT = td.TwinsSpec.from_columns(
    "slim_pcpvt",
    dims=(8, 12, 20, 28),
    num_heads=(1, 2, 5, 7),
    mlp_ratios=(2, 2, 1, 1),
    depths=(1, 2, 2, 1),
    sr_ratios=(8, 4, 2, 1),
    window_size=None,
)
SLIM_SVT = td.TwinsSpec.from_columns(
    "slim_svt",
    dims=(8, 12, 20, 28),
    num_heads=(1, 2, 5, 7),
    mlp_ratios=(2, 2, 1, 1),
    depths=(2, 2, 3, 2),
    sr_ratios=(8, 4, 2, 1),
    window_size=7,
)


def all_stages(spec: td.TwinsSpec) -> tuple[int, ...]:
    return tuple(range(len(spec.stages)))


def random_backbone(spec: td.TwinsSpec, *, seed: int = 7, **settings: Any) -> td.TwinsBackbone:
    """Build a backbone with all levels and random weights, including norms and biases, in eval mode."""
    net = td.create_backbone(spec, **{"out_indices": all_stages(spec), **settings})
    return randomise(net, seed).eval()


def stage_numbers(spec: td.TwinsSpec) -> list[slow_twins.StageNumbers]:
    return [slow_twins.StageNumbers(s.depth, s.num_heads, s.sr_ratio, s.patch_size, s.window_size) for s in spec.stages]


def randomise(net: Net, seed: int) -> Net:
    """Replace every parameter by random numbers that keep activations near 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            if parameter.dim() > 1:
                parameter.copy_(noise / math.sqrt(math.prod(parameter.shape[1:])))
            else:
                parameter.copy_(0.2 * noise + (1.0 if name.endswith("weight") else 0.0))
    return net


def without_initialisation(build: Callable[[], Net]) -> Net:
    """Build a large model without the slow random initialisation. Its parameters are undefined."""
    with torch.device("meta"):
        net = build()
    return net.to_empty(device="cpu")


@cache
def state_dict_shapes(kind: str, variant: str) -> Mapping[str, tuple[int, ...]]:
    """Return the names and shapes in a state dict of another project, see tests/golden/README.md."""
    with gzip.open(GOLDEN / "state_dict_keys.json.gz", "rt", encoding="utf-8") as file:
        return {name: tuple(shape) for name, shape in json.load(file)[f"{kind}/{variant}"].items()}


def shapes_of(net: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in net.state_dict().items()}


def block_settings(net: td.TwinsBackbone) -> list[tuple[float, str | None]]:
    """Return the stochastic depth rate and the window padding of every block, which shapes and `str` do not show."""
    blocks = [block for stage in net.blocks for block in stage.children()]
    return [(block.drop_path_rate, getattr(block.attn, "window_padding", None)) for block in blocks]


def formula_weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return the value of an entry for the golden tensors, see tests/golden/README.md."""
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) > 1:
        value = noise / np.sqrt(np.prod(shape[1:]))
    else:
        value = 1 + 0.1 * noise if name.endswith("weight") else 0.1 * noise
    return torch.from_numpy(value.astype(np.float32))


def formula_image(height: int, width: int) -> Tensor:
    image = np.random.RandomState(height * 10007 + width).standard_normal((1, 3, height, width))
    return torch.from_numpy(image.astype(np.float32))


class BackboneContract:
    """Tests for the backbones of both families. Each subclass defines its specs.

    `tiny` has three stages and a minimum image size of 16 pixels. `slim` has four stages and a minimum of 32 pixels, as
    the published variants do.
    """

    tiny: ClassVar[td.TwinsSpec]
    slim: ClassVar[td.TwinsSpec]

    # Strides are 4, 8 and 16, and windows 5. The comments give the (rows, columns) of padding in each stage.
    @pytest.mark.parametrize(
        ("height", "width"),
        [
            (80, 160),  # (0, 0) (0, 0) (0, 0)
            (64, 160),  # (4, 0) (2, 0) (1, 0): one axis
            (160, 72),  # (0, 2) (0, 1) (0, 1): the other axis
            (96, 131),  # (1, 3) (3, 4) (4, 2): both; 131 is not a multiple of any stride
            (148, 184),  # (3, 4) (2, 2) (1, 4): both, 37x46 cells
            (23, 29),  # (0, 3) (3, 2) (4, 4): maps of 5x7, 2x3 and 1x1, smaller than a window
        ],
    )
    @pytest.mark.parametrize("window_padding", WINDOW_PADDINGS)
    @torch.no_grad()
    def test_levels_equal_the_slow_reference(self, window_padding: str, height: int, width: int) -> None:
        net = random_backbone(self.tiny, window_padding=window_padding).double()
        images = torch.randn(2, 3, height, width, dtype=torch.float64)
        levels = net(images)
        for index in range(2):
            expected = slow_twins.backbone(net.state_dict(), stage_numbers(self.tiny), images[index], window_padding)
            assert len(levels) == len(expected) == 3
            for level, slow in zip(levels, expected, strict=True):
                torch.testing.assert_close(level[index], slow, rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("out_indices", [(0,), (1,), (3,), (0, 2), (1, 2), (0, 1, 3)])
    @torch.no_grad()
    def test_a_subset_of_levels_is_a_part_of_the_full_run(self, out_indices: tuple[int, ...]) -> None:
        full = random_backbone(self.slim)
        part = random_backbone(self.slim, out_indices=out_indices, seed=8)
        part.load_state_dict({name: full.state_dict()[name] for name in part.state_dict()})
        images = torch.randn(1, 3, 61, 75)
        levels = full(images)
        for index, level in zip(out_indices, part(images), strict=True):
            assert torch.equal(level, levels[index])
        num_built = out_indices[-1] + 1
        assert len(part.patch_embeds) == len(part.blocks) == len(part.pos_block) == num_built
        built = {(name.split(".")[0], int(name.split(".")[1])) for name in part.state_dict()}
        assert {stage for _, stage in built} == set(range(num_built))

    @pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (1, 2), (0, 3)])
    def test_pyramid_describes_the_levels(self, out_indices: tuple[int, ...]) -> None:
        net = random_backbone(self.slim, out_indices=out_indices)
        assert net.pyramid.names == tuple(f"c{index + 2}" for index in out_indices)
        assert net.pyramid.channels == tuple((8, 12, 20, 28)[index] for index in out_indices)
        assert net.pyramid.strides == tuple((4, 8, 16, 32)[index] for index in out_indices)
        with torch.no_grad():
            levels = net(torch.randn(2, 3, 64, 96))
        shapes = [(2, c, 64 // s, 96 // s) for c, s in zip(net.pyramid.channels, net.pyramid.strides, strict=True)]
        assert [tuple(level.shape) for level in levels] == shapes

    @pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 33), (61, 61), (63, 45), (32, 95)])
    @torch.no_grad()
    def test_rest_of_the_pixels_is_dropped(self, height: int, width: int) -> None:
        net = random_backbone(self.slim)
        images = torch.randn(2, 3, height, width)
        levels = net(images)
        shapes = [(2, c, height // s, width // s) for c, s in ((8, 4), (12, 8), (20, 16), (28, 32))]
        assert [tuple(level.shape) for level in levels] == shapes
        whole_patches = net(images[:, :, : height // 4 * 4, : width // 4 * 4].contiguous())
        for level, cropped in zip(levels, whole_patches, strict=True):
            torch.testing.assert_close(level, cropped)

    @pytest.mark.parametrize("shape", [(1, 3, 31, 64), (1, 3, 64, 31), (1, 3, 0, 0)])
    def test_too_small_images_are_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(td.TwinsError, match=rf"{shape[2]}x{shape[3]} pixels.*at least 32x32; pad or enlarge"):
            random_backbone(self.slim)(torch.zeros(shape))

    @pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 4, 64, 64), (1, 64, 64, 3), (1, 1, 3, 64, 64)])
    def test_images_of_another_layout_are_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(td.TwinsError, match=rf"shape {re.escape(str(shape))}: give \(batch, 3, height, width\)"):
            random_backbone(self.slim)(torch.zeros(shape))

    @pytest.mark.parametrize("window_padding", WINDOW_PADDINGS)
    @pytest.mark.parametrize(("height", "width"), [(80, 160), (64, 160), (160, 72), (96, 131)])
    @torch.no_grad()
    def test_images_of_a_batch_are_independent(self, window_padding: str, height: int, width: int) -> None:
        """Neither axis, each axis and both axes are padded, as in the comparison with the slow reference."""
        net = random_backbone(self.tiny, window_padding=window_padding).double()
        images = torch.randn(3, 3, height, width, dtype=torch.float64)
        singles = zip(*(net(image[None]) for image in images), strict=True)
        for level, single in zip(net(images), singles, strict=True):
            torch.testing.assert_close(level, torch.cat(single), rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("out_indices", [(0,), (2,), (0, 2), (1, 2), (0, 1, 2)])
    @pytest.mark.parametrize("window_padding", WINDOW_PADDINGS)
    def test_every_parameter_gets_a_gradient(self, window_padding: str, out_indices: tuple[int, ...]) -> None:
        net = random_backbone(self.tiny, out_indices=out_indices, window_padding=window_padding, drop_path_rate=0.0)
        random_loss(net.train()(torch.randn(2, 3, 96, 131))).backward()
        without = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.count_nonzero()]
        assert without == []

    @pytest.mark.parametrize("window_padding", WINDOW_PADDINGS)
    def test_checkpointing_changes_nothing(self, window_padding: str) -> None:
        """With stochastic depth, the recomputation has to draw the same random numbers again."""
        images = torch.randn(5, 3, 48, 67)
        results = []
        for checkpointing in (False, True):
            net = random_backbone(
                self.tiny, window_padding=window_padding, drop_path_rate=0.6, checkpointing=checkpointing
            ).train()
            num_calls = []
            net.blocks[1][0].register_forward_pre_hook(lambda *_, calls=num_calls: calls.append(1))
            torch.manual_seed(3)
            levels = net(images)
            random_loss(levels).backward()
            results.append((levels, [parameter.grad for parameter in net.parameters()], len(num_calls)))
        (plain, plain_gradients, once), (recomputed, gradients, twice) = results
        assert (once, twice) == (1, 2)
        for expected, found in zip((*plain, *plain_gradients), (*recomputed, *gradients), strict=True):
            torch.testing.assert_close(found, expected)

    @torch.no_grad()
    def test_evaluation_is_deterministic_and_draws_no_random_numbers(self) -> None:
        net = random_backbone(self.tiny, drop_path_rate=0.9)
        images = torch.randn(4, 3, 48, 67)
        state = torch.get_rng_state()
        first = net(images)
        assert torch.equal(torch.get_rng_state(), state)
        net.train()
        trained = net(images)
        assert not torch.equal(trained[-1], first[-1])  # the rate has an effect in training
        for before, after in zip(first, net.eval()(images), strict=True):
            assert torch.equal(before, after)

    @torch.no_grad()
    def test_models_share_nothing(self) -> None:
        images = torch.randn(1, 3, 48, 67)
        net = random_backbone(self.tiny, window_padding="mask")
        before = net(images)
        surroundings = (torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled())
        other = random_backbone(self.tiny, window_padding="zeros", drop_path_rate=0.5, seed=11).double().train()
        other(images.double())
        assert surroundings == (torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled())
        assert not net.training and next(net.parameters()).dtype == torch.float32
        for expected, level in zip(before, net(images), strict=True):
            assert torch.equal(expected, level)

    @torch.no_grad()
    def test_arguments_are_left_alone(self) -> None:
        images = torch.randn(1, 3, 48, 67)
        copy = images.clone()
        random_backbone(self.tiny)(images)
        assert torch.equal(images, copy)

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-4), (torch.bfloat16, 0.1)])
    @pytest.mark.parametrize("window_padding", WINDOW_PADDINGS)
    @torch.no_grad()
    def test_other_precisions(self, window_padding: str, dtype: torch.dtype, tolerance: float) -> None:
        net = random_backbone(self.tiny, window_padding=window_padding)
        images = torch.randn(2, 3, 48, 67)
        expected = net(images)
        for level, single in zip(net.to(dtype)(images.to(dtype)), expected, strict=True):
            assert level.dtype == dtype
            error = (level.float() - single).abs().max() / single.abs().max()
            assert error <= tolerance

    @pytest.mark.parametrize("window_padding", WINDOW_PADDINGS)
    def test_compiles_without_graph_breaks(self, window_padding: str) -> None:
        """`fullgraph=True` raises at the first graph break. Gradients are computed in the compiled graph as well."""
        torch._dynamo.reset()
        net = random_backbone(self.tiny, window_padding=window_padding, drop_path_rate=0.0).train()
        images = torch.randn(1, 3, 48, 67)
        expected = net(images)
        random_loss(expected).backward()
        gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
        net.zero_grad()
        levels = torch.compile(net, fullgraph=True, backend="aot_eager")(images)
        random_loss(levels).backward()
        for level, eager in zip(levels, expected, strict=True):
            torch.testing.assert_close(level, eager)
        for name, parameter in net.named_parameters():
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-4)


def random_loss(levels: tuple[Tensor, ...]) -> Tensor:
    """Return a scalar that depends on every value of every level, by the same weights in every call."""
    generator = torch.Generator().manual_seed(5)
    return sum((torch.randn(level.shape, generator=generator) * level).sum() for level in levels)  # type: ignore[return-value]
