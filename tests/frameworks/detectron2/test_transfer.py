"""Fine-tuning with detectron2: a detector for other classes as a start, frozen stages, and clipped gradients."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_fixtures import assert_error, twins
from d2_fixtures import HEADS, MARKS, clean_detectron2, engine, twins_log, write_lazy  # noqa: F401  (a fixture)
from detection_fixtures import TINY_SVT
from detectron2.config import instantiate
from detectron2.utils.events import EventStorage
from torch import nn

import twins_dense as td
from twins_dense.errors import TwinsError
from twins_dense.frameworks.detectron2.config import check_settings
from twins_dense.frameworks.detectron2.solver import clip_gradients
from twins_dense.frameworks.detectron2.transfer import load_for_transfer
from twins_dense.frameworks.options import TrainingOptions

pytestmark = MARKS

CLASSES = ["circle", "rectangle", "triangle"]
# Entries with one output per class, and their number of outputs for K classes.
FRESH = {
    "mask_rcnn": {
        "roi_heads.box_predictor.cls_score": lambda classes: classes + 1,
        "roi_heads.box_predictor.bbox_pred": lambda classes: 4 * classes,
        "roi_heads.mask_head.predictor": lambda classes: classes,
    },
    "retinanet": {"head.cls_score": lambda classes: 9 * classes},
}
ONE_STEP = "train.update(max_iter=1)\nlr_multiplier.warmup_iters = 0\n"


def fresh_names(head: str) -> set[str]:
    return {f"{name}.{kind}" for name in FRESH[head] for kind in ("weight", "bias")}


def build(config: Path, *overrides: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return instantiate(engine.load_config(config, overrides).model)


@pytest.fixture(scope="module", params=HEADS)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, toy_data: Path) -> Any:
    """A tiny detector of three classes after one iteration: its head, config and checkpoint."""
    root = tmp_path_factory.mktemp("source")
    config = write_lazy(root / "tiny.py", toy_data, request.param, more=ONE_STEP)
    result = twins("train", config, "--work-dir", root / "work")
    assert result.code == 0, result.err
    return request.param, config, root / "work" / "model_final.pth"


def num_classes(head: str, number: int) -> str:
    return f"{'model.roi_heads' if head == 'mask_rcnn' else 'model'}.num_classes={number}"


class TestInit:
    @pytest.mark.parametrize("classes", [["cat", "dog"], ["cat", "dog", "bird"]])
    def test_other_classes(self, source: Any, classes: list[str]) -> None:
        """All but the heads is loaded, even if the number of classes is the same."""
        head, config, checkpoint = source
        model = build(config, num_classes(head, len(classes)), seed=1)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with twins_log() as lines:
            load_for_transfer(model, str(checkpoint), classes)
        expected = torch.load(checkpoint, weights_only=True)["model"]
        fresh = fresh_names(head)
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name] if name in fresh else expected[name]), name
        for name, outputs in FRESH[head].items():
            assert len(model.get_submodule(name).bias) == outputs(len(classes))
        (line,) = lines
        assert line.startswith(f"Start from {checkpoint}: {len(before) - len(fresh)} entries loaded, {len(fresh)} ")
        assert set(re.findall(r"[\w.]+\.(?:weight|bias)", line)) == fresh

    def test_the_same_classes(self, source: Any) -> None:
        _, config, checkpoint = source
        model = build(config, seed=1)
        load_for_transfer(model, str(checkpoint), CLASSES)
        expected = torch.load(checkpoint, weights_only=True)["model"]
        assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())

    def test_another_model(self, source: Any) -> None:
        head, config, checkpoint = source
        option = "model.roi_heads.mask_head.conv_dims=[16,16]" if head == "mask_rcnn" else "model.head.conv_dims=[16]"
        with pytest.raises(TwinsError, match=r"may differ from it only in its classes; entries that do not fit"):
            load_for_transfer(build(config, option), str(checkpoint), ["cat", "dog"])

    def test_bad_files(self, source: Any, tmp_path: Path) -> None:
        _, config, _ = source
        model = build(config)
        with pytest.raises(TwinsError, match=r"no/such\.pth.*no such file"):
            load_for_transfer(model, "no/such.pth", CLASSES)
        torch.save(td.create_classifier(td.TwinsSpec.from_columns(**TINY_SVT)).state_dict(), tmp_path / "backbone.pth")
        with pytest.raises(TwinsError, match=r"is not a detectron2 checkpoint.*net\.weights"):
            load_for_transfer(model, str(tmp_path / "backbone.pth"), CLASSES)

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            (["train.init=3"], "train.init=3: set it to the path of a checkpoint"),
            (["train.init=a.pth", "train.init_checkpoint=b.pth"], "a run can start from one of them only"),
            (["train.clip_norm=0"], "train.clip_norm=0: choose a number above 0, or null"),
            (["train.clip_norm=much"], "train.clip_norm='much'"),
        ],
    )
    def test_bad_settings(self, source: Any, overrides: list[str], message: str) -> None:
        with pytest.raises(TwinsError, match=message):
            check_settings(engine.load_config(source[1], overrides))


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory: pytest.TempPathFactory, toy_data: Path) -> Path:
    """The toy data without triangles."""
    root = tmp_path_factory.mktemp("two") / "data"
    shutil.copytree(toy_data, root)
    for path in root.glob("annotations/*.json"):
        content = json.loads(path.read_text())
        content["categories"] = [entry for entry in content["categories"] if entry["name"] != "triangle"]
        kept = {entry["id"] for entry in content["categories"]}
        content["annotations"] = [entry for entry in content["annotations"] if entry["category_id"] in kept]
        path.write_text(json.dumps(content))
    return root


class TestRun:
    def test_fine_tuning_with_frozen_stages(self, source: Any, two_classes: Path, tmp_path: Path) -> None:
        """Stages 1 and 2 stay bit-equal to the checkpoint, and everything else is trained."""
        head, base, checkpoint = source
        config = engine.load_config(base, [num_classes(head, 2), "train.max_iter=2", "train.clip_norm=0.5"])
        engine.set_data_root(config, two_classes)
        engine.set_training(config, TrainingOptions(init=checkpoint, freeze="stages:2"))
        engine.train(config, tmp_path / "run")
        log = (tmp_path / "run" / "log.txt").read_text()
        assert f"Start from {checkpoint}" in log and "freshly initialised: " in log
        before = torch.load(checkpoint, weights_only=True)["model"]
        content = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)
        assert content["dataset_meta"]["classes"] == CLASSES[:2]
        frozen = re.compile(r"backbone\.bottom_up\.net\.(patch_embeds|blocks|pos_block|norm_list)\.[01]\.")
        num_frozen = 0
        for name, value in content["model"].items():
            if name in fresh_names(head):
                continue
            assert torch.equal(value, before[name]) == bool(frozen.match(name)), name
            num_frozen += bool(frozen.match(name))
        assert num_frozen > 20
        lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        assert all(line["grad_norm"] > 0 for line in lines)

    def test_resuming_does_not_need_the_start(self, source: Any, two_classes: Path, tmp_path: Path) -> None:
        head, base, checkpoint = source
        start = tmp_path / "start.pth"
        shutil.copy(checkpoint, start)
        arguments = ("train", base, "--work-dir", tmp_path / "run", "--data-root", two_classes, num_classes(head, 2))
        assert twins(*arguments, f"train.init={start}").code == 0
        start.unlink()
        result = twins(*arguments, f"train.init={start}", "train.max_iter=2", "--resume")
        assert result.code == 0, result.err
        assert torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)["iteration"] == 1

    @pytest.mark.parametrize(
        ("overrides", "parts"),
        [
            (["train.init=no/such.pth"], ("no/such.pth", "no such file")),
            (["model.backbone.bottom_up.net.freeze=stages:5"], ("freeze='stages:5'", "has 4 stages")),
            (["model.backbone.bottom_up.net.freeze=neck"], ("freeze='neck'", '"backbone", or "stages:N"')),
        ],
    )
    def test_errors(self, toy_data: Path, tmp_path: Path, overrides: list[str], parts: tuple[str, ...]) -> None:
        config = write_lazy(tmp_path / "tiny.py", toy_data, "mask_rcnn")
        assert_error(twins("train", config, "--work-dir", tmp_path / "run", *overrides), *parts)
        assert not list(tmp_path.glob("run/*.pth"))


class TestClipping:
    def test_known_answer(self) -> None:
        """A gradient of (3, 4) has the norm 5."""
        for max_norm, expected in ((1.0, [-0.6, -0.8]), (10.0, [-3.0, -4.0])):
            parameter = nn.Parameter(torch.zeros(2))
            optimizer = torch.optim.SGD([parameter], lr=1.0)
            clip_gradients(optimizer, max_norm)
            parameter.grad = torch.tensor([3.0, 4.0])
            with EventStorage() as storage:
                optimizer.step()
                assert storage.latest()["grad_norm"][0] == pytest.approx(5.0)
            torch.testing.assert_close(parameter.detach(), torch.tensor(expected))

    def test_all_parameters_together(self) -> None:
        parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
        optimizer = torch.optim.SGD([{"params": [parameter]} for parameter in parameters], lr=1.0)
        clip_gradients(optimizer, 1.0)
        for parameter, gradient in zip(parameters, (30.0, 40.0), strict=True):
            parameter.grad = torch.tensor([gradient])
        with EventStorage():
            optimizer.step()
        torch.testing.assert_close(torch.cat([p.detach() for p in parameters]), torch.tensor([-0.6, -0.8]))

    def test_scaled_losses(self) -> None:
        """With mixed precision, the true gradients are clipped and not the scaled ones."""
        parameter = nn.Parameter(torch.zeros(2))
        optimizer = torch.optim.SGD([parameter], lr=1.0)
        clip_gradients(optimizer, 1.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        scaler.scale((parameter * torch.tensor([0.3, 0.4])).sum()).backward()
        with EventStorage() as storage:
            scaler.step(optimizer)
            assert storage.latest()["grad_norm"][0] == pytest.approx(0.5)
        torch.testing.assert_close(parameter.detach(), torch.tensor([-0.3, -0.4]))
