"""Write a `torch.export` program to a file of each format, with metadata."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.export import ExportedProgram

from ..errors import requires_extra

EXPORT_SUFFIXES = (".onnx", ".xml", ".pt2")
SUFFIX_CHOICE = f"{', '.join(EXPORT_SUFFIXES[:-1])} or {EXPORT_SUFFIXES[-1]}"  # for messages
METADATA = "twins_dense.json"  # name of the JSON text about the model in each file


def files_of(path: Path) -> tuple[Path, ...]:
    """Return the files of an exported model: OpenVINO has a second one, with the weights. `path` comes last."""
    return (path.with_suffix(".bin"), path) if path.suffix == ".xml" else (path,)


def write_program(
    program: ExportedProgram, path: Path, inputs: Sequence[str], outputs: Sequence[str], metadata: str
) -> None:
    """Write a program in the format that the suffix of `path` names.

    Args:
        program: The program.
        path: Path of the file. Its suffix is one of `EXPORT_SUFFIXES`.
        inputs: Names of the inputs, in order.
        outputs: Names of the outputs, in order.
        metadata: JSON text about the model.

    Raises:
        TwinsError: If a package is missing.
    """
    if path.suffix == ".pt2":
        torch.export.save(program, path, extra_files={METADATA: metadata})
    elif path.suffix == ".onnx":
        _write_onnx(program, path, inputs, outputs, metadata)
    else:
        _write_openvino(program, path, inputs, outputs, metadata)


def _write_onnx(
    program: ExportedProgram, path: Path, inputs: Sequence[str], outputs: Sequence[str], metadata: str
) -> None:
    with requires_extra("export"):
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    model = torch.onnx.export(
        program, (), input_names=list(inputs), output_names=list(outputs), dynamo=True, verbose=False
    )
    assert model is not None
    model.model.metadata_props[METADATA] = metadata
    model.save(path, external_data=False)


def _write_openvino(
    program: ExportedProgram, path: Path, inputs: Sequence[str], outputs: Sequence[str], metadata: str
) -> None:
    """Convert the program to ONNX first, because OpenVINO reads the names and the dynamic sizes from there."""
    with requires_extra("export"):
        import openvino
    onnx_path = path.with_suffix(".onnx")
    try:
        _write_onnx(program, onnx_path, inputs, outputs, metadata)
        model = openvino.convert_model(onnx_path)
    finally:
        onnx_path.unlink(missing_ok=True)
    model.set_rt_info(metadata, [METADATA])
    openvino.save_model(model, path, compress_to_fp16=False)
