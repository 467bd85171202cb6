"""Exports of torchvision's detectors: the same detections as torchvision's own forward pass, in every runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detection_fixtures import Run, build_tiny
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign

from twins_dense.deploy.compare import compare_detections
from twins_dense.deploy.export import export_whole
from twins_dense.deploy.exportable import Exportable
from twins_dense.errors import TwinsError
from twins_dense.frameworks.mmengine.detectors import TwinsMaskRCNN, TwinsRetinaNet
from twins_dense.frameworks.mmengine.engine import exportable, load_config
from twins_dense.frameworks.mmengine.export_detection import exportable_detector

KINDS = ("TwinsMaskRCNN", "TwinsRetinaNet")
META = {"classes": ("a", "b", "c"), "category_ids": (3, 5, 7)}
# Without padding, with padding at the bottom, at the right, and with so much padding that levels are padding only.
SIZES = ((64, 96, 64, 96), (96, 160, 70, 160), (160, 96, 160, 65), (224, 224, 100, 128))


def spread(detector: Any) -> None:
    """Scale the last layers of a fresh detector, so that it finds many objects with different scores and sizes."""
    head = getattr(detector, "head", None)
    if head is None:
        rpn, heads = detector.rpn.head, detector.roi_heads
        layers = {
            rpn.cls_logits: 2.0,
            rpn.bbox_pred: 0.3,
            heads.box_predictor.cls_score: 3.0,
            heads.box_predictor.bbox_pred: 1.0,
            heads.mask_predictor.mask_fcn_logits: 2.0,
        }
    else:
        layers = {head.classification_head.cls_logits: 1.0, head.regression_head.bbox_reg: 0.3}
        convs = [*head.classification_head.conv, *head.regression_head.conv]
        for conv in (block[0] for block in convs):
            torch.nn.init.kaiming_normal_(conv.weight)
    for layer, gain in layers.items():
        torch.nn.init.xavier_normal_(layer.weight, gain=gain)


def tiny(kind: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    model = build_tiny(kind, **settings).eval()
    spread(model.detector)
    return model


def picture(height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (1, 3, height, width), generator=torch.Generator().manual_seed(height)).float()


def by_name(model: Exportable, outputs: tuple[Tensor, ...]) -> dict[str, Any]:
    return {name: values.numpy() for name, values in zip(model.outputs, outputs, strict=True)}


def assert_same_as_reference(model: Exportable, image: Tensor, size: Tensor) -> int:
    """Compare the two forward passes, and return the number of detections."""
    expected = by_name(model, model.reference(image, size))
    with torch.no_grad():
        found = by_name(model, model.net(image, size))
    assert {name: values.dtype for name, values in found.items()} == {
        name: values.dtype for name, values in expected.items()
    }
    assert (found["scores"][:-1] >= found["scores"][1:]).all()
    height, width = size.tolist()
    assert (found["boxes"] >= 0).all()
    assert (found["boxes"] <= [width, height, width, height]).all()
    compare_detections(expected, found, f"{height}x{width}", threshold=0.0)
    return len(expected["scores"])


@pytest.mark.parametrize("kind", KINDS)
def test_same_detections_as_torchvision(kind: str) -> None:
    detector = tiny(kind)
    model = exportable_detector(detector, META)
    assert {id(p) for p in model.net.parameters()} == {id(p) for p in detector.parameters()}  # no copies
    for rows, columns, height, width in SIZES:
        count = assert_same_as_reference(model, picture(rows, columns), torch.tensor([height, width]))
        assert count > 5


@pytest.mark.parametrize("kind", KINDS)
def test_many_candidates(kind: str) -> None:
    """torchvision suppresses boxes class by class if there are more than 1000."""
    many = {"box_detections_per_img": 300} if kind == "TwinsMaskRCNN" else {"detections_per_img": 300}
    threshold = {"box_score_thresh": 1e-3} if kind == "TwinsMaskRCNN" else {"score_thresh": 1e-3}
    model = exportable_detector(tiny(kind, options={**many, **threshold}), META)
    assert assert_same_as_reference(model, picture(160, 224), torch.tensor([150, 200])) > 50


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_find(kind: str) -> None:
    """There is a single row with the score 0, because not all runtimes accept empty tensors."""
    threshold = "box_score_thresh" if kind == "TwinsMaskRCNN" else "score_thresh"
    model = exportable_detector(tiny(kind, options={threshold: 1.0}), META)
    image, size = picture(96, 128), torch.tensor([96, 100])
    assert len(model.reference(image, size)[1]) == 0
    with torch.no_grad():
        outputs = by_name(model, model.net(image, size))
    assert outputs["scores"].tolist() == [0.0]
    assert {len(values) for values in outputs.values()} == {1}


@pytest.mark.parametrize("kind", KINDS)
def test_the_padding_does_not_matter(kind: str) -> None:
    net = exportable_detector(tiny(kind), META).net
    image, size = picture(96, 128), torch.tensor([80, 110])
    other = image.clone()
    other[:, :, 80:] = 7
    other[:, :, :, 110:] = 200
    with torch.no_grad():
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(net(image, size), net(other, size), strict=True))


def test_description_of_a_trained_run(tiny_run: Run) -> None:
    model = exportable(load_config(tiny_run.config), tiny_run.checkpoint)
    assert model.outputs == ("boxes", "scores", "labels", "masks")
    about = dict(model.about)
    assert about["kind"] == "detector"
    assert about["masks"] is True
    assert len(about["classes"]) == len(about["category_ids"]) == 3
    assert about["resize"] == {"short": 64, "long": 96, "mode": "bilinear"}
    assert about["max_detections"] == 10
    assert about["preprocessing"]["mean"] == pytest.approx([123.675, 116.28, 103.53])


def test_adaptive_sampling_is_refused() -> None:
    model = build_tiny(options={"box_roi_pool": MultiScaleRoIAlign(["0", "1"], 7, 0)}).eval()
    with pytest.raises(TwinsError, match="sampling_ratio=0 of the detector's box_roi_pool cannot be exported"):
        exportable_detector(model, META)


def test_unknown_parts_are_refused() -> None:
    class Generator(torch.nn.Module):
        pass

    model = tiny("TwinsRetinaNet")
    model.detector.anchor_generator = Generator()
    with pytest.raises(TwinsError, match="anchor_generator is a Generator, which cannot be exported"):
        exportable_detector(model, META)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2"])
@pytest.mark.parametrize("kind", KINDS)
def test_files(kind: str, suffix: str, tmp_path: Path) -> None:
    model = exportable_detector(tiny(kind), META)
    export_whole(model, tmp_path / f"model{suffix}", sizes=((64, 96), (90, 150), (130, 100)))


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["svt_small", "pcpvt_small"])
@pytest.mark.parametrize("kind", [TwinsMaskRCNN, TwinsRetinaNet])
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_whole_models(kind: Any, variant: str, suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = kind({"variant": variant, "weights": None}, 3).eval()
    spread(model.detector)
    sizes = ((480, 640), (800, 1216), (512, 512))
    differences = export_whole(exportable_detector(model, META), tmp_path / f"model{suffix}", sizes=sizes)
    print(kind.__name__, variant, suffix, differences)
