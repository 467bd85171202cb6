"""`twins-dense benchmark extract` prints the ratio to the model alone, and the speed of each stage alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cli_fixtures import assert_error, twins
from PIL import Image

pytest.importorskip("zarr", minversion="3.1", reason="Zarr v3 needs Python 3.11")


def test_output(tmp_path: Path) -> None:
    Image.new("RGB", (70, 90)).save(tmp_path / "a.png")
    options = ("--num-images", 5, "--size", 64, "--levels", "c5", "--chunk", 2, "--rounds", 2, "--device", "cpu")
    result = twins("benchmark", "extract", tmp_path / "a.png", *options, "--scratch", tmp_path)
    assert result.code == 0, result.err
    title, header, *rounds, summary, stages = result.out.splitlines()
    assert title.startswith("svt_small, 5 images of 64x64, chunks of 2, cpu, ") and len(rounds) == 2
    assert header.split() == ["bare/s", "extract/s", "ratio", "cores", "busy"]
    ratios = []
    for line in rounds:
        bare, rate, ratio, busy = (float(number.rstrip("%")) for number in line.split())
        # The rates are rounded to 0.01 and the ratio to 0.001, which is much of a low one.
        assert (rate - 0.005) / (bare + 0.005) - 0.0005 <= ratio <= (rate + 0.005) / (bare - 0.005) + 0.0005
        assert busy > 0
        ratios.append(ratio)
    match = re.fullmatch(r"extract / bare: median (\S+); peak memory \d+ MiB, each worker \d+ MiB", summary)
    assert match is not None and float(match[1]) == pytest.approx(sum(ratios) / 2, abs=2e-3)
    match = re.fullmatch(r"images/s of each stage alone.*: read (\S+), model (\S+), write (\S+)", stages)
    assert match is not None and all(float(rate) > 0 for rate in match.groups())
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_bad_input(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image")
    options = (tmp_path / "a.png", "--size", 64, "--device", "cpu", "--rounds", 1)
    assert_error(twins("benchmark", "extract", *options, "--scratch", tmp_path / "gone"), "gone", "no such folder")
    assert_error(
        twins("benchmark", "extract", *options, "--workers", 0), "a.png", "cannot be read; give readable images"
    )
