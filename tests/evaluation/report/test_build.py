"""Reports: which evaluation they are about, what they can be compared with, and where they are written."""

from __future__ import annotations

import errno
import html
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from record_fixtures import segmentation_record

from twins_dense.errors import TwinsError
from twins_dense.evaluation.record import Record, checkpoint_hash, read_record
from twins_dense.evaluation.report.build import finished_record, write_report
from twins_dense.evaluation.report.run import find_run, read_history, run_sections

HOSTILE = '<script>alert(1)</script> "q" & 🐈 $x$'


def evaluation(folder: Path, *, seed: int = 0, classes: tuple[str, ...] = ("road", HOSTILE)) -> Record:
    random = np.random.default_rng(seed)
    truth = [np.repeat([0, 1], 11 * 7).reshape(11, 14).astype(np.uint8)] * 3
    predictions = [np.where(random.random(t.shape) < 0.2, 1 - t, t).astype(np.uint8) for t in truth]
    return segmentation_record(folder, truth, predictions, classes)


def edit_about(folder: Path, **changes: Any) -> None:
    path = folder / "record" / "about.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def cut_record(folder: Path) -> None:
    path = folder / "record" / "images-0.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))


def text_of(path: Path) -> str:
    """Return the text of a page, without tags, on one line."""
    content = re.sub(r"<(script|style)>.*?</\1>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", content)).split())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with a log in MMEngine's names, and its own evaluation."""
    folder = tmp_path / "runs" / "mine"
    evaluation(folder / "evaluation")
    (folder / "epoch_2.pth").touch()
    config = {
        "model": {"type": "EncoderDecoder", "backbone": {"variant": "svt_small"}, "decode_head": {"type": "FPNHead"}},
        "train_dataloader": {"dataset": {"data_root": "streets", "data_prefix": {"img_path": "images/train"}}},
    }
    edit_about(folder / "evaluation", checkpoint=str(folder / "epoch_2.pth"), config=config, command=f"train {HOSTILE}")
    lines: list[dict[str, Any]] = []
    for i in range(1, 9):
        position = {"epoch": (i + 3) // 4, "iter": i}
        lines.append({**position, "lr": 0.01 / i, "loss": 2 / i, "decode.loss_ce": 1 / i, "time": 15.0})
        if i % 4 == 0:
            lines.append({**position, "mIoU": i / 10, "mAcc": None, "val/loss": 0.5})
    write_log(folder, lines)
    return folder


def write_log(folder: Path, lines: list[dict[str, Any]]) -> None:
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"iter": 9, "lo')


class TestReport:
    def test_of_a_run(self, run: Path) -> None:
        path = write_report(run)
        assert path == run / "report.html"
        text = text_of(path)
        for part in (
            "Report of mine",
            "EncoderDecoder, FPNHead, svt_small",
            "streets/images/train",
            "2 epochs, 8 iterations, about 2 min",
            "3 images, 2 classes",
            "Learning curves",
            f"train {HOSTILE}",
        ):
            assert part in text, part
        assert "<script>alert" not in path.read_text(encoding="utf-8")
        assert list(run.glob(".*")) == []

    def test_is_deterministic(self, run: Path) -> None:
        assert write_report(run).read_bytes() == write_report(run, run / "again.html").read_bytes()

    def test_of_an_evaluation_without_its_run(self, tmp_path: Path) -> None:
        evaluation(tmp_path / "eval")
        path = write_report(tmp_path / "eval")
        assert path == tmp_path / "eval" / "report.html"
        assert "Learning curves" not in text_of(path)

    def test_a_moved_run_is_found_beside_its_evaluation(self, run: Path) -> None:
        moved = run.with_name("moved")
        run.rename(moved)
        assert find_run(read_record(moved / "evaluation")) == moved
        (moved / "epoch_2.pth").unlink()
        assert find_run(read_record(moved / "evaluation")) is None

    def test_comparison(self, run: Path, tmp_path: Path) -> None:
        evaluation(tmp_path / "other", seed=1)
        text = text_of(write_report(run, against=tmp_path / "other"))
        assert "Report of mine, compared with other" in text and "points compared with" in text

    def test_images_in_another_order_can_be_compared(self, run: Path, tmp_path: Path) -> None:
        other = tmp_path / "other"
        evaluation(other)
        path = other / "record" / "images-0.jsonl"
        entries = [json.loads(line) for line in path.read_text().splitlines()]
        for entry, index in zip(entries, (2, 0, 1), strict=True):
            entry["index"] = index
        path.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
        assert "+0.0 points compared with" in text_of(write_report(run, against=other))


def test_a_folder_that_cannot_be_written_names_the_remedy(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("twins_dense.evaluation.report.build.write_atomically", fail)
    with pytest.raises(TwinsError, match=r"report.html' cannot be written \(Read-only file system\): .*--out"):
        write_report(run)


class TestWhichEvaluation:
    def test_the_own_one_comes_before_others(self, run: Path) -> None:
        evaluation(run.with_name("mine_eval") / "newer")
        assert finished_record(run).folder == run / "evaluation" / "record"

    def test_those_of_the_best_checkpoint_come_first(self, run: Path) -> None:
        checkpoint = run / "epoch_4.pth"
        checkpoint.write_bytes(b"weights")
        identity = f"{checkpoint_hash(checkpoint)}-config"
        path = write_report(run, checkpoint=checkpoint)
        assert f"Not evaluated {checkpoint}, the run's best checkpoint now: run `twins-dense eval" in text_of(path)
        for name in ("1", "2"):
            evaluation(run.with_name("mine_eval") / name)
        edit_about(run.with_name("mine_eval") / "1", identity=identity)
        assert finished_record(run, checkpoint).folder.parent.name == "1"
        assert "Not evaluated" not in text_of(write_report(run, checkpoint=checkpoint))

    def test_else_the_newest_finished_one(self, run: Path) -> None:
        shutil.rmtree(run / "evaluation")
        for time, name in enumerate(("old", "new", "unfinished")):
            folder = run.with_name("mine_eval") / name
            evaluation(folder)
            os.utime(folder / "record" / "about.json", (time, time))
        cut_record(run.with_name("mine_eval") / "unfinished")
        assert finished_record(run).folder.parent.name == "new"

    @pytest.mark.parametrize("is_evaluation", [False, True])
    def test_an_unfinished_one_names_the_remedy(self, run: Path, is_evaluation: bool) -> None:
        cut_record(run / "evaluation")
        with pytest.raises(TwinsError, match=r"unfinished \(2 of 3 images\).*eval … --work-dir .*evaluation"):
            write_report(run / "evaluation" if is_evaluation else run)
        assert not list(run.rglob("report.html"))

    def test_the_only_one_inside(self, tmp_path: Path) -> None:
        evaluation(tmp_path / "a")
        assert finished_record(tmp_path).folder == tmp_path / "a" / "record"
        evaluation(tmp_path / "b")
        with pytest.raises(TwinsError, match=r"contains 2 evaluations: name one of them, such as .*/a'"):
            finished_record(tmp_path)

    def test_none(self, tmp_path: Path) -> None:
        with pytest.raises(TwinsError, match="contains no evaluation: run `twins-dense eval"):
            write_report(tmp_path)
        with pytest.raises(TwinsError, match="does not exist"):
            write_report(tmp_path / "nothing")

    def test_an_unknown_task(self, run: Path) -> None:
        edit_about(run / "evaluation", task="page")
        with pytest.raises(TwinsError, match="unknown task 'page'"):
            write_report(run)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "task": (lambda folder: edit_about(folder, task="detection"), "their task differs"),
    "classes": (lambda folder: edit_about(folder, classes=["road", "sky"]), "their classes differ"),
    "images": (
        lambda folder: (folder / "record" / "images-0.jsonl").write_text(
            (folder / "record" / "images-0.jsonl").read_text().replace("/1.png", "/7.png")
        ),
        "3 and 3 images, of which 2 are common",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_evaluations_that_cannot_be_compared(run: Path, tmp_path: Path, name: str) -> None:
    change, message = CHANGES[name]
    evaluation(tmp_path / "other")
    change(tmp_path / "other")
    with pytest.raises(TwinsError, match=message) as caught:
        write_report(run, against=tmp_path / "other")
    assert "\n" not in str(caught.value)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(("old", "new"), [('"labels"', '"label"'), ('"maps/', '5,"a":"')])
def test_an_edited_record_is_one_line(run: Path, old: str, new: str) -> None:
    path = run / "evaluation" / "record" / "images-0.jsonl"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(TwinsError, match=r"broken .*: remove this folder and evaluate again") as caught:
        write_report(run)
    assert "\n" not in str(caught.value)
    assert not (run / "report.html").exists()


class TestLog:
    def test_both_engines_have_the_same_names(self, run: Path, tmp_path: Path) -> None:
        theirs = {"iteration": 4, "total_loss": 2.0, "loss_cls": 0.5, "lr": 0.1, "bbox/AP": 25.0, "segm/AP50": 50.0}
        write_log(tmp_path, [{**theirs, "time": 1.0}])
        history = read_history(tmp_path)
        assert history is not None
        assert {name: y.tolist() for name, (_, y) in history.losses.items()} == {"loss": [2.0], "loss_cls": [0.5]}
        assert {name: (x.tolist(), y.tolist()) for name, (x, y) in history.scores.items()} == {
            "box AP": ([5.0], [0.25]),
            "mask AP50": ([5.0], [0.5]),
        }
        assert (history.num_iterations, history.num_epochs, history.seconds) == (5, None, 5.0)
        history = read_history(run)
        assert history is not None
        assert list(history.losses) == ["loss", "decode.loss_ce"] and history.num_epochs == 2
        assert history.scores["mIoU"][1].tolist() == [0.4, 0.8] and history.scores["mAcc"][1].tolist() == []
        assert history.validation_loss[0].tolist() == [4.0, 8.0]

    def test_long_logs_are_averaged(self, tmp_path: Path) -> None:
        write_log(tmp_path, [{"iter": i, "loss": 1.0, "lr": 0.1} for i in range(1, 5001)])
        history = read_history(tmp_path)
        assert history is not None
        x, y = history.losses["loss"]
        assert len(x) == 200 and np.allclose(y, 1) and np.isclose(x.mean(), 2500.5)

    @pytest.mark.parametrize("content", [None, "", "[1]\nnull\n{}\n", '{"iter": "a"}\n'])
    def test_a_log_without_content(self, tmp_path: Path, content: str | None) -> None:
        if content is not None:
            (tmp_path / "metrics.jsonl").write_text(content)
        assert read_history(tmp_path) is None
        assert run_sections(tmp_path) == run_sections(None) == []
