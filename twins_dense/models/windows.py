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
    batch, height, width, channels = x.shape
    rows, columns = _num_windows(height, width, window_size)
    pad_bottom, pad_right = rows * window_size - height, columns * window_size - width
    # The sizes of an exported model are symbols, so there the padding is always written down, be it of nothing.
    if torch.compiler.is_exporting() or pad_bottom or pad_right:
        x = F.pad(x, (0, 0, 0, pad_right, 0, pad_bottom))
    x = x.view(batch, rows, window_size, columns, window_size, channels)
    return x.transpose(2, 3).reshape(batch * rows * columns, window_size * window_size, channels)


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
    rows, columns = _num_windows(height, width, window_size)
    batch, channels = windows.shape[0] // (rows * columns), windows.shape[-1]
    x = windows.view(batch, rows, columns, window_size, window_size, channels).transpose(2, 3)
    x = x.reshape(batch, rows * window_size, columns * window_size, channels)
    return x[:, :height, :width]


def window_key_mask(
    size: tuple[int, int], window_size: int, device: torch.device, *, only_both: bool = False
) -> Tensor | None:
    """Which tokens of each window come from the map and not from its padding.

    Args:
        size: (H, W) of the map before it is padded.
        window_size: S.
        device: of the result.
        only_both: padding counts only where both axes have some.

    Returns:
        Boolean (N, 1, 1, S * S), true for tokens that attention may read; `None` where it may read all (an export,
        for which sizes are unknown, always has the mask). Every window holds at least one true token. Queries need no
        mask: what padded ones compute is cut off.
    """
    height, width = size
    rows, columns = _num_windows(height, width, window_size)
    if not torch.compiler.is_exporting():
        padded = [height % window_size > 0, width % window_size > 0]
        if not (all(padded) if only_both else any(padded)):
            return None
    in_rows = torch.arange(rows * window_size, device=device).view(rows, 1, window_size, 1) < height
    in_columns = torch.arange(columns * window_size, device=device).view(columns, 1, window_size) < width
    valid = in_rows & in_columns  # (rows, columns, S, S)
    if only_both:
        valid = valid | in_rows.all() | in_columns.all()
    return valid.view(rows * columns, 1, 1, window_size * window_size)


def _num_windows(height: int, width: int, window_size: int) -> tuple[int, int]:
    """Rows and columns of windows, those that hold padding included."""
    # Not -(-height // window_size): ONNX rounds the quotient of a negative number up.
    return (height + window_size - 1) // window_size, (width + window_size - 1) // window_size
