"""Numbers that the two frameworks share: the recipe for small data sets, and how a schedule fits a run.

The recipe trains detectors and segmentors on a few dozen to a few thousand images. The published recipes are made for
COCO and ADE20K: on few images, a run is short, its batches are small and its first gradients are large. Hence a warm-up
in proportion to the run, clipped gradients, a cosine decay, and fewer proposals, which make iterations cheaper.
"""

from __future__ import annotations

import math

BATCH_SIZE = 2  # images per iteration, if the user does not choose a number
CLIP_NORM = 1.0  # largest norm of the gradient of all parameters together
WEIGHT_DECAY = 0.05
NO_DECAY = ("pos_block", "norm")  # parameters without weight decay: positional encodings and norms, as published
# By whether the backbone starts from trained weights.
LEARNING_RATE = {True: 2e-4, False: 6e-4}  # of AdamW at a batch size of 16
DROP_PATH_RATE = {True: 0.1, False: 0.0}
WARMUP_ITERATIONS = 500
WARMUP_SHARE = 0.1  # the warm-up takes at most this share of a run
WARMUP_FACTOR = 0.001  # the warm-up starts at this multiple of the learning rate
FINAL_FACTOR = 0.01  # the cosine ends at this multiple of the learning rate
ROI_BATCH = 64  # proposals per image in the losses of Mask R-CNN's heads
PRE_NMS_TOPK = 1000  # candidates per level and image for proposals
MIN_PROPOSALS = 500  # per image

# In a run whose length is set by the user, this many evaluations are enough, unless that many iterations lie between.
NUM_EVALUATIONS, MAX_INTERVAL = 10, 1000
NUM_LOG_LINES = 100


def learning_rate(batch_size: int, *, pretrained: bool) -> float:
    """Return the learning rate of AdamW for a batch size, in two digits: it grows with the square root."""
    return float(f"{LEARNING_RATE[pretrained] * math.sqrt(batch_size / 16):.2g}")


def warmup_iterations(before: int, num_iterations: int) -> int:
    """Return the length of a warm-up of `before` iterations in a run of `num_iterations`."""
    return min(before, max(1, round(num_iterations * WARMUP_SHARE)))


def num_proposals(max_dets: int) -> int:
    """Return the number of proposals per image from which a Mask R-CNN finds up to `max_dets` objects."""
    return max(MIN_PROPOSALS, 2 * max_dets)


def evaluation_interval(epochs: int, iterations_per_epoch: int) -> int:
    """Return the number of epochs from one evaluation and checkpoint to the next."""
    return min(math.ceil(epochs / NUM_EVALUATIONS), math.ceil(MAX_INTERVAL / iterations_per_epoch))


def log_interval(before: int, num_iterations: int) -> int:
    """Return the number of iterations from one line of metrics to the next, at most `before`."""
    return max(1, min(before, num_iterations // NUM_LOG_LINES))
