"""The Twins backbone, which computes a feature pyramid from images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import TwinsError
from .layers import Block, PartialPatches, PatchEmbed, PositionalEncodingGenerator, WindowPadding
from .spec import PyramidSpec, TwinsSpec


class TwinsBackbone(nn.Module):
    """A Twins transformer that returns the maps of its stages. `create_backbone` builds it.

    Parameters have the official names (`patch_embeds.{i}`, `blocks.{i}.{j}`, `pos_block.{i}`, `norm_list.{i}`). Stages
    after the last requested level are not built, so that every parameter gets a gradient.

    Attributes:
        spec: Full architecture, including stages that are not built.
        out_indices: Stages whose maps are returned.
        window_padding: Padding mode of local attention, see `LocalAttention`.
        pyramid: Names, channels and strides of the returned levels.
        num_frozen_stages: Number of stages that are not trained, see `freeze`.
    """

    def __init__(
        self,
        spec: TwinsSpec,
        *,
        out_indices: Sequence[int],
        window_padding: WindowPadding,
        partial_patches: PartialPatches,
        level_norm: bool,
        drop_path_rate: float,
        checkpointing: bool,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.out_indices = _checked_out_indices(out_indices, len(spec.stages))
        self.checkpointing = checkpointing
        for name, value, choices in (
            ("window_padding", window_padding, get_args(WindowPadding)),
            ("partial_patches", partial_patches, get_args(PartialPatches)),
        ):
            if value not in choices:
                raise TwinsError(f"{name}={value!r}: choose one of {', '.join(map(repr, choices))}")
        self.window_padding = window_padding
        if not 0.0 <= drop_path_rate < 1.0:
            raise TwinsError(f"drop_path_rate={drop_path_rate!r}: give a probability in [0, 1)")
        self.pyramid = PyramidSpec(
            names=tuple(f"c{i + 2}" for i in self.out_indices),
            channels=tuple(spec.stages[i].dim for i in self.out_indices),
            strides=tuple(spec.strides[i] for i in self.out_indices),
        )

        stages = spec.stages[: self.out_indices[-1] + 1]
        rates = _drop_path_rates(drop_path_rate, sum(stage.depth for stage in spec.stages))
        in_channels = (3, *(stage.dim for stage in stages))
        self.patch_embeds = nn.ModuleList(
            PatchEmbed(channels, stage.dim, stage.patch_size, spec.reduction_norm_eps, partial_patches)
            for channels, stage in zip(in_channels, stages, strict=False)
        )
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                Block(
                    stage,
                    index,
                    drop_path_rate=next(rates),
                    window_padding=window_padding,
                    norm_eps=spec.norm_eps,
                    reduction_norm_eps=spec.reduction_norm_eps,
                )
                for index in range(stage.depth)
            )
            for stage in stages
        )
        self.pos_block = nn.ModuleList(PositionalEncodingGenerator(stage.dim) for stage in stages)
        # Official dense models pass the normalised level on to the next stage, so every stage has a norm.
        self.norm_list: nn.ModuleList | None = None
        if level_norm:
            self.norm_list = nn.ModuleList(nn.LayerNorm(stage.dim, eps=spec.norm_eps) for stage in stages)
        self.num_frozen_stages = 0
        self.apply(init_weights)

    def freeze(self, part: str) -> None:
        """Keep the parameters of some stages as they are in training, and switch off their stochastic depth.

        A later call of `train` does not undo this.

        Args:
            part: "backbone" for all stages, or "stages:N" for the first N.

        Raises:
            TwinsError: If `part` has another form, or N is out of range.
        """
        num_stages = len(self.blocks)
        self.num_frozen_stages = num_stages if part == "backbone" else _num_stages(part)
        if self.num_frozen_stages > num_stages:
            raise TwinsError(f"freeze={part!r}: the backbone has {num_stages} stages; give at most stages:{num_stages}")
        for module in self._frozen_modules():
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> TwinsBackbone:
        """Set the training mode of everything that is not frozen; frozen stages stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def _frozen_modules(self) -> Iterator[nn.Module]:
        groups = (self.patch_embeds, self.blocks, self.pos_block, self.norm_list)
        return (module for group in groups if group is not None for module in group[: self.num_frozen_stages])

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature pyramid.

        Args:
            images: RGB images (B, 3, H, W), floating point, normalised as the weights expect. H and W are at least
                `spec.min_size` (32 for the published variants). With `partial_patches="drop"`, pixels at the bottom and
                right that do not fill a patch are dropped, so use multiples of 32 to keep every pixel.

        Returns:
            One tensor (B, channels, H / stride, W / stride) per level, finest first, in channels-last memory. Sizes are
            rounded down with `partial_patches="drop"` and up with "pad".

        Raises:
            TwinsError: If the images have another shape or are too small.
        """
        self._check_images(images)
        levels = []
        x = images
        for index, (embed, blocks, peg) in enumerate(zip(self.patch_embeds, self.blocks, self.pos_block, strict=True)):
            x = embed(x)
            for block_index, block in enumerate(blocks.children()):
                x = self._run(block, x)
                if block_index == 0:
                    x = peg(x)
            if self.norm_list is not None:
                x = self.norm_list[index](x)
            x = x.permute(0, 3, 1, 2)
            if index in self.out_indices:
                levels.append(x)
        return tuple(levels)

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, x, use_reentrant=False)
        return block(x)

    def _check_images(self, images: Tensor) -> None:
        if images.dim() != 4 or images.shape[1] != 3:
            raise TwinsError(f"images of shape {tuple(images.shape)}: give (batch, 3, height, width)")
        height, width = images.shape[2:]
        # Not `min`: an export would record which side is the shorter one.
        if height < self.spec.min_size or width < self.spec.min_size:
            raise TwinsError(
                f"images of {height}x{width} pixels are too small: "
                f"{self.spec.name} needs at least {self.spec.min_size}x{self.spec.min_size}; pad or enlarge them"
            )


def describe_backbone(net: TwinsBackbone) -> dict[str, Any]:
    """Describe a backbone by plain values that can be stored as JSON, for files with its features or its exports."""
    pyramid = net.pyramid
    return {
        "variant": net.spec.name,
        "spec": dataclasses.asdict(net.spec),
        "window_padding": net.window_padding,
        "level_norm": net.norm_list is not None,
        "levels": [
            {"name": name, "channels": channels, "stride": stride}
            for name, channels, stride in zip(pyramid.names, pyramid.channels, pyramid.strides, strict=True)
        ],
    }


def _num_stages(part: str) -> int:
    """Return the number N of "stages:N"."""
    name, _, number = str(part).partition(":")
    if name != "stages" or not (number.isascii() and number.isdigit()) or int(number) < 1:
        raise TwinsError(f'freeze={part!r}: give "backbone", or "stages:N" with N of 1 or more')
    return int(number)


def init_weights(module: nn.Module) -> None:
    """Initialise one module as the official code does (`_init_weights` in gvt.py), for use with `nn.Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def init_for_padding(net: TwinsBackbone) -> None:
    """Prepare a freshly initialised backbone for training on images that are padded with zeros to a common size.

    The official initialisation sets the bias of the first patch embedding to zero. The tokens of the padding are then
    zero as well, where LayerNorm multiplies gradients by 1/sqrt(eps): their norm was up to 1e9 instead of 10. This
    function gives that bias the standard deviation of the linear layers.
    """
    embed: Any = net.patch_embeds[0]
    nn.init.trunc_normal_(embed.proj.bias, std=0.02)


def _drop_path_rates(last: float, num_blocks: int) -> Iterator[float]:
    """Return rates that grow linearly from 0 to `last` over the blocks of all stages, including those not built."""
    return (last * i / max(num_blocks - 1, 1) for i in range(num_blocks))


def _checked_out_indices(out_indices: Sequence[int], num_stages: int) -> tuple[int, ...]:
    indices = tuple(out_indices)
    if not indices or list(indices) != sorted(set(indices)) or not set(indices) <= set(range(num_stages)):
        raise TwinsError(
            f"out_indices={indices}: give one or more stages of {tuple(range(num_stages))} in ascending order"
        )
    return indices
