"""Reading detectron2 configs and overrides, with one-line errors, and finding the engine of a config."""

from __future__ import annotations

import builtins
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from d2_fixtures import CONFIGS, MARKS, engine
from detection_fixtures import ROOT
from detectron2.config import instantiate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import twins_dense as td
from twins_dense.frameworks import engine_of
from twins_dense.frameworks.mmengine import engine as mmengine_engine

pytestmark = MARKS
MASK_RCNN = CONFIGS / "mask_rcnn_svt_small_1x.py"
RETINANET = CONFIGS / "retinanet_svt_small_1x.py"
YAML = CONFIGS / "mask_rcnn_svt_small_1x.yaml"
SMALLEST = """\
dataloader = dict(train=dict(), test=dict())
lr_multiplier = dict()
model = dict(pixel_mean=[1.0, 2.0], backbone=dict(norm=None))
optimizer = dict(lr=1.0)
train = dict(max_iter=1, output_dir=None)
"""


@pytest.fixture(autouse=True)
def imports_as_they_were(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore `__import__`, which detectron2 leaves patched if a config fails to run."""
    monkeypatch.setattr(builtins, "__import__", builtins.__import__)
    yield


def error_of(path: object, *overrides: str) -> str:
    with pytest.raises(td.TwinsError) as caught:
        engine.load_config(path, overrides)
    line = str(caught.value)
    assert "\n" not in line
    return line


class TestFiles:
    @pytest.mark.parametrize("name", ["no/config.py", "no/config.yaml", str(CONFIGS)])
    def test_missing(self, name: str) -> None:
        line = error_of(name)
        assert repr(name) in line and "no such file" in line

    @pytest.mark.parametrize(
        ("content", "parts"),
        [
            ("model = (\n", ("syntax",)),
            ("raise RuntimeError('first line\\nsecond line')\n", ("RuntimeError: first line second line",)),
            ("import no_such_module\n", ("no_such_module",)),
            ("from .nowhere import model\n", ("nowhere", "does not exist")),
            ("x = 1 / 0\n", ("ZeroDivisionError",)),
            (SMALLEST.replace("model = ", "_model = "), ("has no model:",)),
            ("model = {}\n", ("has no dataloader, lr_multiplier, optimizer, train:",)),
            ("", ("has no dataloader, lr_multiplier, model, optimizer, train:",)),
        ],
    )
    def test_broken(self, tmp_path: Path, content: str, parts: tuple[str, ...]) -> None:
        path = tmp_path / "broken.py"
        path.write_text(content)
        line = error_of(path)
        for part in (repr(str(path)), *parts):
            assert part in line

    @pytest.mark.parametrize(
        ("content", "part"),
        [
            ("SOLVR:\n  BASE_LR: 1.0\n", "SOLVR"),
            ("MODEL: [\n", ""),
            ("- 1\n", ""),
            ("MODEL:\n  MASK_ON: 7\n", "MASK_ON"),
        ],
    )
    def test_broken_yaml(self, tmp_path: Path, content: str, part: str) -> None:
        path = tmp_path / "broken.yaml"
        path.write_text(content)
        line = error_of(path)
        assert repr(str(path)) in line and part in line

    def test_two_loads_share_nothing(self) -> None:
        first = engine.load_config(MASK_RCNN, ["optimizer.lr=7", "model.pixel_mean=[0,0,0]"])
        second = engine.load_config(CONFIGS / "mask_rcnn_svt_small_3x.py")
        assert (first.optimizer.lr, second.optimizer.lr) == (7, 1e-4)
        assert second.model.pixel_mean[0] == 123.675


class TestOverrides:
    @pytest.mark.parametrize(
        ("override", "where", "hint"),
        [
            ("optimzer.lr=1", "the config has no 'optimzer'", "did you mean 'optimizer'?"),
            ("optimizer.lrr=1", "optimizer has no 'lrr'", "did you mean 'lr'?"),
            ("train.amp.enabeld=True", "train.amp has no 'enabeld'", "did you mean 'enabled'?"),
            (
                "model.roi_heads.box_predictor.test_score_tresh=0.1",
                "model.roi_heads.box_predictor has no 'test_score_tresh'",
                "did you mean 'test_score_thresh'?",
            ),
            (
                "model.backbone.bottom_up.net.weihgts=a.pth",
                "model.backbone.bottom_up.net has no 'weihgts'",
                "did you mean 'weights'?",
            ),
            (
                "model.backbone.botom_up.net.weights=a.pth",
                "model.backbone has no 'botom_up'",
                "did you mean 'bottom_up'?",
            ),
            ("dataloader.train.mapper.augmentations.7.prob=1", "augmentations has no '7'", "known are 0, 1"),
            ("train.max_iter.x=1", "train.max_iter has no 'x'", ""),
            ("optimizer._target_=torch.optim.SGD", "optimizer has no '_target_'", ""),
            ("+train.note=1", "train has no 'note'", ""),
        ],
    )
    def test_unknown_keys(self, override: str, where: str, hint: str) -> None:
        line = error_of(MASK_RCNN, override)
        for part in (repr(override), where, hint):
            assert part in line

    @pytest.mark.parametrize(
        "override",
        [
            "optimizer.lr",
            "=3",
            "",
            "a b=3",
            "model.pixel_mean=[1,2",
            "model.pixel_mean=1,2,3",  # without brackets, this means several runs to hydra
            "~optimizer.lr",  # deletes the key
            "train=3",  # a value instead of a section
        ],
    )
    def test_malformed(self, override: str) -> None:
        assert repr(override) in error_of(MASK_RCNN, override)

    @given(
        key=st.sampled_from(
            ["optimizer.lr", "model.pixel_mean.1", "model.backbone", "train", "train..max_iter", "x", ""]
        )
        | st.text(max_size=10),
        sign=st.sampled_from(["=", "==", ":", "", "+=", "=${", "={a:"]),
        value=st.text(alphabet="0123456789.,:[]{}()'\"$~!abcdef \\", max_size=20) | st.text(max_size=20),
    )
    @settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_text_is_applied_or_refused_in_one_line(
        self, tmp_path_factory: pytest.TempPathFactory, key: str, sign: str, value: str
    ) -> None:
        path = tmp_path_factory.getbasetemp() / "smallest.py"
        if not path.exists():
            path.write_text(SMALLEST)
        try:
            engine.load_config(path, [key + sign + value])
        except td.TwinsError as error:
            assert len(str(error).splitlines()) == 1

    def test_values(self) -> None:
        overrides = [
            "optimizer.lr=3e-4",
            "model.pixel_mean=[1,2.5,3]",
            "dataloader.train.dataset.data_root=data/my coco",
            "dataloader.test.dataset.indices=7",
            "train.amp.enabled=True",
            "model.backbone.bottom_up.net.weights=null",
            "dataloader.train.mapper.augmentations.1.short_edge_length=[640]",
            "model.backbone.bottom_up.net.variant={name: mine, window_size: 7}",
        ]
        config = engine.load_config(MASK_RCNN, overrides)
        assert config.optimizer.lr == 3e-4 and list(config.model.pixel_mean) == [1, 2.5, 3]
        assert config.dataloader.train.dataset.data_root == "data/my coco"
        assert config.dataloader.test.dataset.indices == 7
        assert config.train.amp.enabled is True
        net = config.model.backbone.bottom_up.net
        assert net.weights is None and dict(net.variant) == {"name": "mine", "window_size": 7}
        assert list(config.dataloader.train.mapper.augmentations[1].short_edge_length) == [640]
        assert config.dataloader.train.mapper.augmentations[0].horizontal is True  # the other one stays

    def test_new_keys_that_are_arguments(self) -> None:
        config = engine.load_config(RETINANET, ["optimizer.eps=1e-5", "model.box_reg_loss_type=giou"])
        config.optimizer.params.model = nn.Linear(1, 1)
        assert instantiate(config.optimizer).defaults["eps"] == 1e-5
        with torch.device("meta"):
            assert instantiate(config.model).box_reg_loss_type == "giou"

    def test_new_keys_that_are_arguments_of_a_parent_class(self) -> None:
        overrides = ["model.roi_heads.proposal_append_gt=False", "model.roi_heads.mask_head.loss_weight=0.5"]
        config = engine.load_config(MASK_RCNN, overrides)
        with torch.device("meta"):
            heads = instantiate(config.model).roi_heads
        assert heads.proposal_append_gt is False and heads.mask_head.loss_weight == 0.5
        assert "did you mean 'proposal_append_gt'" in error_of(MASK_RCNN, "model.roi_heads.proposal_append_gtt=False")

    def test_values_that_follow_others(self) -> None:
        overrides = ["train.max_iter=100", "train.seed=4", "model.roi_heads.num_classes=5"]
        overrides += ["dataloader.test.dataset.name=mine", "dataloader.train.mapper.use_instance_mask=False"]
        config = engine.load_config(MASK_RCNN, overrides)
        assert config.lr_multiplier.max_iter == 100 and config.dataloader.train.seed == 4
        assert config.model.roi_heads.mask_head.num_classes == 5
        assert config.dataloader.evaluator.dataset_name == "mine"
        assert config.dataloader.train.dataset.with_masks is False

    @pytest.mark.parametrize(
        ("override", "part"),
        [
            ("SOLVER.BASE_LRR=1", "SOLVER.BASE_LRR"),
            ("SOLVER.BASE_LR", "KEY=VALUE"),
            ("SOLVER.BASE_LR=fast", "SOLVER.BASE_LR"),
            ("SOLVER.LR_SCHEDULER_NAME=WarmupCosineLR", "SOLVER.LR_SCHEDULER_NAME='WarmupCosineLR'"),
            ("SOLVER.CLIP_GRADIENTS.ENABLED=True", "SOLVER.CLIP_GRADIENTS.ENABLED=True"),
            ("SOLVER.WARMUP_METHOD=constant", "SOLVER.WARMUP_METHOD='constant'"),
            ("SOLVER.WEIGHT_DECAY_NORM=0.1", "SOLVER.WEIGHT_DECAY_NORM=0.1"),
            ("SOLVER.BIAS_LR_FACTOR=2.0", "SOLVER.BIAS_LR_FACTOR=2.0"),
            ("TEST.PRECISE_BN.ENABLED=True", "TEST.PRECISE_BN.ENABLED=True"),
            ("DATASETS.TRAIN=('a', 'b')", "name one data set in each"),
            ("DATASETS.TEST=()", "name one data set in each"),
            ("SOLVER.MAX_ITER=0", "MAX_ITER"),
        ],
    )
    def test_of_yaml(self, override: str, part: str) -> None:
        assert part in error_of(YAML, override)

    def test_two_data_sets_for_training_and_none_for_testing(self) -> None:
        assert "['a', 'b'] and []" in error_of(YAML, "DATASETS.TRAIN=('a', 'b')", "DATASETS.TEST=()")


@pytest.mark.parametrize("path", [MASK_RCNN, YAML])
def test_set_data_root_and_skip_bad(path: Path) -> None:
    config = engine.load_config(path)
    engine.set_data_root(config, Path("data/coco"))
    engine.set_skip_bad(config)
    for split in ("train", "test"):
        dataset = config.dataloader[split].dataset
        assert (dataset.data_root, dataset.skip_bad) == ("data/coco", True)


# Which engine a config is for

ENGINES = {
    "lazy.py": ("from detectron2.config import LazyCall as L\nmodel = L(dict)()\n", "detectron2"),
    "imported.py": ("import detectron2.config\nmodel = {}\n", "detectron2"),
    "relative.py": ("from .lazy import model\n", "detectron2"),
    "above.py": ("from ..common.lazy import model\n", "detectron2"),
    "cfgnode.yaml": ("MODEL: {}\n", "detectron2"),
    "cfgnode.yml": ("MODEL: {}\n", "detectron2"),
    "plain.py": ("model = dict(type='TwinsMaskRCNN')\n", "mmengine"),
    "based.py": ("_base_ = ['./plain.py']\nmodel = dict(num_classes=3)\n", "mmengine"),
    "new_style.py": (
        "from mmengine.config import read_base\nwith read_base():\n    from .plain import *\nmodel.update(a=1)\n",
        "mmengine",
    ),
    "word.py": ("'''Not for detectron2.'''\nname = 'from detectron2 import x'\n", "mmengine"),
    "similar.py": ("import detectron2_plus\n", "mmengine"),
    "empty.py": ("", "mmengine"),
}


class TestEngineOf:
    @pytest.mark.parametrize("name", ENGINES)
    def test_by_content(self, tmp_path: Path, name: str) -> None:
        content, expected = ENGINES[name]
        (tmp_path / name).write_text(content)
        for path in (tmp_path / name, str(tmp_path / name)):
            assert engine_of(path).__name__ == f"twins_dense.frameworks.{expected}.engine"

    @pytest.mark.parametrize(("folder", "expected"), [("detectron2", "detectron2"), ("torchvision", "mmengine")])
    def test_ours(self, folder: str, expected: str) -> None:
        found = {engine_of(path).__name__ for path in (ROOT / "configs" / folder).glob("*.*")}
        assert found == {f"twins_dense.frameworks.{expected}.engine"}

    @pytest.mark.parametrize("content", [b"model = (\n", b"\xff\xfe\x00", b"def f(:\n", b"a = '\x00'\n"])
    def test_broken_files(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "broken.py"
        path.write_bytes(content)
        with pytest.raises(td.TwinsError) as caught:
            engine_of(path)
        assert repr(str(path)) in str(caught.value) and "\n" not in str(caught.value)

    def test_missing_files(self, tmp_path: Path) -> None:
        for path in (tmp_path / "no.py", tmp_path / "no.yaml", tmp_path):
            with pytest.raises(td.TwinsError, match=r"no such file; check the path$"):
                engine_of(path)

    def test_both_engines_offer_the_same(self) -> None:
        def parameters(module: Any, name: str) -> list[str]:
            return list(inspect.signature(getattr(module, name)).parameters)

        for name in ("evaluate", "load_config", "predictor", "set_data_root", "set_skip_bad", "train"):
            assert name in engine.__all__ and name in mmengine_engine.__all__
            assert parameters(engine, name) == parameters(mmengine_engine, name)
