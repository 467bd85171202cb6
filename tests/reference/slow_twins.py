"""A Twins transformer in loops and elementary tensor operations, written after the paper and the official code.

It reads a state dict with the official names and computes in the precision of its tensors. Maps are (H, W, C) for one
image, without a batch dimension. It uses no `torch.nn`, no fused attention and no code of the package.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StageNumbers:
    """Numbers of a stage that a state dict does not contain. `window_size` is None if every block is global."""

    depth: int
    num_heads: int
    sr_ratio: int
    patch_size: int
    window_size: int | None


class Parameters:
    """View of a state dict from one of its modules: `p["norm1"].weight` is `state["….norm1.weight"]`."""

    def __init__(self, state: Mapping[str, Tensor], prefix: str = "") -> None:
        self.state = state
        self.prefix = prefix

    def __getitem__(self, name: str) -> Parameters:
        return Parameters(self.state, f"{self.prefix}{name}.")

    @property
    def weight(self) -> Tensor:
        return self.state[f"{self.prefix}weight"]

    @property
    def bias(self) -> Tensor:
        return self.state[f"{self.prefix}bias"]

    @property
    def exists(self) -> bool:
        return any(key.startswith(self.prefix) for key in self.state)


def backbone(
    state: Mapping[str, Tensor], stages: list[StageNumbers], image: Tensor, window_padding: str = "zeros"
) -> list[Tensor]:
    """Return the maps (C, H, W) of all stages for one image (3, H, W).

    If the state dict has `norm_list.{i}`, it normalises the returned map, which is also the input of the next stage.
    """
    parameters = Parameters(state)
    levels = []
    x = image.permute(1, 2, 0)  # (H, W, C)
    for i, stage in enumerate(stages):
        embed = parameters["patch_embeds"][str(i)]
        x = layer_norm(strided_convolution(x, embed["proj"], stage.patch_size), embed["norm"], 1e-5)
        for j in range(stage.depth):
            x = block(x, parameters["blocks"][str(i)][str(j)], stage, j, window_padding)
            if j == 0:
                x = positional_encoding(x, parameters["pos_block"][str(i)]["proj"]["0"])
        level_norm = parameters["norm_list"][str(i)]
        if level_norm.exists:
            x = layer_norm(x, level_norm, 1e-6)
        levels.append(x.permute(2, 0, 1))
    return levels


def classifier(state: Mapping[str, Tensor], stages: list[StageNumbers], image: Tensor) -> Tensor:
    """Return the logits of one image (3, H, W)."""
    tokens = backbone(state, stages, image)[-1].permute(1, 2, 0)
    parameters = Parameters(state)
    return linear(layer_norm(tokens, parameters["norm"], 1e-6).mean((0, 1)), parameters["head"])


def block(x: Tensor, p: Parameters, stage: StageNumbers, index: int, window_padding: str) -> Tensor:
    normalised = layer_norm(x, p["norm1"], 1e-6)
    if stage.window_size is not None and index % 2 == 0:
        x = x + local_attention(normalised, p["attn"], stage.num_heads, stage.window_size, window_padding)
    else:
        x = x + global_attention(normalised, p["attn"], stage.num_heads, stage.sr_ratio)
    hidden = gelu(linear(layer_norm(x, p["norm2"], 1e-6), p["mlp"]["fc1"]))
    return x + linear(hidden, p["mlp"]["fc2"])


def local_attention(x: Tensor, p: Parameters, num_heads: int, window_size: int, window_padding: str) -> Tensor:
    """Compute attention inside windows, one window after the other.

    "zeros" pads a window with zero vectors at the bottom and right, and treats them as tokens.
    "mask" uses only the tokens of the map.
    "upstream_mask" does what the official segmentation code does, including its negative slices.
    """
    if window_padding == "upstream_mask":
        return _local_attention_upstream(x, p, num_heads, window_size)
    height, width, channels = x.shape
    out = torch.empty_like(x)
    for top in range(0, height, window_size):
        for left in range(0, width, window_size):
            window = x[top : top + window_size, left : left + window_size]
            rows, columns = window.shape[:2]
            if window_padding == "zeros":
                padded = x.new_zeros(window_size, window_size, channels)
                padded[:rows, :columns] = window
                window = padded
            else:
                assert window_padding == "mask"
            tokens = window.reshape(-1, channels)
            query, key, value = linear(tokens, p["qkv"]).split(channels, dim=1)
            mixed = linear(attend(query, key, value, num_heads), p["proj"]).view(window.shape)
            out[top : top + window_size, left : left + window_size] = mixed[:rows, :columns]
    return out


def _local_attention_upstream(x: Tensor, p: Parameters, num_heads: int, window_size: int) -> Tensor:
    """Mark the padding by `mask[-pad:]`, which marks the whole axis if `pad` is 0. Tokens with equal marks attend."""
    height, width, channels = x.shape
    pad_bottom = (window_size - height % window_size) % window_size
    pad_right = (window_size - width % window_size) % window_size
    padded = x.new_zeros(height + pad_bottom, width + pad_right, channels)
    padded[:height, :width] = x
    marks = x.new_zeros(height + pad_bottom, width + pad_right)
    marks[-pad_bottom:, :] = 1
    marks[:, -pad_right:] = 1
    out = torch.empty_like(padded)
    for top in range(0, height, window_size):
        for left in range(0, width, window_size):
            here = (slice(top, top + window_size), slice(left, left + window_size))
            tokens, mark = padded[here].reshape(-1, channels), marks[here].reshape(-1)
            query, key, value = linear(tokens, p["qkv"]).split(channels, dim=1)
            allowed = mark[:, None] == mark[None, :]
            mixed = attend(query, key, value, num_heads, allowed)
            out[here] = linear(mixed, p["proj"]).view(window_size, window_size, channels)
    return out[:height, :width]


def global_attention(x: Tensor, p: Parameters, num_heads: int, sr_ratio: int) -> Tensor:
    height, width, channels = x.shape
    reduced = x
    if sr_ratio > 1:
        reduced = layer_norm(strided_convolution(x, p["sr"], sr_ratio), p["norm"], 1e-5)
    query = linear(x.reshape(-1, channels), p["q"])
    key, value = linear(reduced.reshape(-1, channels), p["kv"]).split(channels, dim=1)
    return linear(attend(query, key, value, num_heads), p["proj"]).view(height, width, channels)


def attend(query: Tensor, key: Tensor, value: Tensor, num_heads: int, allowed: Tensor | None = None) -> Tensor:
    """Compute softmax attention, head after head. Tensors are (tokens, C), and `allowed` is (queries, keys)."""
    head_dim = query.shape[1] // num_heads
    heads = []
    for head in range(num_heads):
        own = slice(head * head_dim, (head + 1) * head_dim)
        scores = torch.einsum("qd,kd->qk", query[:, own], key[:, own]) / math.sqrt(head_dim)
        weights = torch.exp(scores - scores.max(dim=1, keepdim=True).values)
        if allowed is not None:
            weights = weights * allowed
        weights = weights / weights.sum(dim=1, keepdim=True)
        heads.append(torch.einsum("qk,kd->qd", weights, value[:, own]))
    return torch.cat(heads, dim=1)


def strided_convolution(x: Tensor, p: Parameters, size: int) -> Tensor:
    """Convolve with kernel = stride = size, patch after patch. Partial patches are dropped."""
    rows, columns = x.shape[0] // size, x.shape[1] // size
    out = x.new_empty(rows, columns, p.weight.shape[0])
    for row in range(rows):
        for column in range(columns):
            patch = x[row * size : (row + 1) * size, column * size : (column + 1) * size]
            out[row, column] = torch.einsum("hwc,ochw->o", patch, p.weight) + p.bias
    return out


def positional_encoding(x: Tensor, p: Parameters) -> Tensor:
    """Return x + depthwise 3x3 convolution of x, as the sum of nine shifted maps."""
    height, width, channels = x.shape
    framed = x.new_zeros(height + 2, width + 2, channels)
    framed[1:-1, 1:-1] = x
    out = x + p.bias
    for row in range(3):
        for column in range(3):
            out = out + framed[row : row + height, column : column + width] * p.weight[:, 0, row, column]
    return out


def linear(x: Tensor, p: Parameters) -> Tensor:
    return torch.einsum("...i,oi->...o", x, p.weight) + p.bias


def layer_norm(x: Tensor, p: Parameters, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred * centred).mean(-1, keepdim=True)
    return centred / torch.sqrt(variance + eps) * p.weight + p.bias


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.erf(x / math.sqrt(2.0)))
