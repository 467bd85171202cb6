"""Export models to files that run without this package, checked against the original model."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..errors import TwinsError
from ..factory import create_classifier, load_backbone_with_report
from ..models.backbone import TwinsBackbone, describe_backbone
from ..models.classifier import TwinsClassifier
from ..models.layers import WindowPadding
from ..weights.catalog import CATALOG, published_as
from ..weights.download import fetch_weights, sha256_of
from ..weights.load import LoadReport, load_weights
from ..weights.preprocessing import OFFICIAL_PREPROCESSING, Preprocessing
from .compare import compare_detections, compare_logits, compare_values
from .exportable import SIZE_STEP, Exportable
from .formats import EXPORT_SUFFIXES, files_of, write_program
from .runtimes import ExportedFile, open_exported

# (batch, height, width). Windows of 7 need no padding, padding on one axis, or on both axes; or there is only one.
CHECKED_SHAPES = ((1, 224, 224), (2, 160, 224), (3, 128, 160), (1, 64, 96))
# Heights and widths of whole images, without their padding to multiples of 32.
CHECKED_SIZES = ((480, 640), (320, 256), (250, 331))
# Tracing replaces these sizes by symbols, so none of them may be a special case (1 image, 1 window).
_TRACED_BATCH, _TRACED_SIZE = 3, (480, 736)
_SMALLEST_SIDE = 64


class TrainedModel(NamedTuple):
    """A trained model to export, with the information to record in the exported file.

    Attributes:
        net: The model, on the CPU, in eval mode.
        report: Report of the loaded parameters.
        preprocessing: Preprocessing of the images.
        weights_sha256: SHA-256 of the weights file.
    """

    net: TwinsBackbone | TwinsClassifier
    report: LoadReport
    preprocessing: Preprocessing
    weights_sha256: str


def load_trained(
    variant: str,
    weights: str,
    *,
    classifier: bool = False,
    out_indices: Sequence[int] = (0, 1, 2, 3),
    window_padding: WindowPadding = "zeros",
) -> TrainedModel:
    """Load a backbone or classifier for export.

    If the weights are in the catalog, by name or SHA-256, the preprocessing is taken from there. Otherwise it is the
    official one.

    Args:
        variant: Name of the variant, one of `list_variants()`.
        weights: Path of a file, or a catalog name.
        classifier: Whether to load the whole classifier instead of the backbone.
        out_indices: Stages that the backbone returns.
        window_padding: See `create_backbone`.

    Raises:
        TwinsError: If a name is unknown, or the weights do not fit.
    """
    net: TwinsBackbone | TwinsClassifier
    if classifier:
        net = create_classifier(variant, window_padding=window_padding).eval()
        report = load_weights(net, weights)
    else:
        net, report = load_backbone_with_report(
            variant, weights, out_indices=out_indices, window_padding=window_padding
        )
    sha256 = sha256_of(fetch_weights(weights))
    published = CATALOG.get(weights) or published_as(sha256)
    return TrainedModel(net, report, published.preprocessing if published else OFFICIAL_PREPROCESSING, sha256)


def export(
    net: TwinsBackbone | TwinsClassifier,
    path: str | os.PathLike[str],
    *,
    preprocessing: Preprocessing | None = None,
    weights_sha256: str | None = None,
    shapes: Sequence[tuple[int, int, int]] = CHECKED_SHAPES,
) -> dict[str, float]:
    """Export a backbone or classifier to a file that accepts any batch size, and sides of 64, 96, 128, … pixels.

    The input is `images`, float32 (B, 3, H, W), normalised; the outputs are the levels `c2`, `c3`, … or `logits`. The
    file also contains JSON about the model (variant, levels, preprocessing, …) under the name "twins_dense.json": in
    the metadata of an ONNX file, in the `rt_info` of an OpenVINO model, and in the extra files of a `.pt2`. The file
    appears only after its outputs have been compared with those of the model.

    Args:
        net: The model, on the CPU, in eval mode.
        path: "NAME.onnx"; "NAME.xml" for OpenVINO, with the weights in "NAME.bin"; or "NAME.pt2" for a program that
            `torch.export.load` reads.
        preprocessing: Preprocessing of the images, recorded in the file.
        weights_sha256: SHA-256 of the weights, recorded in the file.
        shapes: Shapes (batch, height, width) of the random images for the comparison.

    Returns:
        The largest difference from the model for each output, relative to the largest magnitude of this output.

    Raises:
        TwinsError: If the suffix is unknown, the file exists, a package is missing, or the file and the model differ.
    """
    names = _output_names(net)
    about = _describe(net, preprocessing, weights_sha256)

    def check(exported: ExportedFile) -> dict[str, float]:
        generator = torch.Generator().manual_seed(0)
        differences = dict.fromkeys(names, 0.0)
        for batch, height, width in shapes:
            images = torch.randn(batch, 3, height, width, generator=generator)
            expected = _by_name(names, net(images))
            found = exported({"images": images.numpy()})
            _keep_largest(differences, compare_values(expected, found, f"{batch}x3x{height}x{width}"))
        return differences

    return _export(
        net, path, (torch.zeros(_TRACED_BATCH, 3, *_TRACED_SIZE),), ("images",), names, about, check, SIZE_STEP
    )


def export_whole(
    model: Exportable,
    path: str | os.PathLike[str],
    *,
    about: dict[str, Any] | None = None,
    sizes: Sequence[tuple[int, int]] = CHECKED_SIZES,
) -> dict[str, float]:
    """Export a detector or segmentor to a file that accepts sides of 64, 96, 128, … pixels.

    The inputs and outputs are those of `Exportable`. The formats and the place of the metadata are those of `export`.
    The file appears only after its outputs have been compared with those of the framework at several sizes, each with
    noise, with coloured rectangles, and with a grey image, in which there is nothing to find.

    Args:
        model: The model.
        path: See `export`.
        about: More data to record in the file, such as the SHA-256 of the weights.
        sizes: Heights and widths of the images for the comparison. They are padded to multiples of 32.

    Returns:
        The largest difference for each output: of `boxes` in pixels, of `scores`, and of `masks` in probability; of
        `logits` relative to their magnitude, and the part of the pixels with other `labels`.

    Raises:
        TwinsError: As `export` does.
    """
    described = {"size_step": SIZE_STEP, **model.about, **(about or {})}
    step = described["size_step"]

    def check(exported: ExportedFile) -> dict[str, float]:
        differences: dict[str, float] = {}
        for height, width in sizes:
            size = torch.tensor([height, width])
            for content, image in _pictures(height, width, step):
                expected = _by_name(model.outputs, model.reference(image, size))
                found = exported({"image": image.numpy(), "size": size.numpy()})
                where = f"{height}x{width}, {content}"
                if described["kind"] == "segmentor":
                    threshold = described.get("threshold") or 0.5
                    result = compare_logits(expected, found, where, threshold=threshold)
                else:
                    threshold = described.get("score_threshold") or 0.0
                    result = compare_detections(expected, found, where, threshold=threshold)
                _keep_largest(differences, result)
        return differences

    traced = (torch.zeros(1, 3, *_TRACED_SIZE), torch.tensor(_TRACED_SIZE))
    return _export(model.net, path, traced, ("image", "size"), model.outputs, described, check, step)


def check_target(path: str | os.PathLike[str]) -> Path:
    """Return the path of a file to export to.

    Raises:
        TwinsError: If its suffix is unknown, or the file exists.
    """
    path = Path(path)
    if path.suffix not in EXPORT_SUFFIXES:
        raise TwinsError(
            f"OUT {str(path)!r}: end its name in {', '.join(EXPORT_SUFFIXES[:-1])} or {EXPORT_SUFFIXES[-1]}"
        )
    for file in files_of(path):
        if file.exists():
            raise TwinsError(f"OUT {str(file)!r} exists: name a new file")
    return path


def _export(
    net: nn.Module,
    path: str | os.PathLike[str],
    traced: tuple[Tensor, ...],
    inputs: Sequence[str],
    outputs: Sequence[str],
    about: dict[str, Any],
    check: Callable[[ExportedFile], dict[str, float]],
    step: int,
) -> dict[str, float]:
    """Write a file in a temporary folder, check it, and move it to its place."""
    path = check_target(path)
    metadata = json.dumps({"format": 1, **about, "inputs": list(inputs), "outputs": list(outputs), **_versions()})
    path.parent.mkdir(parents=True, exist_ok=True)
    with _without_gradients(net), tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        temporary = Path(folder) / path.name
        write_program(_trace(net, traced, step), temporary, inputs, outputs, metadata)
        differences = check(open_exported(temporary))
        for source, target in zip(files_of(temporary), files_of(check_target(path)), strict=True):
            os.replace(source, target)
    return differences


def _trace(net: nn.Module, inputs: tuple[Tensor, ...], step: int) -> ExportedProgram:
    rows, columns = (Dim(name, min=-(-_SMALLEST_SIDE // step)) for name in ("rows", "columns"))
    sizes: dict[int, Any] = {2: step * rows, 3: step * columns}
    if len(inputs) == 1:
        sizes[0] = Dim("batch", min=1)
    program = torch.export.export(net, inputs, dynamic_shapes=(sizes, *[None] * (len(inputs) - 1)))
    # torch also records guards for the memory layout of the traced sizes. They would refuse sizes with another layout,
    # although the program computes these correctly, as the comparison shows. There is no public way to drop the guards.
    # The ranges of the sizes are still checked.
    program._guards_code.clear()
    return program


def _pictures(height: int, width: int, step: int) -> Iterator[tuple[str, Tensor]]:
    """Yield images, each with a word for its content, and with noise as their padding to multiples of a step."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (height, width, 3))
    shapes = np.full((height, width, 3), 96)
    for _ in range(30):
        y, x = rng.integers(0, height - 8), rng.integers(0, width - 8)
        rows, columns = rng.integers(8, height // 2), rng.integers(8, width // 2)
        shapes[y : y + rows, x : x + columns] = rng.integers(0, 256, 3)
    # Without any texture, whole rows of candidates would have equal scores, and their order would be arbitrary.
    grey = rng.integers(106, 123, (height, width, 3))
    for content, picture in (("noise", noise), ("rectangles", shapes), ("grey", grey)):
        padded = rng.integers(0, 256, (*(-(-side // step) * step for side in (height, width)), 3))
        padded[:height, :width] = picture
        yield content, torch.from_numpy(padded).permute(2, 0, 1)[None].float().contiguous()


def _by_name(names: Sequence[str], outputs: Tensor | tuple[Tensor, ...]) -> dict[str, np.ndarray]:
    values = (outputs,) if isinstance(outputs, Tensor) else outputs
    return {name: value.numpy() for name, value in zip(names, values, strict=True)}


def _keep_largest(differences: dict[str, float], more: dict[str, float]) -> None:
    for name, difference in more.items():
        differences[name] = max(differences.get(name, 0.0), difference)


def _describe(net: TwinsBackbone, preprocessing: Preprocessing | None, weights_sha256: str | None) -> dict[str, Any]:
    kind: dict[str, Any] = {"kind": "backbone"}
    if isinstance(net, TwinsClassifier):
        kind = {"kind": "classifier", "num_classes": net.head.out_features}
    return {
        **describe_backbone(net),
        **kind,
        "colour": "RGB",
        "preprocessing": None if preprocessing is None else dataclasses.asdict(preprocessing),
        "size_step": SIZE_STEP,
        "weights_sha256": weights_sha256,
    }


def _versions() -> dict[str, Any]:
    from .. import __version__

    return {"versions": {"twins_dense": __version__, "torch": str(torch.__version__)}}


def _output_names(net: TwinsBackbone) -> tuple[str, ...]:
    return ("logits",) if isinstance(net, TwinsClassifier) else net.pyramid.names


@contextmanager
def _without_gradients(net: nn.Module) -> Iterator[None]:
    if net.training:
        raise TwinsError("the model is in training mode: call model.eval() first")
    with torch.no_grad(), warnings.catch_warnings():
        # torchvision 0.29 uses it when `nms` is traced; remove this once torchvision does not.
        warnings.filterwarnings("ignore", "`create_unbacked_symint` is deprecated", FutureWarning)
        yield
