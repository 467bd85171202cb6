"""Anchor sizes and the number of detections are plain settings of the detectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detection_fixtures import CONFIGS, build_tiny
from run_fixtures import one_line_of
from torchvision.models.detection.faster_rcnn import _default_anchorgen as default_of_mask_rcnn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import _default_anchorgen as default_of_retinanet

from twins_dense.errors import TwinsError
from twins_dense.frameworks.mmengine.config import set_max_dets_of_metric
from twins_dense.frameworks.mmengine.engine import load_config

KINDS = ("TwinsMaskRCNN", "TwinsRetinaNet")
BOTH = pytest.mark.parametrize("kind", KINDS)


def generator(detector: Any) -> Any:
    return detector.rpn.anchor_generator if hasattr(detector, "rpn") else detector.anchor_generator


@pytest.mark.parametrize(("kind", "default"), [(KINDS[0], default_of_mask_rcnn), (KINDS[1], default_of_retinanet)])
def test_the_shipped_sizes_are_torchvisions(kind: str, default: Any) -> None:
    name = "mask_rcnn" if kind == "TwinsMaskRCNN" else "retinanet"
    settings = load_config(CONFIGS / f"{name}_svt_small_1x.py").model
    assert settings.max_dets == 100
    for sizes in (settings.anchor_sizes, None):
        found = generator(build_tiny(kind, anchor_sizes=sizes).detector)
        for ours, theirs in zip(found.cell_anchors, default().cell_anchors, strict=True):
            assert torch.equal(ours, theirs)


def test_anchors_by_hand() -> None:
    """At each cell, the squares have the sizes that were given."""
    model = build_tiny(anchor_sizes=[8, 16.5, 33, 64, 128])
    anchors = generator(model.detector)
    images = ImageList(torch.zeros(1, 3, 64, 64), [(64, 64)])
    (boxes,) = anchors(images, [torch.zeros(1, 32, side, side) for side in (16, 8, 4, 2, 1)])
    sides = boxes[:, 2:] - boxes[:, :2]
    squares = sides[sides[:, 0] == sides[:, 1]][:, 0]
    assert squares.unique(return_counts=True)[0].tolist() == [8, 16, 32, 64, 128]  # half sides are rounded
    assert squares.unique(return_counts=True)[1].tolist() == [256, 64, 16, 4, 1]


def test_scales_of_retinanet() -> None:
    anchors = generator(build_tiny("TwinsRetinaNet", anchor_sizes=(8, 16, 32, 64, 128)).detector)
    assert anchors.sizes == tuple((s, int(s * 2 ** (1 / 3)), int(s * 2 ** (2 / 3))) for s in (8, 16, 32, 64, 128))


@BOTH
@pytest.mark.parametrize("sizes", [(8, 16), (), (1, 8, 16, 32, 64), (8, 16, 32, 64, -1), ("8",) * 5, 32, [[8]] * 5])
def test_bad_sizes(kind: str, sizes: Any) -> None:
    with pytest.raises(TwinsError) as caught:
        build_tiny(kind, anchor_sizes=sizes)
    one_line_of(caught, "model.anchor_sizes=", "5 numbers")


@BOTH
def test_max_dets(kind: str) -> None:
    detector = build_tiny(kind, max_dets=7, options={}).detector
    assert getattr(detector, "roi_heads", detector).detections_per_img == 7


@BOTH
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_dets": 0, "options": {}}, "model.max_dets=0"),
        ({"max_dets": 1.5, "options": {}}, "model.max_dets=1.5"),
        ({"max_dets": "many", "options": {}}, "model.max_dets='many'"),
        ({"max_dets": 300}, "set only max_dets"),  # the options of the fixture have 10
    ],
)
def test_bad_max_dets(kind: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(TwinsError) as caught:
        build_tiny(kind, **settings)
    one_line_of(caught, words)


class TestMetric:
    @pytest.mark.parametrize(
        ("override", "expected"),
        [
            ("model.max_dets=375", 375),
            ("model.max_dets=20", 100),  # fewer detections than COCO counts score the same
            ("model.options={'box_detections_per_img': 200}", None),
        ],
    )
    def test_it_counts_what_the_detector_finds(self, override: str, expected: int | None) -> None:
        config = load_config(CONFIGS / "mask_rcnn_svt_small_1x.py", [override])
        config.test_evaluator = [dict(config.val_evaluator)]
        if expected is None:
            with pytest.raises(TwinsError) as caught:
                set_max_dets_of_metric(config)
            one_line_of(caught, "box_detections_per_img=200", "model.max_dets=100")
            return
        set_max_dets_of_metric(config)
        assert config.val_evaluator.max_dets == config.test_evaluator[0].max_dets == expected

    def test_a_config_of_ones_own(self, tmp_path: Path) -> None:
        """The options of torchvision count where max_dets is not set."""
        path = tmp_path / "own.py"
        path.write_text(
            "model = dict(type='TwinsMaskRCNN', options=dict(box_detections_per_img=200))\n"
            "val_evaluator = dict(type='CocoMetric')\n"
        )
        config = load_config(path)
        set_max_dets_of_metric(config)
        assert config.val_evaluator.max_dets == 200
