"""Export trained detectors and segmentors to files that run without this package."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..deploy.export import check_target, export_whole
from ..errors import TwinsError
from ..evaluation.thresholds import find_evaluation, recommended_thresholds
from ..weights.download import fetch_weights, sha256_of
from .load import Source, open_source


def export_model(source: Source, out: str | os.PathLike[str], *, overrides: Sequence[str] = ()) -> dict[str, float]:
    """Export a trained detector or segmentor to a file.

    The file takes one image of any height and width (see `docs/deploy.md`), and also holds the classes, the size that
    images are resized to and, if the checkpoint of a detector has been evaluated, the recommended score thresholds. It
    appears only after its outputs have been compared with those of the model.

    Args:
        source: See `load_model`; backbones and classifiers are exported by `twins-dense export OUT --variant …`.
        out: "NAME.onnx"; "NAME.xml" for OpenVINO, with the weights in "NAME.bin"; or "NAME.pt2" for a program that
            `torch.export.load` reads.
        overrides: Overrides of the config, of the form `key=value`.

    Returns:
        The largest differences from the model, by output (see `export_whole`).

    Raises:
        TwinsError: if there is no such model, it cannot be exported, the file exists, a package is missing, or the file
            and the model differ.
    """
    out = check_target(out)
    opened = open_source(source, overrides)
    model = opened.engine.exportable(opened.config, opened.path)
    about = {"weights_sha256": sha256_of(fetch_weights(opened.path))}
    if model.about["kind"] == "detector":
        return export_whole(model, out, about={**about, "thresholds": _thresholds(opened.path)})
    return export_whole(model, out, about=about)


def _thresholds(checkpoint: str | Path) -> list[float] | None:
    """Return the recommended score threshold of each class, or `None` if the checkpoint has not been evaluated."""
    try:
        return recommended_thresholds(find_evaluation(checkpoint)).by_class.tolist()
    except TwinsError:
        return None
