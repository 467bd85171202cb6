"""Layers of a Twins transformer, with the official parameter names.

Letters in shapes: B images, H and W rows and columns of the map, C channels, T = H * W tokens, h heads, d = C / h
channels per head, S side of a window, N windows, R tokens of the reduced map. All maps are (B, H, W, C): LayerNorm and
Linear layers read them directly, and convolutions read the same memory as channels-last (B, C, H, W).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attend
from .spec import StageSpec
from .windows import is_recording, merge_windows, partition_windows, window_key_mask

WindowPadding = Literal["zeros", "mask", "upstream_mask"]
PartialPatches = Literal["drop", "pad"]


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Apply stochastic depth (arXiv 1603.09382): drop the branch of some images, and scale up the others.

    Args:
        x: Output (B, …) of the branch.
        rate: Probability in [0, 1) of dropping the branch of an image.
        training: Whether the model is training; otherwise `x` is returned.
    """
    if rate == 0.0 or not training:
        return x
    kept = x.new_empty([x.shape[0]] + [1] * (x.dim() - 1)).bernoulli_(1.0 - rate)
    return x * kept.div_(1.0 - rate)


class Linear(nn.Linear):
    """An `nn.Linear` that adds its bias in place when it runs on a CPU.

    torch first copies the bias to every row of the output, and then adds the product to it. For the large maps and few
    channels of the early stages, that copy takes up to half as long as the product. Under autocast, the bias has
    another type than the product, which makes the addition slower than the copy.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map (…, C_in) to (…, C_out)."""
        if input.device.type != "cpu" or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
            return super().forward(input)
        return F.linear(input, self.weight).add_(self.bias)


class PatchEmbed(nn.Module):
    """Embedding of non-overlapping patches: a convolution with kernel = stride, followed by LayerNorm.

    `partial_patches` controls the rows and columns at the bottom and right that do not fill a patch:

    * "drop": They are dropped (official code, timm).
    * "pad": They are padded with zeros to a whole patch (mmsegmentation, mmpretrain).
    """

    def __init__(
        self, in_channels: int, dim: int, patch_size: int, norm_eps: float, partial_patches: PartialPatches
    ) -> None:
        super().__init__()
        self.partial_patches = partial_patches
        self.proj = nn.Conv2d(in_channels, dim, patch_size, patch_size)
        self.norm = nn.LayerNorm(dim, eps=norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, H / patch_size, W / patch_size, C), rounded down ("drop") or up ("pad")."""
        if self.partial_patches == "pad":
            (rows, columns), (height, width) = self.proj.kernel_size, x.shape[2:]
            # Not -height % rows, whose sign differs in a trace.
            bottom, right = (rows - height % rows) % rows, (columns - width % columns) % columns
            if torch.jit.is_tracing() or bottom or right:
                x = F.pad(x, (0, right, 0, bottom))
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class PositionalEncodingGenerator(nn.Module):
    """PEG (arXiv 2102.10882): x + depthwise 3x3 convolution of x with zero padding."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        # Sequential, because the official name of the weight is `proj.0.weight`.
        self.proj = nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1, groups=dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        return x + self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class LocalAttention(nn.Module):
    """Locally-grouped self-attention (LSA, paper section 3.2): multi-head attention inside S x S windows.

    `window_padding` controls attention on maps whose sides are not multiples of S. In every mode, such a map is padded
    with zeros at the bottom and right. This happens after LayerNorm, so the keys and values of padded tokens are the
    bias of `qkv`.

    * "zeros": Padded tokens take part in the softmax (official detection code, timm).
    * "mask": Attention reads only the tokens of the map.
    * "upstream_mask": Like "mask" if both axes are padded, and like "zeros" if only one is. The official segmentation
      code marks padded tokens by `mask[:, -pad:]`, which marks all tokens if `pad` is 0, and it forbids attention only
      between tokens with different marks. The published ADE20K checkpoints were trained and scored with it.
    """

    def __init__(self, dim: int, num_heads: int, window_size: int, window_padding: WindowPadding) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.window_padding = window_padding
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        batch, height, width, dim = x.shape
        windows = partition_windows(x, self.window_size)  # (B*N, S*S, C)
        qkv = self.qkv(windows).unflatten(-1, (3, self.num_heads, dim // self.num_heads))  # (B*N, S*S, 3, h, d)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B*N, h, S*S, d)
        mask = self._key_mask(height, width, x.device)
        if mask is not None:
            mask = mask.repeat(batch, 1, 1, 1)  # (B*N, 1, 1, S*S)
        out = attend(query, key, value, mask)
        out = self.proj(out.transpose(1, 2).flatten(2))  # (B*N, S*S, C)
        return merge_windows(out, self.window_size, (height, width))

    def _key_mask(self, height: int, width: int, device: torch.device) -> Tensor | None:
        if self.window_padding == "zeros":
            return None
        only_both = self.window_padding == "upstream_mask"
        return window_key_mask((height, width), self.window_size, device, only_both=only_both)


class GlobalAttention(nn.Module):
    """Global sub-sampled attention (GSA, paper section 3.2): every token attends to a reduced map.

    Keys and values are computed from `norm(sr(x))`, where `sr` is a convolution with kernel = stride = `sr_ratio`. It
    drops rows and columns that do not fill a kernel. With `sr_ratio` 1 there is neither `sr` nor `norm`, and `kv` reads
    the tokens directly.
    """

    def __init__(self, dim: int, num_heads: int, sr_ratio: int, norm_eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.sr_ratio = sr_ratio
        self.q = Linear(dim, dim)
        self.kv = Linear(dim, 2 * dim)
        self.proj = Linear(dim, dim)
        if sr_ratio > 1:
            self.sr = nn.Conv2d(dim, dim, sr_ratio, sr_ratio)
            self.norm = nn.LayerNorm(dim, eps=norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        batch, height, width, dim = x.shape
        head_dim = dim // self.num_heads
        reduced = x
        if self.sr_ratio > 1:
            reduced = self.norm(self.sr(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))  # (B, H//sr, W//sr, C)
        query = self.q(x).view(batch, -1, self.num_heads, head_dim).transpose(1, 2)  # (B, h, T, d)
        kv = self.kv(reduced).view(batch, -1, 2, self.num_heads, head_dim)  # (B, R, 2, h, d)
        key, value = kv.permute(2, 0, 3, 1, 4)  # each (B, h, R, d)
        out = attend(query, key, value)
        return self.proj(out.transpose(1, 2).reshape(batch, height, width, dim))


class Mlp(nn.Module):
    """Two Linear layers with an exact GELU between them.

    Inference on a CPU processes some thousands of tokens at a time, so that their hidden activations fit in its cache.
    """

    # Number of hidden activations per chunk, 4 MiB of float32: the fastest power of two on a CPU with 2 MiB of L2 cache
    # per core.
    CHUNK = 2**20

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.fc2 = Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, C) to the same shape."""
        if torch.is_grad_enabled() or x.device.type != "cpu" or torch.compiler.is_compiling() or is_recording():
            return self.fc2(F.gelu(self.fc1(x)))
        chunks = x.flatten(0, -2).split(max(1, self.CHUNK // self.fc1.out_features))
        return torch.cat([self.fc2(F.gelu(self.fc1(chunk))) for chunk in chunks]).view_as(x)


class Block(nn.Module):
    """Pre-norm transformer block: x + attn(norm1(x)), then x + mlp(norm2(x)), both with stochastic depth."""

    def __init__(
        self,
        stage: StageSpec,
        index: int,
        *,
        drop_path_rate: float,
        window_padding: WindowPadding,
        norm_eps: float,
        reduction_norm_eps: float,
    ) -> None:
        super().__init__()
        self.drop_path_rate = drop_path_rate
        self.norm1 = nn.LayerNorm(stage.dim, eps=norm_eps)
        self.attn: LocalAttention | GlobalAttention
        if stage.window_size is not None and stage.is_local(index):
            self.attn = LocalAttention(stage.dim, stage.num_heads, stage.window_size, window_padding)
        else:
            self.attn = GlobalAttention(stage.dim, stage.num_heads, stage.sr_ratio, reduction_norm_eps)
        self.norm2 = nn.LayerNorm(stage.dim, eps=norm_eps)
        self.mlp = Mlp(stage.dim, int(stage.dim * stage.mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        x = x + drop_path(self.attn(self.norm1(x)), self.drop_path_rate, self.training)
        return x + drop_path(self.mlp(self.norm2(x)), self.drop_path_rate, self.training)
