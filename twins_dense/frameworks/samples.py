"""The choice of the validation images that are drawn at each evaluation."""

from __future__ import annotations

import torch

from ..seeds import derived_seed

MIN_SCORE = 0.3  # detections with a lower score are not drawn


def choose_samples(num_images: int, count: int, seed: int) -> list[int]:
    """Return the indices of `count` of `num_images` images, or of all if there are fewer, in ascending order.

    The seed of the run chooses them, so that they are the same at each evaluation and after a resume.
    """
    generator = torch.Generator().manual_seed(derived_seed(seed))
    return torch.randperm(num_images, generator=generator)[:count].sort().values.tolist()
