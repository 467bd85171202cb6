"""The archive of the ADE20K challenge is checked, and unpacked completely or not at all."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from detection_fixtures import ROOT
from PIL import Image

from twins_dense.data.label_maps import prepare_ade20k
from twins_dense.errors import TwinsError

FEW = {"training": 3, "validation": 2}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Archive with the folders of the challenge and five images, whose labels contain the values 0 and 150."""
    source = tmp_path / "source" / "ADEChallengeData2016"
    for split, count in FEW.items():
        for kind in ("images", "annotations"):
            (source / kind / split).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (31, 23)).save(source / "images" / split / f"ADE_{number}.jpg")
            label = np.full((23, 31), 150, dtype=np.uint8)
            label[:4] = 0
            Image.fromarray(label).save(source / "annotations" / split / f"ADE_{number}.png")
    (source / "objectInfo150.txt").write_text("names\n")
    return pack(source.parent, tmp_path / "ADE.zip")


def pack(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as opened:
        for file in sorted(folder.rglob("*")):
            opened.write(file, file.relative_to(folder))
    return path


def test_unpacks_and_checks(archive: Path, tmp_path: Path) -> None:
    folder = prepare_ade20k(archive, tmp_path / "out", num_images=FEW)
    assert folder == tmp_path / "out" / "ADEChallengeData2016"
    assert len(list(folder.rglob("*.png"))) == len(list(folder.rglob("*.jpg"))) == 5
    assert (folder / "objectInfo150.txt").is_file()
    assert [path.name for path in folder.parent.iterdir()] == ["ADEChallengeData2016"]


def test_a_second_call_only_checks(archive: Path, tmp_path: Path) -> None:
    folder = prepare_ade20k(archive, tmp_path / "out", num_images=FEW)
    archive.unlink()
    assert prepare_ade20k(archive, tmp_path / "out", num_images=FEW) == folder
    Image.fromarray(np.full((23, 31), 151, dtype=np.uint8)).save(folder / "annotations/training/ADE_1.png")
    with pytest.raises(TwinsError, match=r"1 × label with values outside the classes: \S+ADE_1\.png \(151\)"):
        prepare_ade20k(archive, tmp_path / "out", num_images=FEW)


def test_a_missing_image(archive: Path, tmp_path: Path) -> None:
    folder = prepare_ade20k(archive, tmp_path / "out", num_images=FEW)
    (folder / "images/validation/ADE_1.jpg").unlink()
    with pytest.raises(TwinsError, match="holds 1 images instead of 2"):
        prepare_ade20k(archive, tmp_path / "out", num_images=FEW)


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "another", "missing"])
def test_a_bad_archive_leaves_nothing(archive: Path, tmp_path: Path, damage: str) -> None:
    content = archive.read_bytes()
    if damage == "cut":
        archive.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":  # in the middle of a member's data
        place = content.index(b"JFIF") + 40
        archive.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
    elif damage == "text":
        archive.write_text("no archive")
    elif damage == "another":
        with zipfile.ZipFile(archive, "w") as opened:
            opened.writestr("../ADEChallengeData2016/evil.txt", "x")
    else:
        archive.unlink()
    with pytest.raises(TwinsError, match=r"ADE\.zip") as caught:
        prepare_ade20k(archive, tmp_path / "out", num_images=FEW)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_the_script(tmp_path: Path) -> None:
    script = str(ROOT / "datasets" / "prepare_ade20k.py")
    result = subprocess.run(
        [sys.executable, script, "no.zip", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2 and "no.zip" in result.stderr and "Traceback" not in result.stderr
