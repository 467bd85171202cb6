"""Run exported files with the runtime of their format: onnxruntime, OpenVINO or torch."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import TwinsError, one_line, requires_extra
from .formats import EXPORT_SUFFIXES, METADATA, SUFFIX_CHOICE, files_of

Arrays = Mapping[str, np.ndarray]
_Session = tuple[Callable[[Arrays], Sequence[Any]], str | None]  # function from inputs to outputs in order, metadata


@dataclass(frozen=True)
class ExportedFile:
    """An exported model, ready to run on the CPU.

    Attributes:
        path: Path of the file.
        about: Description of the model from the file: `kind`, `inputs`, `outputs`, ….
        run: Function from the inputs by name to the outputs in order.
    """

    path: Path
    about: dict[str, Any]
    run: Callable[[Arrays], Sequence[Any]]

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Compute the outputs, by name.

        Args:
            inputs: Arrays by the names of the inputs: `image` and `size` for detectors and segmentors (see
                `Exportable`), and `images` for backbones and classifiers, float32 (B, 3, H, W), normalised.
        """
        found = self.run({name: inputs[name] for name in self.about["inputs"]})
        return {name: np.asarray(value) for name, value in zip(self.about["outputs"], found, strict=True)}


def open_exported(path: str | os.PathLike[str], runtime: str = "auto", precision: str = "float32") -> ExportedFile:
    """Open a file that `export` has written.

    Args:
        path: "NAME.onnx", "NAME.xml" with "NAME.bin" beside it, or "NAME.pt2".
        runtime: Only "auto": the runtime of the format.
        precision: Only "float32".

    Raises:
        TwinsError: If the file cannot be read, was not written by `export`, or its runtime is not installed.
    """
    path = Path(path)
    if path.suffix not in EXPORT_SUFFIXES:
        raise TwinsError(f"{str(path)!r} is not an exported model: give a file that ends in {SUFFIX_CHOICE}")
    for file in files_of(path):
        if not file.is_file():
            raise TwinsError(f"{str(file)!r}: {'is a folder' if file.is_dir() else 'no such file'}; check the path")
    what, start = _FORMATS[path.suffix]
    try:
        run, metadata = start(path)
    except TwinsError:
        raise
    except Exception as error:  # the exceptions of the runtimes have no common base class
        raise TwinsError(f"{str(path)!r} is not {what} ({one_line(error)[:300]}): export it again") from None
    if not metadata:
        raise TwinsError(f"{str(path)!r} has no metadata of `twins-dense export`: export the model with this command")
    return ExportedFile(path, json.loads(metadata), run)


class ExportedClassifier(NamedTuple):
    """An exported ImageNet classifier.

    Attributes:
        net: Function from images (B, 3, H, W) to logits (B, 1000).
        report: One-line description of the file.
        variant: Name of the variant.
    """

    net: Callable[[Tensor], Tensor]
    report: str
    variant: str


def open_classifier(path: str | os.PathLike[str]) -> ExportedClassifier:
    """Open the file of an exported ImageNet classifier.

    Raises:
        TwinsError: If the file cannot be read, or is not a classifier of 1000 classes.
    """
    exported = open_exported(path)
    about = exported.about
    if about["kind"] != "classifier" or about["num_classes"] != 1000:
        raise TwinsError(f"{str(path)!r} is not a classifier of 1000 classes: export one with --classifier")

    def net(images: Tensor) -> Tensor:
        return torch.from_numpy(exported({"images": images.detach().cpu().numpy()})["logits"])

    name = {".onnx": "onnxruntime", ".xml": "OpenVINO", ".pt2": "torch"}[exported.path.suffix]
    return ExportedClassifier(net, f"{path} ({about['variant']}), run by {name}", about["variant"])


def _start_onnxruntime(path: Path) -> _Session:
    with requires_extra("export"):
        import onnxruntime
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map.get(METADATA)
    return lambda inputs: session.run(None, dict(inputs)), metadata


def _start_openvino(path: Path) -> _Session:
    with requires_extra("export"):
        import openvino
    with path.open("rb") as file:
        if b"<net" not in file.read(200):  # for such files, OpenVINO also prints errors of its own
            raise ValueError("it does not begin with <net …>")
    core = openvino.Core()
    model = core.read_model(path)
    metadata = model.get_rt_info([METADATA]).astype(str) if model.has_rt_info([METADATA]) else None
    # On a CPU with bfloat16, OpenVINO would use it by default.
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda inputs: list(compiled(dict(inputs)).values()), metadata


def _start_torch(path: Path) -> _Session:
    if not zipfile.is_zipfile(path):  # for such files, torch also prints errors of its own
        raise ValueError("it is not a ZIP archive")
    files = {METADATA: ""}
    module = torch.export.load(path, extra_files=files).module()

    def run(inputs: Arrays) -> Sequence[Any]:
        with torch.no_grad():
            found = module(*map(torch.from_numpy, inputs.values()))
        return (found,) if isinstance(found, Tensor) else found

    return run, files[METADATA]


_FORMATS: dict[str, tuple[str, Callable[[Path], _Session]]] = {
    ".onnx": ("an ONNX model", _start_onnxruntime),
    ".xml": ("an OpenVINO model", _start_openvino),
    ".pt2": ("a torch.export program", _start_torch),
}
