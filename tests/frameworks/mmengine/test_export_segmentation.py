"""Exported segmentors compute the same as mmsegmentation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_fixtures import assert_error, twins
from detection_fixtures import TINY_SVT, Run
from torch import nn

import twins_dense as td
from twins_dense.deploy.export import export_whole
from twins_dense.deploy.exportable import Exportable
from twins_dense.deploy.runtimes import open_exported
from twins_dense.frameworks import open_config

pytest.importorskip("mmseg", reason="installed with the extra segmentation")
pytest.importorskip("onnxruntime", reason="installed with the extra export")
pytest.importorskip("openvino", reason="installed with the extra export")

from twins_dense.frameworks.mmengine import segmentors  # noqa: F401  (registers the models)
from twins_dense.frameworks.mmengine.export_segmentation import (
    Reference,
    WholeSegmentor,
    _AdaptivePooling,
    describe_resizing,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

TINY_HEADS: dict[str, dict[str, Any]] = {
    "semantic_fpn_svt_small_80k": {
        "neck": {"in_channels": [16, 32, 32, 64], "out_channels": 16},
        "decode_head": {"in_channels": [16] * 4, "channels": 16, "num_classes": 3},
    },
    "upernet_svt_small_160k": {
        "decode_head": {"in_channels": [16, 32, 32, 64], "channels": 16, "num_classes": 3},
        "auxiliary_head": {"in_channels": 32, "channels": 16, "num_classes": 3},
    },
}


def random_segmentor(name: str, changes: dict[str, Any] | None = None) -> Exportable:
    """Return the model of a config with random weights; `changes` are made to `model`."""
    from mmengine.registry import MODELS, init_default_scope

    _, config = open_config(f"mmseg/{name}")
    config.merge_from_dict({"model": changes or {}})
    config.model.backbone.weights = None
    init_default_scope("mmseg")
    torch.manual_seed(0)
    model = MODELS.build(config.model).eval()
    return Exportable(WholeSegmentor(model).eval(), Reference(model), ("logits",), {"kind": "segmentor"})


def tiny(name: str, **head: Any) -> Exportable:
    changes = {part: dict(values) for part, values in TINY_HEADS[name].items()}
    changes["decode_head"].update(head)
    return random_segmentor(name, {**changes, "backbone": {"variant": {"_delete_": True, **TINY_SVT}}})


@pytest.mark.parametrize("name", TINY_HEADS)
def test_the_forward_pass(name: str) -> None:
    """Also with padding, and for any content of it."""
    model = tiny(name)
    with torch.no_grad():
        for size in ((64, 96), (50, 71)):
            image = torch.rand(1, 3, 64, 96) * 255
            (ours,), (theirs,) = (f(image, torch.tensor(size)) for f in (model.net, model.reference))
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
            image[:, :, size[0] :], image[:, :, :, size[1] :] = 0, 255
            torch.testing.assert_close(model.net(image, torch.tensor(size))[0], ours)


@pytest.mark.parametrize("name", TINY_HEADS)
def test_files(name: str, tmp_path: Path) -> None:
    differences = export_whole(tiny(name), tmp_path / "a.xml", sizes=((64, 96), (150, 131)))
    assert differences["logits"] <= 1e-4


def test_one_channel() -> None:
    """The second of the two classes wins exactly where the probability is above the threshold."""
    model = tiny("semantic_fpn_svt_small_80k", num_classes=2, out_channels=1, threshold=0.3)
    image, size = torch.rand(1, 3, 64, 96) * 255, torch.tensor([64, 96])
    with torch.no_grad():
        (logits,) = model.net(image, size)
        torch.testing.assert_close(logits, model.reference(image, size)[0], rtol=1e-4, atol=1e-5)
    probability = (logits[:, 1] - logits[:, 0] + torch.logit(torch.tensor(0.3))).sigmoid()
    assert logits.shape == (1, 2, 64, 96)
    assert torch.equal(logits.argmax(1) == 1, probability > 0.3)


@pytest.mark.parametrize("size", [(7, 11), (6, 12), (2, 3), (1, 1)])
@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_pooling(size: tuple[int, int], parts: int) -> None:
    x = torch.randn(2, 3, *size)
    torch.testing.assert_close(_AdaptivePooling(parts)(x), nn.functional.adaptive_avg_pool2d(x, parts))


def test_resizing() -> None:
    load, pack = {"type": "LoadImageFromFile"}, {"type": "PackSegInputs"}
    resize = {"type": "Resize", "scale": (2048, 512), "keep_ratio": True}
    assert describe_resizing([load, resize, pack]) == {"short": 512, "long": 2048, "mode": "cv2"}
    assert describe_resizing([load, pack]) is None
    for step in ({**resize, "keep_ratio": False}, {"type": "Pad", "size": (512, 512)}, {**resize, "backend": "pillow"}):
        with pytest.raises(td.TwinsError, match=rf"^the test pipeline has the step [^\n]*{step['type']}[^\n]+$"):
            describe_resizing([load, step, pack])


def test_a_trained_run(segmentation_run: Run, tmp_path: Path) -> None:
    out = tmp_path / "mine.onnx"
    result = twins("export", segmentation_run.work_dir, out)
    assert result.code == 0, result.err
    assert "mine.onnx" in result.out and "logits" in result.out and "labels" in result.out
    exported = open_exported(out)
    model = td.load_model(segmentation_run.work_dir)
    assert exported.about["classes"] == list(model.classes) and exported.about["first_value"] == 1
    assert exported.about["resize"] == {"short": 64, "long": 96, "mode": "cv2"}
    assert exported.about["size_step"] == 32 and len(exported.about["weights_sha256"]) == 64
    json.dumps(exported.about)
    # An image that the network sees as it is has the same labels as `predict`.
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    inputs = {"image": image.transpose(2, 0, 1)[None].astype(np.float32), "size": np.array([64, 96])}
    labels = exported(inputs)["logits"][0].argmax(0)
    assert (labels == model.predict(image).labels - 1).mean() >= 0.9999
    assert_error(twins("export", segmentation_run.work_dir, out), "exists: name a new file")
    assert_error(
        twins("export", segmentation_run.work_dir, tmp_path / "b.onnx", "model.test_cfg.mode=slide"),
        "only models that are tested on whole images",
    )
    assert [file.name for file in tmp_path.iterdir()] == ["mine.onnx"]


def test_bad_input(tmp_path: Path) -> None:
    assert_error(twins("export", tmp_path / "gone", tmp_path / "a.onnx"), "no such work directory")
    assert_error(twins("export", tmp_path / "gone", tmp_path / "a.txt"), "end its name in .onnx, .xml or .pt2")
    assert_error(twins("export", tmp_path / "a.onnx"), "give MODEL and OUT, or OUT with --variant and --weights")
    assert_error(
        twins("export", tmp_path / "a.onnx", "--variant", "svt_small"), "give OUT with --variant and --weights"
    )


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
@pytest.mark.parametrize(
    "name",
    [
        "semantic_fpn_svt_small_80k",
        "semantic_fpn_pcpvt_small_80k",
        "upernet_svt_small_160k",
        "upernet_pcpvt_small_160k",
    ],
)
def test_published_models(name: str, suffix: str, tmp_path: Path) -> None:
    sizes = ((480, 640), (800, 1216), (512, 512), (250, 331))
    print(name, suffix, export_whole(random_segmentor(name), tmp_path / f"a{suffix}", sizes=sizes))
