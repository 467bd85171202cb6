"""Non-overlapping windows over a feature map: pad, partition, merge, mask.

Letters in shapes: B images, H and W rows and columns of the map, C channels, S side of a window,
N = ceil(H / S) * ceil(W / S) windows per image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def is_recording() -> bool:
    """Return whether torch is recording the operations, in an export or a trace, to repeat them at other sizes."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def partition_windows(x: Tensor, window_size: int) -> Tensor:
    """Split a map into windows, after padding it with zeros at the bottom and right to multiples of S.

    Args:
        x: Map (B, H, W, C).
        window_size: S.

    Returns:
        Tensor (B * N, S * S, C), with windows in row-major order in each image, and tokens in row-major order in each
        window.
    """
    batch, height, width, channels = x.shape
    rows, columns = _num_windows(height, width, window_size)
    pad_bottom, pad_right = rows * window_size - height, columns * window_size - width
    # In a recording, sizes are symbols and cannot be compared, so the padding is always part of the graph.
    if is_recording() or pad_bottom or pad_right:
        x = F.pad(x, (0, 0, 0, pad_right, 0, pad_bottom))
    x = x.view(batch, rows, window_size, columns, window_size, channels)
    return x.transpose(2, 3).reshape(batch * rows * columns, window_size * window_size, channels)


def merge_windows(windows: Tensor, window_size: int, size: tuple[int, int]) -> Tensor:
    """Undo `partition_windows` and remove the padding.

    Args:
        windows: Windows (B * N, S * S, C).
        window_size: S.
        size: Size (H, W) of the map before padding.

    Returns:
        Map (B, H, W, C), which is a view of a larger map if there was padding.
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
    """Return the mask of the keys that come from the map and not from its padding.

    Queries need no mask, because `merge_windows` removes the results of the padded ones.

    Args:
        size: Size (H, W) of the map before padding.
        window_size: S.
        device: Device of the mask.
        only_both: Whether to mask the padding only if both axes are padded.

    Returns:
        Boolean mask (N, 1, 1, S * S), true for keys that attention may read, with at least one such key per window; or
        `None` if attention may read all keys. In a recording, where sizes are unknown, there is always a mask.
    """
    height, width = size
    rows, columns = _num_windows(height, width, window_size)
    if not is_recording():
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
    """Return the numbers of rows and columns of windows, including those with padding."""
    # Not -(-height // window_size), because ONNX rounds negative quotients up.
    return (height + window_size - 1) // window_size, (width + window_size - 1) // window_size
