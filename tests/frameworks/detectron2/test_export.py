"""Exports of detectron2's detectors: the same detections as detectron2's own forward pass, in every runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from d2_fixtures import HEADS, MARKS, engine, write_lazy
from detectron2.config import instantiate
from detectron2.data.transforms import RandomFlip, ResizeShortestEdge
from torch import Tensor

from twins_dense.deploy.compare import compare_detections
from twins_dense.deploy.export import export_whole
from twins_dense.deploy.exportable import Exportable
from twins_dense.errors import TwinsError
from twins_dense.frameworks.detectron2.export import exportable_detector

pytestmark = MARKS
META = {"classes": ("a", "b", "c"), "category_ids": (3, 5, 7)}


def tiny(head: str, tmp_path: Path, toy_data: Path) -> Any:
    """Build a tiny detector that finds many objects with different scores."""
    torch.manual_seed(0)
    config = engine.load_config(write_lazy(tmp_path / "tiny.py", toy_data, head))
    config.model.backbone.bottom_up.net.weights = None
    model = instantiate(config.model).eval()
    if head == "mask_rcnn":
        rpn, heads = model.proposal_generator.rpn_head, model.roi_heads
        layers = {
            rpn.objectness_logits: 2.0,
            rpn.anchor_deltas: 0.3,
            heads.box_predictor.cls_score: 3.0,
            heads.box_predictor.bbox_pred: 1.0,
            heads.mask_head.predictor: 2.0,
        }
    else:
        for layer in (*model.head.cls_subnet, *model.head.bbox_subnet):
            if isinstance(layer, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(layer.weight)
        layers = {model.head.cls_score: 1.0, model.head.bbox_pred: 0.3}
    for layer, gain in layers.items():
        torch.nn.init.xavier_normal_(layer.weight, gain=gain)
    return model


def export_form(model: Any) -> Exportable:
    return exportable_detector(model, [ResizeShortestEdge(64, 96)], META, "tiny.pth")


def by_name(model: Exportable, outputs: tuple[Tensor, ...]) -> dict[str, Any]:
    return {name: values.numpy() for name, values in zip(model.outputs, outputs, strict=True)}


@pytest.mark.parametrize("input_format", ["RGB", "BGR"])
@pytest.mark.parametrize("head", HEADS)
def test_same_detections_as_detectron2(head: str, input_format: str, tmp_path: Path, toy_data: Path) -> None:
    model = tiny(head, tmp_path, toy_data)
    model.input_format = input_format
    form = export_form(model)
    for rows, columns, height, width in ((64, 96, 64, 96), (96, 160, 70, 160), (160, 96, 160, 65)):
        image, size = torch.rand(1, 3, rows, columns) * 255, torch.tensor([height, width])
        expected = by_name(form, form.reference(image, size))
        with torch.no_grad():
            found = by_name(form, form.net(image, size))
        compare_detections(expected, found, f"{height}x{width}", threshold=0.0)
        assert len(expected["scores"]) > 5
        assert (found["scores"][:-1] >= found["scores"][1:]).all()


@pytest.mark.parametrize("head", HEADS)
def test_nothing_to_find(head: str, tmp_path: Path, toy_data: Path) -> None:
    model = tiny(head, tmp_path, toy_data)
    limits = model.roi_heads.box_predictor if head == "mask_rcnn" else model
    limits.test_score_thresh = 1.0
    form = export_form(model)
    with torch.no_grad():
        outputs = by_name(form, form.net(torch.rand(1, 3, 96, 128) * 255, torch.tensor([96, 100])))
    assert outputs["scores"].tolist() == [0.0]
    assert {len(values) for values in outputs.values()} == {1}


def test_description(tmp_path: Path, toy_data: Path) -> None:
    model = tiny("mask_rcnn", tmp_path, toy_data)
    form = export_form(model)
    about = dict(form.about)
    assert form.outputs == ("boxes", "scores", "labels", "masks")
    assert (about["kind"], about["engine"], about["masks"]) == ("detector", "detectron2", True)
    assert about["resize"] == {"short": 64, "long": 96, "mode": "pillow"}
    assert about["category_ids"] == [3, 5, 7]
    model.input_format = "BGR"
    assert export_form(model).about["preprocessing"]["mean"] == about["preprocessing"]["mean"][::-1]


def test_unsupported_models_are_refused(tmp_path: Path, toy_data: Path) -> None:
    model = tiny("retinanet", tmp_path, toy_data)
    with pytest.raises(TwinsError, match="use a single ResizeShortestEdge"):
        exportable_detector(model, [RandomFlip()], META, "tiny.pth")
    model.anchor_generator = torch.nn.Identity()
    with pytest.raises(TwinsError, match="anchor_generator is a Identity, which cannot be exported"):
        export_form(model)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2"])
@pytest.mark.parametrize("head", HEADS)
def test_files(head: str, suffix: str, tmp_path: Path, toy_data: Path) -> None:
    form = export_form(tiny(head, tmp_path, toy_data))
    export_whole(form, tmp_path / f"model{suffix}", sizes=((64, 96), (90, 150), (130, 100)))
