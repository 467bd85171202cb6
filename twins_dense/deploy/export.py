"""Export models to ONNX files and `torch.export` programs, checked against the original model."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from ..atomic import atomic_path
from ..errors import TwinsError, one_line, requires_extra
from ..factory import create_classifier, load_backbone_with_report
from ..models.backbone import TwinsBackbone, describe_backbone
from ..models.classifier import TwinsClassifier
from ..models.layers import WindowPadding
from ..weights.catalog import CATALOG, published_as
from ..weights.download import fetch_weights, sha256_of
from ..weights.load import LoadReport, load_weights
from ..weights.preprocessing import OFFICIAL_PREPROCESSING, Preprocessing

EXPORT_SUFFIXES = (".onnx", ".pt2")
METADATA = "twins_dense.json"
# Largest accepted difference from the model, relative to the largest magnitude of each output.
TOLERANCE = 1e-4
# (batch, height, width). Windows of 7 need no padding, padding on one axis, or on both axes; or there is only one.
CHECKED_SHAPES = ((1, 224, 224), (2, 160, 224), (3, 128, 160), (1, 64, 96))
# Tracing replaces these sizes by symbols, so none of them may be a special case (1 image, 1 window).
_TRACED_SHAPE = (3, 480, 736)
_SIZE_STEP = 32


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
    """Export a model to a file that accepts any batch size, and heights and widths that are multiples of 32 from 64 on.

    The input is `images`, float32 (B, 3, H, W); the outputs are the levels `c2`, `c3`, … or `logits`. The file also
    contains JSON about the model (variant, levels, preprocessing, …): in the metadata of an ONNX file, and in the extra
    files of a `.pt2`, under the name "twins_dense.json". The file appears only after its outputs have been
    compared with those of the model.

    Args:
        net: The model, on the CPU, in eval mode.
        path: "NAME.onnx", or "NAME.pt2" for a program that `torch.export.load` reads.
        preprocessing: Preprocessing of the images, recorded in the file.
        weights_sha256: SHA-256 of the weights, recorded in the file.
        shapes: Shapes (batch, height, width) of the random images for the comparison.

    Returns:
        The largest difference from the model for each output, relative to the largest magnitude of this output.

    Raises:
        TwinsError: If the suffix is unknown, a package is missing, or the file and the model differ.
    """
    path = Path(path)
    if path.suffix not in EXPORT_SUFFIXES:
        raise TwinsError(f"{str(path)!r}: give a name that ends in {' or '.join(EXPORT_SUFFIXES)}")
    write, read = (_write_onnx, _read_onnx) if path.suffix == ".onnx" else (_write_program, _read_program)
    metadata = json.dumps(_describe(net, preprocessing, weights_sha256))
    with atomic_path(path) as temporary, _without_gradients(net):
        write(_trace(net), temporary, _output_names(net), metadata)
        return _compare(net, read(temporary), shapes)


def read_onnx(path: str | os.PathLike[str]) -> tuple[Callable[[Tensor], tuple[Tensor, ...]], dict[str, Any]]:
    """Read an ONNX file written by `export`, to run it with onnxruntime on the CPU.

    Returns:
        A function from images (B, 3, H, W) to the outputs, and the metadata in the file.

    Raises:
        TwinsError: If the file cannot be read, or was not written by `export`.
    """
    with requires_extra("export"):
        import onnxruntime
    path = Path(path)
    if not path.is_file():
        raise TwinsError(f"{str(path)!r}: {'is a folder' if path.is_dir() else 'no such file'}; check the path")
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base class
        raise TwinsError(f"{str(path)!r} is not an ONNX model ({one_line(error)}): export it again") from None
    metadata = session.get_modelmeta().custom_metadata_map.get(METADATA)
    if metadata is None:
        raise TwinsError(f"{str(path)!r} has no metadata of `twins-dense export`: export the model with this command")

    def run(images: Tensor) -> tuple[Tensor, ...]:
        outputs = session.run(None, {"images": images.detach().cpu().numpy()})
        return tuple(torch.from_numpy(output) for output in outputs)

    return run, json.loads(metadata)


class OnnxClassifier(NamedTuple):
    """An exported ImageNet classifier.

    Attributes:
        net: Function from images (B, 3, H, W) to logits (B, 1000).
        report: One-line description of the file.
        variant: Name of the variant.
    """

    net: Callable[[Tensor], Tensor]
    report: str
    variant: str


def read_onnx_classifier(path: str | os.PathLike[str]) -> OnnxClassifier:
    """Read the ONNX file of an ImageNet classifier.

    Raises:
        TwinsError: If the file cannot be read, or is not a classifier of 1000 classes.
    """
    run, metadata = read_onnx(path)
    if metadata["kind"] != "classifier" or metadata["num_classes"] != 1000:
        raise TwinsError(f"{str(path)!r} is not a classifier of 1000 classes: export one with --classifier")
    variant = metadata["variant"]
    return OnnxClassifier(lambda images: run(images)[0], f"{path} ({variant}), run by onnxruntime", variant)


def _trace(net: TwinsBackbone) -> ExportedProgram:
    batch, rows, columns = Dim("batch", min=1), Dim("rows", min=2), Dim("columns", min=2)
    batch_size, height, width = _TRACED_SHAPE
    program = torch.export.export(
        net,
        (torch.zeros(batch_size, 3, height, width),),
        dynamic_shapes={"images": {0: batch, 2: _SIZE_STEP * rows, 3: _SIZE_STEP * columns}},
    )
    # torch also records guards for the memory layout of the traced sizes. They would refuse sizes with another layout,
    # although the program computes these correctly, as the comparison shows. There is no public way to drop the guards.
    # The ranges of the sizes are still checked.
    program._guards_code.clear()
    return program


def _write_onnx(program: ExportedProgram, path: Path, names: Sequence[str], metadata: str) -> None:
    with requires_extra("export"):
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    model = torch.onnx.export(program, (), input_names=["images"], output_names=list(names), dynamo=True, verbose=False)
    assert model is not None
    model.model.metadata_props[METADATA] = metadata
    model.save(path, external_data=False)


def _read_onnx(path: Path) -> Callable[[Tensor], tuple[Tensor, ...]]:
    return read_onnx(path)[0]


def _write_program(program: ExportedProgram, path: Path, names: Sequence[str], metadata: str) -> None:
    with path.open("wb") as file:  # torch accepts a path only if it ends in .pt2
        torch.export.save(program, file, extra_files={METADATA: metadata})


def _read_program(path: Path) -> Callable[[Tensor], Any]:
    with path.open("rb") as file:
        return torch.export.load(file).module()


def _compare(
    net: TwinsBackbone, exported: Callable[[Tensor], Any], shapes: Sequence[tuple[int, int, int]]
) -> dict[str, float]:
    names = _output_names(net)
    differences = dict.fromkeys(names, 0.0)
    generator = torch.Generator().manual_seed(0)
    for batch, height, width in shapes:
        images = torch.randn(batch, 3, height, width, generator=generator)
        expected, found = net(images), exported(images)
        if isinstance(net, TwinsClassifier):
            expected, found = (expected,), found if isinstance(found, tuple) else (found,)
        for name, ours, theirs in zip(names, expected, found, strict=True):
            difference = ((ours - theirs).abs().max() / ours.abs().max()).item() if ours.shape == theirs.shape else 1.0
            if not difference <= TOLERANCE:  # NaN included
                raise TwinsError(
                    f"the exported {name} differs from the model at {batch}x3x{height}x{width} by {difference:.1e} of "
                    f"its magnitude, more than {TOLERANCE:g}: try other versions of torch, onnxscript and onnxruntime"
                )
            differences[name] = max(differences[name], difference)
    return differences


def _describe(net: TwinsBackbone, preprocessing: Preprocessing | None, weights_sha256: str | None) -> dict[str, Any]:
    from .. import __version__

    kind: dict[str, Any] = {"kind": "backbone"}
    if isinstance(net, TwinsClassifier):
        kind = {"kind": "classifier", "num_classes": net.head.out_features}
    return {
        **describe_backbone(net),
        **kind,
        "colour": "RGB",
        "preprocessing": None if preprocessing is None else dataclasses.asdict(preprocessing),
        "size_step": _SIZE_STEP,
        "weights_sha256": weights_sha256,
        "versions": {"twins_dense": __version__, "torch": str(torch.__version__)},
    }


def _output_names(net: TwinsBackbone) -> tuple[str, ...]:
    return ("logits",) if isinstance(net, TwinsClassifier) else net.pyramid.names


@contextmanager
def _without_gradients(net: TwinsBackbone) -> Iterator[None]:
    if net.training:
        raise TwinsError("the model is in training mode: call model.eval() first")
    with torch.no_grad():
        yield
