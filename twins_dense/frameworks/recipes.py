"""Numbers of the recipe for small data sets, which are the same in both frameworks.

The recipe trains detectors on a few dozen to a few thousand images. The published recipes are made for COCO: on few
images their warm-up ends before the new layers have settled, and from random weights the first gradients can be larger
than 1e9. Hence clipped gradients, a warm-up over a fixed part of the run, a cosine decay to 0, and fewer sampled
anchors and proposals, so that a few objects per image are not outnumbered by background.
"""

from __future__ import annotations

from dataclasses import dataclass

CLIP_NORM = 1.0  # largest norm of the gradient of all parameters together
WEIGHT_DECAY = 0.05
NO_DECAY = ("pos_block", "norm")  # parameters without weight decay: positional encodings and norms, as published
WARMUP_FACTOR = 0.001  # the warm-up starts at this multiple of the learning rate
RPN_BATCH = 64  # anchors per image in the losses of Mask R-CNN's region proposal network
ROI_BATCH = 128  # proposals per image in the losses of Mask R-CNN's heads
BATCH_SIZE = 2  # images per iteration, which the learning rates below belong to
NUM_EVALUATIONS = 12  # evaluations and checkpoints of a run, if it has at least as many epochs


@dataclass(frozen=True)
class Start:
    """The numbers that depend on the weights with which a run starts.

    Attributes:
        learning_rate: Learning rate of AdamW at a batch size of `BATCH_SIZE`.
        warmup_fraction: Part of the run in which the learning rate grows linearly to its full value.
        drop_path_rate: Probability of dropping the last block of the backbone; it grows linearly over the blocks.
    """

    learning_rate: float
    warmup_fraction: float
    drop_path_rate: float


PRETRAINED = Start(learning_rate=1e-4, warmup_fraction=0.1, drop_path_rate=0.1)
FROM_SCRATCH = Start(learning_rate=2e-4, warmup_fraction=0.2, drop_path_rate=0.0)


def learning_rate(start: Start, batch_size: int) -> float:
    """Return the learning rate of AdamW for a batch size: it grows with the square root (arXiv 2205.10287)."""
    return start.learning_rate * (batch_size / BATCH_SIZE) ** 0.5
