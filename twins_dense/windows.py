"""Non-overlapping windows over a feature map: pad, partition, merge, mask.

Letters in shapes: B images, H and W rows and columns of the map, C channels, S side of a window,
N = ceil(H / S) * ceil(W / S) windows per image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def partition_windows(x: Tensor, window_size: int) -> Tensor:
    """Cut a map into windows; rows and columns are padded with zeros at the bottom and right where S doesn't divide.

    Args:
        x: (B, H, W, C).
        window_size: S.

    Returns:
        (B * N, S * S, C), windows in row-major order within an image, tokens in row-major order within a window.
    """
    height, width, channels = x.shape[1:]
    pad_bottom, pad_right = -height % window_size, -width % window_size
    if pad_bottom or pad_right:
        x = F.pad(x, (0, 0, 0, pad_right, 0, pad_bottom))
    rows, columns = (height + pad_bottom) // window_size, (width + pad_right) // window_size
    x = x.view(-1, rows, window_size, columns, window_size, channels)
    return x.transpose(2, 3).reshape(-1, window_size * window_size, channels)


def merge_windows(windows: Tensor, window_size: int, size: tuple[int, int]) -> Tensor:
    """Undo `partition_windows` and cut the padding off.

    Args:
        windows: (B * N, S * S, C).
        window_size: S.
        size: (H, W) of the map before it was padded.

    Returns:
        (B, H, W, C); a view of a larger map where there was padding.
    """
    height, width = size
    rows, columns = -(-height // window_size), -(-width // window_size)
    x = windows.view(-1, rows, columns, window_size, window_size, windows.shape[-1]).transpose(2, 3)
    x = x.reshape(-1, rows * window_size, columns * window_size, windows.shape[-1])
    return x[:, :height, :width]


def window_key_mask(size: tuple[int, int], window_size: int, device: torch.device) -> Tensor | None:
    """Which tokens of each window come from the map and not from its padding.

    Args:
        size: (H, W) of the map before it is padded.
        window_size: S.
        device: of the result.

    Returns:
        Boolean (N, 1, 1, S * S), true for tokens that attention may read; `None` where nothing is padded.
        Every window holds at least one true token. Queries need no mask: what padded ones compute is cut off.
    """
    height, width = size
    if height % window_size == 0 and width % window_size == 0:
        return None
    valid = torch.ones(1, height, width, 1, dtype=torch.bool, device=device)
    return partition_windows(valid, window_size).view(-1, 1, 1, window_size * window_size)
