"""Checkpoints of runs with any value in any place: one line, or a model that can be used."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_fixtures import assert_error, twins
from detection_fixtures import build_tiny, write_config

from twins_dense.data.toy import make_toy_coco
from twins_dense.errors import TwinsError
from twins_dense.frameworks.mmengine.checkpoints import read_for_model

ODD: list[Any] = [None, True, 0, -1, 1.5, "", "a\nb", [], [1], ["a"], (), {}, {"a": 1}, {1: 2}, torch.zeros(2)]


@pytest.fixture(scope="module")
def model() -> Any:
    return build_tiny()


@pytest.fixture(scope="module")
def content(model: Any) -> dict[str, Any]:
    meta = {
        "epoch": 1,
        "iter": 4,
        "seed": 0,
        "total_batch_size": 2,
        "dataset_meta": {"classes": ("circle", "rectangle", "triangle"), "category_ids": (1, 2, 3)},
    }
    return {"meta": meta, "state_dict": model.state_dict()}


def refused_or_usable(model: Any, content: Any, path: Path) -> str:
    """Return the message of the error; "" if the checkpoint was accepted, and its classes suit the model."""
    torch.save(content, path)
    try:
        found = read_for_model(model, path)
    except TwinsError as error:
        message = str(error)
        assert message.isprintable() and str(path) in message and len(message) < 700
        return message
    model.load_state_dict(found["state_dict"])
    meta = found["meta"].get("dataset_meta") or {}
    assert all(len(meta.get(key) or "abc") == 3 for key in ("classes", "category_ids"))
    return ""


def test_a_good_one(model: Any, content: dict[str, Any], tmp_path: Path) -> None:
    assert refused_or_usable(model, content, tmp_path / "good.pth") == ""


@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value)[:12])
def test_any_value_in_any_place(model: Any, content: dict[str, Any], tmp_path: Path, value: Any) -> None:
    first = next(iter(content["state_dict"]))
    paths: list[tuple[str, ...]] = [("meta",), ("state_dict",), ("meta", "dataset_meta"), ("state_dict", first)]
    paths += [("meta", "dataset_meta", "classes"), ("meta", "dataset_meta", "category_ids")]
    for path in paths:
        changed = {key: dict(part) for key, part in content.items()}
        changed["meta"] = copy.deepcopy(changed["meta"])
        node: Any = changed
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value
        message = refused_or_usable(model, changed, tmp_path / "odd.pth")
        # Segmentors take what is missing from the config, and detectors check it when they predict.
        assert message or path[1:2] == ("dataset_meta",) or value in ({}, {"a": 1})
    assert refused_or_usable(model, value, tmp_path / "odd.pth")


def two_classes(content: dict[str, Any]) -> None:
    content["meta"]["dataset_meta"]["classes"] = ("circle", "triangle")


def two_ids(content: dict[str, Any]) -> None:
    content["meta"]["dataset_meta"]["category_ids"] = (1, 2)


def two_of_both(content: dict[str, Any]) -> None:
    two_classes(content)
    two_ids(content)


def not_finite(content: dict[str, Any]) -> None:
    weight = content["state_dict"]["detector.roi_heads.mask_predictor.mask_fcn_logits.weight"]
    content["state_dict"]["detector.roi_heads.mask_predictor.mask_fcn_logits.weight"] = weight * float("nan")


def integer(content: dict[str, Any]) -> None:
    name = "detector.roi_heads.box_predictor.cls_score.bias"
    content["state_dict"][name] = content["state_dict"][name].long()


def long_name(content: dict[str, Any]) -> None:
    content["state_dict"]["1" * 5000] = torch.zeros(1)


def line_break(content: dict[str, Any]) -> None:
    content["state_dict"]["a\nb"] = torch.zeros(1)


DAMAGE: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (two_classes, "2 classes, 3 category_ids, 3 classes of the model"),
    (two_ids, "3 classes, 2 category_ids"),
    (two_of_both, "2 classes, 2 category_ids, 3 classes of the model"),
    (
        not_finite,
        "of its values are not finite (the first in 'detector.roi_heads.mask_predictor.mask_fcn_logits.",
    ),
    (integer, "its entry 'detector.roi_heads.box_predictor.cls_score.bias' has the type torch.int64"),
    (long_name, "1" * 60 + "…" + "1" * 20 + " (1,) is unexpected"),
    (line_break, r"a\nb (1,) is unexpected"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGE, ids=lambda value: getattr(value, "__name__", ""))
def test_damage_is_named(model: Any, content: dict[str, Any], tmp_path: Path, damage: Any, words: str) -> None:
    changed = {"meta": copy.deepcopy(content["meta"]), "state_dict": OrderedDict(content["state_dict"])}
    damage(changed)
    assert words in refused_or_usable(model, changed, tmp_path / "damaged.pth")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]) -> Path:
    folder = tmp_path_factory.mktemp("run")
    data = make_toy_coco(folder / "toy", num_train=4, num_val=2, image_size=64)
    write_config(folder / "config.py", data)
    changed = {"meta": copy.deepcopy(content["meta"]), "state_dict": OrderedDict(content["state_dict"])}
    not_finite(changed)
    torch.save(changed, folder / "nan.pth")
    torch.save(content, folder / "good.pth")
    return folder


class TestCommands:
    @pytest.mark.parametrize("verb", ["eval", "predict"])
    def test_weights_that_are_not_finite(self, run: Path, tmp_path: Path, verb: str) -> None:
        image = next((run / "toy" / "val2017").iterdir())
        more = ["--work-dir", tmp_path / "out"] if verb == "eval" else [image, "--out", tmp_path / "out"]
        result = twins(verb, run / "config.py", run / "nan.pth", *more)
        assert_error(result, "nan.pth", "values are not finite")
        assert not (tmp_path / "out" / "metrics.json").exists()

    @pytest.mark.parametrize(
        "name", [b"\xff\xfe\x00bad", b"", b"\n", b"n" * 5000, b"../../x", b"\x00", "é".encode("latin-1")]
    )
    @pytest.mark.parametrize("verb", ["train", "eval", "predict"])
    def test_last_checkpoint_of_any_bytes(self, run: Path, tmp_path: Path, verb: str, name: bytes) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "last_checkpoint").write_bytes(name)
        arguments: dict[str, list[Any]] = {
            "train": [run / "config.py", "--work-dir", tmp_path / "run", "--resume"],
            "eval": [tmp_path / "run"],
            "predict": [tmp_path / "run", run, "--out", tmp_path / "out"],
        }
        line = assert_error(twins(verb, *arguments[verb]), "last_checkpoint names", "does not exist")
        assert line.isprintable()

    def test_predict_without_classes(self, run: Path, tmp_path: Path, content: dict[str, Any]) -> None:
        torch.save({**content, "meta": {}}, tmp_path / "nameless.pth")
        image = next((run / "toy" / "val2017").iterdir())
        result = twins("predict", run / "config.py", tmp_path / "nameless.pth", image, "--out", tmp_path / "out")
        assert_error(result, "nameless.pth' does not name its classes")

    @pytest.mark.parametrize("key", ["epoch", "seed"])
    @pytest.mark.parametrize("value", [None, "1", 1.5, [1]])
    def test_resume_without_its_place(
        self, run: Path, tmp_path: Path, content: dict[str, Any], key: str, value: Any
    ) -> None:
        (tmp_path / "run").mkdir()
        torch.save({**content, "meta": {**content["meta"], key: value}}, tmp_path / "run" / "epoch_1.pth")
        (tmp_path / "run" / "last_checkpoint").write_text("epoch_1.pth")
        result = twins("train", run / "config.py", "--work-dir", tmp_path / "run", "--resume")
        assert_error(result, f"{key}={value!r} in its meta")
