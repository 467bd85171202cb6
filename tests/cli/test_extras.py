"""The command line with packages missing: `--help` needs none of them, and a verb names the extra that it needs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from detection_fixtures import CONFIGS, run_python

from twins_dense.cli import _VERBS

SEGMENTOR = CONFIGS.parent / "mmseg" / "semantic_fpn_svt_small_80k.py"
# Runs `twins-dense ARGUMENTS` in a process in which some packages cannot be imported.
CODE = """
import sys
missing, *arguments = {arguments!r}
for name in missing.split():
    sys.modules[name] = None
sys.argv = ["twins-dense", *arguments]
from twins_dense.cli import main
main()
"""
DETECTION = "torchvision mmengine mmcv mmseg pycocotools hotcoco cv2 matplotlib ftfy regex"


def test_help_is_light() -> None:
    """Of every verb, in one process: torch and all that is as slow stays out."""
    code = (
        "import contextlib, io, json, sys\n"
        "from twins_dense.cli import group\n"
        f"for verb in {(None, *_VERBS)!r}:\n"
        "    output = io.StringIO()\n"
        "    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):\n"
        "        group([*([verb] if verb else []), '--help'])\n"
        "    assert 'Usage: ' in output.getvalue(), verb\n"
        "slow = ['torch', 'numpy', 'PIL', 'torchvision', 'mmengine', 'zarr', 'pyarrow']\n"
        "print(json.dumps([name for name in slow if name in sys.modules]))\n"
    )
    result = run_python("-c", code)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == []


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        (DETECTION, ["train", "torchvision/mask_rcnn_svt_small_1x"], "detection"),
        (DETECTION, ["eval", "torchvision/mask_rcnn_svt_small_1x", "epoch_12.pth"], "detection"),
        (DETECTION, ["predict", "torchvision/mask_rcnn_svt_small_1x", "epoch_12.pth", str(CONFIGS)], "detection"),
        (DETECTION, ["check-data", "torchvision/mask_rcnn_svt_small_1x"], "detection"),
        (DETECTION, ["demo"], "detection"),
        ("mmseg mmcv", ["train", "mmseg/semantic_fpn_svt_small_80k"], "segmentation"),
        ("ftfy", ["train", "mmseg/semantic_fpn_svt_small_80k"], "segmentation"),
        ("mmseg mmcv", ["benchmark", "svt_small", "--peer", "mmseg"], "segmentation"),
        (DETECTION, ["benchmark", "svt_small", "--peer", "mmseg"], "segmentation"),
        ("torchvision", ["validate", "--data", ".", "--variant", "svt_small", "--weights", "w.pth"], "imagenet"),
        ("zarr", ["extract", "photo.png", "--variant", "svt_small", "--weights", "w.pth", "--out", "f"], "features"),
        ("pyarrow", ["extract", "photo.png", "--variant", "svt_small", "--weights", "w.pth", "--out", "f"], "features"),
        ("onnxscript onnxruntime", ["export", "c.onnx", "--variant", "svt_small", "--weights", "w.pth"], "export"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_missing_package_is_one_line(missing: str, arguments: list[str], extra: str, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    arguments = [str(tmp_path / "photo.png") if argument == str(CONFIGS) else argument for argument in arguments]
    if "w.pth" in arguments:
        save_weights(tmp_path / "w.pth")
    result = run_python("-c", CODE.format(arguments=[missing, *arguments]), cwd=tmp_path)
    assert result.returncode == 2, result.stdout + result.stderr
    (line,) = result.stderr.strip().splitlines()
    if extra == "features" and sys.version_info < (3, 11):  # there, the extra would not help
        assert line.startswith("error: features need zarr 3, which needs Python 3.11")
        return
    assert line.startswith("error: ") and f"pip install 'twins-dense[{extra}]'" in line
    assert any(f"{name} is not installed" in line for name in missing.split())


def save_weights(path: Path) -> None:
    import torch

    import twins_dense as td

    torch.save(td.create_classifier("svt_small").state_dict(), path)


def test_features_need_no_detector(tmp_path: Path) -> None:
    """Extraction runs without any package of the detection extra."""
    pytest.importorskip("zarr", minversion="3.1", reason="zarr 3 needs Python 3.11")
    from PIL import Image

    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    save_weights(tmp_path / "w.pth")
    arguments = ["extract", "photo.png", "--variant", "svt_small", "--weights", "w.pth", "--out", "f", "--size", "64"]
    result = run_python("-c", CODE.format(arguments=[DETECTION, *arguments, "--workers", "0"]), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "f" / "index.parquet").is_file()


@pytest.mark.parametrize(
    "arguments",
    [["list", "mmseg/*"], ["show", "mmseg/upernet_svt_small_160k"], ["copy", "mmseg/upernet_svt_small_160k"]],
)
def test_configs_need_no_extra(arguments: list[str], tmp_path: Path) -> None:
    folder = ["mine"] if arguments[0] == "copy" else []
    result = run_python("-c", CODE.format(arguments=[DETECTION, "configs", *arguments, *folder]), cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "") and "upernet_svt_small_160k" in result.stdout


def test_the_core_is_enough_for_a_backbone() -> None:
    code = (
        "import sys\n"
        f"for name in {f'{DETECTION} zarr pyarrow onnx onnxscript onnxruntime huggingface_hub'!r}.split():\n"
        "    sys.modules[name] = None\n"
        "import torch, twins_dense as td\n"
        "print([tuple(level.shape) for level in td.create_backbone('svt_small')(torch.zeros(1, 3, 64, 64))])"
    )
    result = run_python("-c", code)
    assert result.stdout.strip() == "[(1, 64, 16, 16), (1, 128, 8, 8), (1, 256, 4, 4), (1, 512, 2, 2)]", result.stderr
