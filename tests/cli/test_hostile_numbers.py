"""Numbers that are no numbers, or too large, in options: one line before any memory is taken or any model is loaded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cli_fixtures import twins
from PIL import Image

from twins_dense.errors import TwinsError
from twins_dense.features.prepare import Protocol

DIGITS = "9" * 5000
CASES: list[tuple[str, ...]] = [
    *(("predict", "none.pth", "photo.png", "--score", value) for value in ("nan", "inf", "-inf", "1e999", "-0.1", "x")),
    *(("predict", "none.pth", "photo.png", "--overlap", value) for value in ("nan", "inf", "-1")),
    *(("train", "torchvision/mask_rcnn_svt_small_1x", "--lr", value) for value in ("nan", "inf", "-1", "0", DIGITS)),
    *(("train", "torchvision/mask_rcnn_svt_small_1x", "--size", value) for value in ("3200000", DIGITS, "nan")),
    *(
        ("train", "torchvision/mask_rcnn_svt_small_1x", "--anchor-sizes", value)
        for value in ("nan,8", "inf", "-1,2", "", ",", DIGITS)
    ),
    *(
        ("extract", "photo.png", "--variant", "svt_small", "--weights", "none.pth", "--out", "o", "--size", value)
        for value in ("3200000", "32", "0", "-448", DIGITS)
    ),
    ("info", "--size", f"{DIGITS}x8"),
    ("benchmark", "--shape", f"1x{DIGITS}x8"),
]


@pytest.mark.parametrize("arguments", CASES, ids=lambda arguments: " ".join((arguments[0], *arguments[-2:]))[:40])
def test_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64)).save("photo.png")
    result = twins(*arguments)
    assert result.code == 2 and "Traceback" not in result.err + result.out
    (line,) = [line for line in result.err.splitlines() if re.match("error: ", line, re.IGNORECASE)]
    assert arguments[-2].removeprefix("--").replace("-", "_") in line.replace("-", "_") or arguments[-1] in line
    assert "none.pth" not in line
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


def test_sizes_of_extraction() -> None:
    for name in ("crop", "imagenet"):
        Protocol(name, 8192)
        with pytest.raises(TwinsError, match="size=3200000: give at most 8192"):
            Protocol(name, 3200000)
