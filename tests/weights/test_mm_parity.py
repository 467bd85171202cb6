"""Our models give the same logits and maps as mmpretrain's and mmseg's own Twins, built from their published configs.

Both use other LayerNorm epsilons than the official code, so our models are built with theirs. mmpretrain is not a
dependency; to run its half of the tests, install it with `pip install mmpretrain mmcv-lite`.
"""

from __future__ import annotations

import dataclasses
import importlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from contracts import VARIANTS, randomise, state_dict_shapes, without_initialisation
from torch import Tensor, nn

import twins_dense as td
from twins_dense.weights.catalog import CATALOG


def imported(name: str) -> Any:
    """Import a module of mmpretrain or mmseg, without the warnings of its own imports."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"{name} is not installed", exc_type=ImportError)


def spec_with(variant: str, norm_eps: float) -> td.TwinsSpec:
    return dataclasses.replace(td.get_spec(variant), norm_eps=norm_eps)


def error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return ((found - expected).abs().max() / expected.abs().max()).item()


def built(registry: Any, config: dict[str, Any]) -> nn.Module:
    """Build one of their models, with random weights everywhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Set the scope, because a Runner in another test leaves its own as the default.
        return randomise(registry.build({**config, "_scope_": registry.scope}), seed=13).eval()


# mmpretrain


@pytest.fixture(scope="module")
def mmpretrain() -> Any:
    imported("mmpretrain.models")
    return imported("mmpretrain")


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_mmpretrain(variant: str, mmpretrain: Any) -> None:
    family, size = variant.split("_")
    (config,) = (Path(mmpretrain.__file__).parent / ".mim/configs/twins").glob(f"twins-{family}-{size}_*.py")
    model = importlib.import_module("mmengine").Config.fromfile(config).model
    theirs = built(mmpretrain.registry.MODELS, {**model, "train_cfg": None})
    images = torch.randn(1, 3, 224, 224)
    expected = theirs(images)

    published_eps = spec_with(variant, 1e-5 if family == "svt" else 1e-6)
    ours = without_initialisation(lambda: td.create_classifier(published_eps)).eval()
    report = td.load_weights(ours, theirs.state_dict())
    assert (report.format, report.variant, report.dropped) == ("mmpretrain", variant, ())
    assert error(ours(images), expected) < 1e-4

    back = td.convert_state_dict(ours.state_dict(), to="mmpretrain")
    randomise(theirs, seed=17)
    theirs.load_state_dict(back, strict=True)
    assert torch.equal(theirs(images), expected)


def test_the_catalog_has_mmpretrains_files_and_scores(mmpretrain: Any) -> None:
    metafile = Path(mmpretrain.__file__).parent / ".mim/configs/twins/metafile.yml"
    models = yaml.safe_load(metafile.read_text())["Models"]
    published = {
        model["Weights"]: {
            "top1": model["Results"][0]["Metrics"]["Top 1 Accuracy"],
            "top5": model["Results"][0]["Metrics"]["Top 5 Accuracy"],
        }
        for model in models
    }
    assert published == {spec.url: spec.scores for name, spec in CATALOG.items() if name.endswith("-mmpretrain")}


# mmseg


@pytest.fixture(scope="module")
def mmseg() -> Iterator[Any]:
    stand_in = pytest.importorskip(
        "twins_dense.frameworks.mmengine.mmcv_ops",
        reason="mmseg needs mmcv's operators or a stand-in for them",
    ).stand_in
    imported("mmcv")
    stand_in()
    imported("mmseg.models")
    yield imported("mmseg")


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_mmseg(variant: str, mmseg: Any) -> None:
    """At 128x160, local attention pads both axes of every map, in which case mmseg masks the padding."""
    family, size = variant.split("_")
    (config,) = (Path(mmseg.__file__).parent / ".mim/configs/twins").glob(f"twins_{family}-{size[0]}_uperhead_*.py")
    backbone = importlib.import_module("mmengine").Config.fromfile(config).model.backbone
    theirs = built(mmseg.registry.MODELS, {**backbone, "init_cfg": None})
    shapes = {f"backbone.{name}": tuple(value.shape) for name, value in theirs.state_dict().items()}
    listed = state_dict_shapes("mmseg_upernet", variant)
    assert shapes == {name: shape for name, shape in listed.items() if name.startswith("backbone.")}
    images = torch.randn(1, 3, 128, 160)
    expected = theirs(images)

    ours = without_initialisation(lambda: td.create_backbone(spec_with(variant, 1e-5), window_padding="upstream_mask"))
    report = td.load_weights(ours.eval(), theirs.state_dict())
    assert (report.format, report.variant, report.initialised) == ("mmseg", variant, ())
    levels = ours(images)
    assert len(levels) == 4
    assert max(error(level, theirs) for level, theirs in zip(levels, expected, strict=True)) < 1e-4

    back = td.convert_state_dict(ours.state_dict(), to="mmseg")
    randomise(theirs, seed=17)
    theirs.load_state_dict(back, strict=True)
    assert all(torch.equal(*pair) for pair in zip(theirs(images), expected, strict=True))


def test_the_catalog_has_mmsegs_files_and_scores(mmseg: Any) -> None:
    metafile = Path(mmseg.__file__).parent / ".mim/configs/twins/metafile.yaml"
    models = yaml.safe_load(metafile.read_text())["Models"]
    published = {
        model["Weights"]: {
            "mIoU": model["Results"]["Metrics"]["mIoU"],
            "mIoU multi-scale": model["Results"]["Metrics"]["mIoU(ms+flip)"],
        }
        for model in models
    }
    assert published == {spec.url: spec.scores for spec in CATALOG.values() if spec.task == "segmentation"}
