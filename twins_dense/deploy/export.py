"""Models that leave Python: ONNX files and `torch.export` programs, checked against the model they came from."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from ..atomic import atomic_path
from ..errors import TwinsError
from ..models.backbone import TwinsBackbone, describe_backbone
from ..models.classifier import TwinsClassifier
from ..weights.preprocessing import Preprocessing

FORMATS = (".onnx", ".pt2")
METADATA = "twins_dense.json"
# Largest difference from the model, in units of each output's largest magnitude.
TOLERANCE = 1e-4
# (batch, height, width): windows of 7 that need no padding at any stage, padding on one axis, on both; one window.
CHECKED_SHAPES = ((1, 224, 224), (2, 160, 224), (3, 128, 160), (1, 64, 96))
# What is traced, with symbols in place of these numbers: none may be a special case (1 image, 1 window).
_TRACED_SHAPE = (3, 480, 736)
_SIZE_STEP = 32


def export(
    net: TwinsBackbone | TwinsClassifier,
    path: str | os.PathLike[str],
    *,
    preprocessing: Preprocessing | None = None,
    weights_sha256: str | None = None,
    shapes: Sequence[tuple[int, int, int]] = CHECKED_SHAPES,
) -> dict[str, float]:
    """Write a model to one file that takes any batch, and any height and width that are multiples of 32, from 64 up.

    Inputs are `images` (B, 3, H, W) float32, outputs the levels `c2`, `c3`, … or `logits`. The file also holds what
    one has to know to use it (variant, levels, preprocessing, …), as JSON: in ONNX metadata and in a `.pt2`'s extra
    files under "twins_dense.json". The file appears only once its outputs were compared with the model's.

    Args:
        net: on the CPU, in eval mode.
        path: "NAME.onnx", or "NAME.pt2" for a `torch.export` program, which `torch.export.load` reads.
        preprocessing: noted in the file.
        weights_sha256: noted in the file.
        shapes: (batch, height, width) of the random images that file and model are compared with.

    Returns:
        By output, its largest difference from the model's in units of its largest magnitude.

    Raises:
        TwinsError: for another suffix, where a package is missing, or where file and model differ.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise TwinsError(f"{str(path)!r}: give a name that ends in {' or '.join(FORMATS)}")
    write, read = (_write_onnx, _read_onnx) if path.suffix == ".onnx" else (_write_program, _read_program)
    metadata = json.dumps(_describe(net, preprocessing, weights_sha256))
    with atomic_path(path) as temporary, _without_gradients(net):
        write(_trace(net), temporary, _output_names(net), metadata)
        return _compare(net, read(temporary), shapes)


def read_onnx(path: str | os.PathLike[str]) -> tuple[Callable[[Tensor], tuple[Tensor, ...]], dict[str, Any]]:
    """A model in a file of `export`, run by onnxruntime on the CPU, and what the file says of it.

    Returns:
        A function of (B, 3, H, W) images that returns the outputs, and the metadata.

    Raises:
        TwinsError: where the file can't be read or is of another origin.
    """
    onnxruntime = _needed("onnxruntime")
    path = Path(path)
    if not path.is_file():
        raise TwinsError(f"{str(path)!r}: {'is a folder' if path.is_dir() else 'no such file'}; check the path")
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has an exception for each kind of damage, and no common one
        line = " ".join(str(error).split())
        raise TwinsError(f"{str(path)!r} is no ONNX model ({line}): export it again") from None
    metadata = session.get_modelmeta().custom_metadata_map.get(METADATA)
    if metadata is None:
        raise TwinsError(
            f"{str(path)!r} is not of `twins-dense export`, which notes what a model needs: export it again"
        )

    def run(images: Tensor) -> tuple[Tensor, ...]:
        outputs = session.run(None, {"images": images.detach().cpu().numpy()})
        return tuple(torch.from_numpy(output) for output in outputs)

    return run, json.loads(metadata)


def _trace(net: TwinsBackbone) -> ExportedProgram:
    batch, rows, columns = Dim("batch", min=1), Dim("rows", min=2), Dim("columns", min=2)
    batch_size, height, width = _TRACED_SHAPE
    program = torch.export.export(
        net,
        (torch.zeros(batch_size, 3, height, width),),
        dynamic_shapes={"images": {0: batch, 2: _SIZE_STEP * rows, 3: _SIZE_STEP * columns}},
    )
    # torch also notes which sizes have the memory layout of the traced ones and would refuse the others, though it
    # computes them rightly, as the comparison shows. The ranges of the sizes stay.
    program._guards_code.clear()
    return program


def _write_onnx(program: ExportedProgram, path: Path, names: Sequence[str], metadata: str) -> None:
    _needed("onnxscript")
    model = torch.onnx.export(program, (), input_names=["images"], output_names=list(names), dynamo=True, verbose=False)
    assert model is not None
    model.model.metadata_props[METADATA] = metadata
    model.save(path, external_data=False)


def _read_onnx(path: Path) -> Callable[[Tensor], tuple[Tensor, ...]]:
    return read_onnx(path)[0]


def _write_program(program: ExportedProgram, path: Path, names: Sequence[str], metadata: str) -> None:
    with path.open("wb") as file:  # torch takes a path only if it ends in .pt2
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
                    f"the exported {name} differs from the model's at {batch}x3x{height}x{width} by {difference:.1e} "
                    f"of its magnitude, more than {TOLERANCE:g}: try other versions of torch, onnxscript, onnxruntime"
                )
            differences[name] = max(differences[name], difference)
    return differences


def _describe(net: TwinsBackbone, preprocessing: Preprocessing | None, weights_sha256: str | None) -> dict[str, Any]:
    from .. import __version__

    is_classifier = isinstance(net, TwinsClassifier)
    return {
        **describe_backbone(net),
        "kind": "classifier" if is_classifier else "backbone",
        **({"num_classes": net.head.out_features} if isinstance(net, TwinsClassifier) else {}),
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
        raise TwinsError("the model is in training mode: call its eval()")
    with torch.no_grad():
        yield


def _needed(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise TwinsError(f"{package} is not installed, which ONNX needs: pip install 'twins-dense[export]'") from None
