"""Scaled dot-product attention, computed in the way that is fastest for the device, the type and the shape."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .windows import is_recording

# Number of scores per head up to which plain products are faster than torch's fused kernel in reduced precision: all
# windows, and the global attention of the last two stages.
_MAX_PLAIN_SCORES = 2**18


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return softmax(query keyᵀ / √d) value.

    This is `scaled_dot_product_attention`, except for training in reduced precision on a CPU: the backward pass of
    torch's fused kernel takes up to seven times as long there as two products and a softmax, which give the same
    values up to rounding.

    Args:
        query: (B, h, T, d).
        key: (B, h, R, d).
        value: (B, h, R, d).
        mask: Boolean, broadcastable to (B, h, T, R); true for keys that are read.

    Returns:
        (B, h, T, d).
    """
    if _prefers_plain(query, key):
        scores = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return scores.softmax(-1) @ value
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def _prefers_plain(query: Tensor, key: Tensor) -> bool:
    # A recording must not depend on sizes, and is for inference.
    if query.device.type != "cpu" or not query.requires_grad or is_recording():
        return False
    is_reduced = query.dtype in (torch.bfloat16, torch.float16)
    return is_reduced and query.shape[-2] * key.shape[-2] <= _MAX_PLAIN_SCORES
