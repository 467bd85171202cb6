"""`twins-dense info` and `benchmark`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_fixtures import assert_error, twins

# Parameters, and GMACs at 224x224, of the classifiers.
PUBLISHED = {
    "pcpvt_small": (24_106_216, 3.81),
    "pcpvt_base": (43_828_456, 6.65),
    "pcpvt_large": (60_989_672, 9.81),
    "svt_small": (24_060_776, 2.93),
    "svt_base": (56_070_952, 8.56),
    "svt_large": (99_271_400, 15.11),
}


# GMACs of the dense backbones at 800x1216.
DENSE = {"pcpvt_small": 124.68, "pcpvt_base": 206.11, "pcpvt_large": 301.01}


class TestInfo:
    def test_json(self) -> None:
        result = twins("info", "--json")
        assert (result.code, result.err) == (0, "")
        rows = {row["variant"]: row for row in json.loads(result.out)}
        assert list(rows) == list(PUBLISHED)
        for variant, (parameters, gmacs) in PUBLISHED.items():
            assert rows[variant]["classifier_parameters"] == parameters
            assert round(rows[variant]["classifier_macs_224x224"] / 1e9, 2) == gmacs
        for variant, gmacs in DENSE.items():
            assert round(rows[variant]["backbone_macs_800x1216"] / 1e9, 2) == gmacs
        assert rows["svt_base"]["channels"] == [96, 192, 384, 768]
        # A dense SVT has no head (768 x 1000 + 1000) and no last norm, but a norm on each of its levels.
        levels = 2 * (96 + 192 + 384 + 768)
        assert rows["svt_base"]["backbone_parameters"] == 56_070_952 - 769_000 - 2 * 768 + levels

    def test_table(self) -> None:
        result = twins("info", "svt_small", "pcpvt_small", "--size", "224x224")
        rows = [line.split() for line in result.out.splitlines()[2:]]
        assert [row[0] for row in rows] == ["svt_small", "pcpvt_small"]
        assert [row[1:3] for row in rows] == [["24.06", "2.93"], ["24.11", "3.81"]]
        assert rows[0][-4:] == ["64", "128", "256", "512"]
        # Without the head (512 x 1000), the dense backbone does about the same at the same size.
        assert [float(row[4]) for row in rows] == pytest.approx([2.93, 3.81], abs=0.02)

    @pytest.mark.parametrize(
        ("arguments", "parts"),
        [
            (["--size", "800"], ["'800'", "HEIGHTxWIDTH"]),
            (["svt_smal"], ["'svt_smal'", "did you mean 'svt_small'?"]),
            (["svt_small", "--size", "16x16"], ["16x16", "32x32"]),
        ],
    )
    def test_errors(self, arguments: list[str], parts: list[str]) -> None:
        assert_error(twins("info", *arguments), *parts)


class TestBenchmark:
    @pytest.mark.parametrize("peer", ["timm", "mmseg"])
    def test_a_line_a_shape(self, peer: str, tmp_path: Path) -> None:
        options = ("--shape", "1x64x64", "--rounds", "1", "--peer", peer, "--json", tmp_path / "seconds.json")
        result = twins("benchmark", "svt_small", *options)
        assert (result.code, result.err) == (0, "")
        (line,) = [line for line in result.out.splitlines() if line.startswith("svt_small")]
        (row,) = json.loads((tmp_path / "seconds.json").read_text())
        ((ours, theirs),) = row[f"ours_and_{peer}_seconds"]
        ratio = f"{theirs / ours:.2f}"
        assert ours > 0 and theirs > 0
        # The median of one round is also its quartiles.
        assert line.split() == ["svt_small", "1x64x64", f"{ours:.3f}", f"{theirs:.3f}", ratio, f"({ratio}–{ratio})"]

    @pytest.mark.parametrize(
        ("arguments", "part"),
        [
            (["--shape", "64x64"], "'64x64'"),
            (["svt_tiny", "--shape", "1x64x64"], "'svt_tiny'"),
            (["svt_tiny", "--peer", "mmseg"], "'svt_tiny'"),
        ],
    )
    def test_errors(self, arguments: list[str], part: str) -> None:
        assert_error(twins("benchmark", *arguments), part)
