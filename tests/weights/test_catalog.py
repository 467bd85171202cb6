"""The catalog of published checkpoints, and the command line for it."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from cli_fixtures import assert_error, twins
from contracts import VARIANTS

from twins_dense.weights.catalog import CATALOG, cache_dir

NAME = "svt_small.in1k-mmpretrain"
pytestmark = pytest.mark.usefixtures("home")


def test_the_catalog_is_complete() -> None:
    sources = [
        "in1k-official",
        "in1k-timm",
        "in1k-mmpretrain",
        "in1k-mmseg",
        "ade20k_fpn-mmseg",
        "ade20k_upernet-mmseg",
    ]
    assert set(CATALOG) == {f"{variant}.{source}" for variant in VARIANTS for source in sources}
    assert len({spec.url for spec in CATALOG.values()}) == 36
    for name, spec in CATALOG.items():
        assert spec.name == name and name.startswith(spec.variant) and name.endswith(spec.format)
        assert re.fullmatch(r"([0-9a-f]{8}){0,8}", spec.sha256)
        if "openmmlab" in spec.url:  # the file's name ends in the start of its hash
            assert re.search(r"-([0-9a-f]{8})\.pth$", spec.url)[1] == spec.sha256[:8]  # type: ignore[index]
    whole = [name for name, spec in CATALOG.items() if len(spec.sha256) == 64]
    assert whole == [
        *(f"svt_{size}.in1k-official" for size in ("small", "base", "large")),
        "pcpvt_small.in1k-mmpretrain",
    ]


def test_cache_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TWINS_DENSE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "twins_dense"
    monkeypatch.setenv("TWINS_DENSE_HOME", "~/weights")
    assert cache_dir() == Path.home() / "weights"


# The command line


def test_list(home: Path) -> None:
    home.mkdir()
    (home / f"{NAME}.pth").touch()
    rows = twins("weights", "list").out.splitlines()
    assert len(rows) == 36 and len([row for row in rows if " here " in row]) == 1
    (row,) = [row for row in rows if row.startswith(NAME)]
    assert "here" in row and "top1 81.77, top5 95.57" in row
    listed = json.loads(twins("weights", "list", "*.ade20k_*", NAME, "--json").out)
    assert len(listed) == 13 and [entry["here"] for entry in listed if entry["name"] == NAME] == [True]


def test_verify(home: Path, tmp_path: Path) -> None:
    assert twins("weights", "verify").out == f"nothing is downloaded to {home}\n"
    home.mkdir()
    (home / f"{NAME}.pth").write_bytes(b"abc")
    result = twins("weights", "verify")
    assert "WRONG" in result.out
    assert_error(result, "1 of 1 files differ from the published ones")


def test_verify_any_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command names the published file with this hash, if there is one."""
    (tmp_path / "mine.pth").write_bytes(b"abc")
    result = twins("weights", "verify", tmp_path / "mine.pth")
    assert result.code == 0 and result.out.endswith("mine.pth  no published hash\n")
    monkeypatch.setitem(CATALOG, NAME, dataclasses.replace(CATALOG[NAME], sha256="ba7816bf"))
    assert twins("weights", "verify", tmp_path / "mine.pth").out.endswith(f"mine.pth  {NAME}\n")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("verify", "svt_base.in1k-timm"), "svt_base.in1k-timm is not downloaded"),
        (("verify", "nothing.pth"), "weights 'nothing.pth': no such file"),
        (("download", "svt_bas.in1k-timm"), "did you mean 'svt_base.in1k-timm'?"),
        (("list", "svt"), "unknown weights 'svt'"),
    ],
)
def test_wrong_names(arguments: tuple[str, ...], expected: str) -> None:
    assert_error(twins("weights", *arguments), expected)
