"""Compare the outputs of an exported file with those of the model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..errors import TwinsError

# Largest accepted difference of maps and logits, relative to the largest magnitude of each output.
TOLERANCE = 1e-4
# Largest accepted differences of detections: pixels, scores, and probabilities of mask cells.
DETECTION_TOLERANCES = {"boxes": 0.05, "scores": 1e-4, "masks": 1e-3}
# Largest accepted part of the pixels with another label.
OTHER_LABELS = 1e-4

Arrays = Mapping[str, np.ndarray]


def compare_values(expected: Arrays, found: Arrays, where: str) -> dict[str, float]:
    """Compare outputs number by number.

    Args:
        expected: Outputs of the model, by name.
        found: Outputs of the file, by name.
        where: Description of the input, for the error.

    Returns:
        The largest difference for each output, relative to its largest magnitude.

    Raises:
        TwinsError: If a difference is larger than `TOLERANCE`.
    """
    differences = {}
    for name, ours in expected.items():
        theirs = found[name]
        difference = float(np.abs(ours - theirs).max() / np.abs(ours).max()) if ours.shape == theirs.shape else 1.0
        if not difference <= TOLERANCE:  # NaN included
            raise TwinsError(
                f"the exported {name} differs from the model at {where} by {difference:.1e} of its magnitude, more "
                f"than {TOLERANCE:g}: try other versions of torch, onnxscript and onnxruntime"
            )
        differences[name] = difference
    return differences


def compare_logits(expected: Arrays, found: Arrays, where: str, *, threshold: float = 0.5) -> dict[str, float]:
    """Compare the logits of a segmentor, and the labels that they give.

    Args:
        expected: `logits` of the model, (1, K, H, W).
        found: `logits` of the file.
        where: Description of the input, for the error.
        threshold: Threshold of the probabilities of a model with a single channel.

    Returns:
        The largest difference of `logits`, relative to their largest magnitude, and the part of the pixels with other
        `labels`.

    Raises:
        TwinsError: If a difference is too large.
    """
    differences = compare_values(expected, found, where)
    labels = [_labels(outputs["logits"], threshold) for outputs in (expected, found)]
    other = float((labels[0] != labels[1]).mean())
    if other > OTHER_LABELS:
        raise TwinsError(
            f"the exported model gives {other:.3%} of the pixels another label at {where}, more than "
            f"{OTHER_LABELS:.2%}: try other versions of torch, onnxscript and onnxruntime"
        )
    return {**differences, "labels": other}


def compare_detections(expected: Arrays, found: Arrays, where: str, *, threshold: float) -> dict[str, float]:
    """Compare detections pair by pair, whatever their order.

    A detection pairs with the closest one of the same label. It may lack a partner only if its score is within the
    tolerance of the threshold, or of the lowest score in a list that is full.

    Args:
        expected: `boxes`, `scores`, `labels` and maybe `masks` of the model.
        found: The same of the file.
        where: Description of the input, for the error.
        threshold: Score up to which detections are left out.

    Returns:
        The largest difference of `boxes` in pixels, of `scores`, and of `masks` in probability.

    Raises:
        TwinsError: If a difference is too large, or a detection has no partner.
    """
    tolerance = DETECTION_TOLERANCES["scores"]
    ours, theirs = (_above(outputs, threshold) for outputs in (expected, found))
    # Both lists are cut at the same number; which of the lowest scores are inside is a matter of rounding.
    full = len(ours["scores"]) == len(theirs["scores"]) and len(ours["scores"]) > 0
    lowest = max(threshold, min(ours["scores"].min(), theirs["scores"].min()) if full else threshold)
    differences = {name: 0.0 for name in DETECTION_TOLERANCES if name in expected}
    free = np.ones(len(theirs["scores"]), dtype=bool)
    for index, score in enumerate(ours["scores"]):
        distances = np.abs(theirs["boxes"] - ours["boxes"][index]).max(axis=1, initial=0.0)
        fits = (
            free
            & (theirs["labels"] == ours["labels"][index])
            & (distances <= DETECTION_TOLERANCES["boxes"])
            & (np.abs(theirs["scores"] - score) <= tolerance)
        )
        if not fits.any():
            if score <= lowest + tolerance:
                continue
            raise _unpaired("model", "file", ours, index, where)
        partner = int(np.where(fits, distances, np.inf).argmin())
        free[partner] = False
        for name in differences:
            largest = float(np.abs(ours[name][index] - theirs[name][partner]).max())
            if not largest <= DETECTION_TOLERANCES[name]:
                raise TwinsError(
                    f"the exported {name} differ from the model at {where} by {largest:.1e}, more than "
                    f"{DETECTION_TOLERANCES[name]:g}: try other versions of torch, onnxscript and onnxruntime"
                )
            differences[name] = max(differences[name], largest)
    for index in map(int, np.flatnonzero(free)):
        if theirs["scores"][index] > lowest + tolerance:
            raise _unpaired("file", "model", theirs, index, where)
    return differences


def _above(outputs: Arrays, threshold: float) -> dict[str, np.ndarray]:
    kept = outputs["scores"] > threshold
    return {name: values[kept] for name, values in outputs.items()}


def _unpaired(one: str, other: str, found: Arrays, index: int, where: str) -> TwinsError:
    box = ", ".join(f"{side:.2f}" for side in found["boxes"][index])
    return TwinsError(
        f"the {one} finds an object that the {other} does not find at {where}: label {found['labels'][index]}, score "
        f"{found['scores'][index]:.5f}, box ({box}): try other versions of torch, onnxscript and onnxruntime"
    )


def _labels(logits: np.ndarray, threshold: float) -> np.ndarray:
    return logits.argmax(axis=1) if logits.shape[1] > 1 else logits > threshold
