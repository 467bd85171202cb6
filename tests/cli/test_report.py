"""`twins-dense report`."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from cli_fixtures import assert_error, twins
from record_fixtures import segmentation_record


@pytest.fixture
def evaluated(tmp_path: Path) -> Path:
    truth = [np.repeat([0, 1], 11 * 7).reshape(11, 14).astype(np.uint8)] * 3
    segmentation_record(tmp_path / "eval", truth, truth, ("road", "sky"))
    return tmp_path / "eval"


def test_it_prints_the_path_and_the_size(evaluated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(evaluated.parent)
    result = twins("report", "eval")
    assert result.code == 0, result.err
    assert re.fullmatch(r"eval/report\.html \(\d+\.\d MB\)\n", result.out)
    assert twins("report", "eval").code == 0  # our own report may be replaced


def test_out(evaluated: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "page.html"
    assert twins("report", evaluated, "--out", out, "--against", evaluated).code == 0
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert not (evaluated / "report.html").exists()


def test_files_that_are_not_reports_are_kept(evaluated: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.html"
    mine.write_text("<html>mine</html>")
    assert_error(twins("report", evaluated, "--out", mine), str(mine), "not a report", "choose another --out")
    assert_error(twins("report", evaluated, "--out", tmp_path), "is a folder", "report.html")
    assert_error(twins("report", evaluated, "--out", mine / "a" / "b.html"), "is a file")
    assert mine.read_text() == "<html>mine</html>"


def test_sources_that_cannot_be_used(evaluated: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert_error(twins("report", tmp_path / "nowhere"), "nowhere", "does not exist")
    assert_error(twins("report", tmp_path / "file"), "file", "is a file", "name the folder")
    assert_error(twins("report", tmp_path / "empty"), "contains no evaluation", "twins-dense eval")
    assert_error(twins("report", evaluated, "--against", tmp_path / "empty"), "contains no evaluation")
    path = evaluated / "record" / "images-0.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:1]))
    assert_error(twins("report", evaluated), "unfinished (1 of 3 images)", f"eval … --work-dir {evaluated}")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "--data"),
        (["run", "--data", "photos"], "--data"),
        (["--data", "photos", "--against", "run"], "--against"),
        (["run", "--skip-bad"], "--skip-bad"),
    ],
)
def test_options_that_exclude_each_other(arguments: list[str], part: str) -> None:
    result = twins("report", *arguments)
    assert result.code == 2 and part in result.err and "Usage" in result.err


def test_report_of_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    assert_error(twins("report", "--data", tmp_path / "none", "--out", tmp_path / "a.html"), "none", "not a folder")


def test_the_help_has_examples() -> None:
    result = twins("report", "--help")
    assert result.code == 0 and "--against runs/before" in result.out and "--data my_data" in result.out
