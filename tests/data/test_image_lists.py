"""Images are found by files, folders, globs, lists and COCO files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from feature_fixtures import NUM_IMAGES, make_photos

import twins_dense as td
from twins_dense.data.image_lists import list_images


@pytest.fixture
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    make_photos(root)
    return root


def test_lists(photos: Path, tmp_path: Path) -> None:
    assert len(list_images([str(photos)]).paths) == NUM_IMAGES
    assert len(list_images([str(photos / "*.png"), str(photos / "00.png")]).paths) == 8  # each once
    names = [str(path.relative_to(photos)) for path in sorted(photos.rglob("*.png"))]
    (photos.parent / "names.txt").write_text("\n".join([*names, ""]))
    listed = list_images([str(photos.parent / "names.txt")], str(photos))
    assert listed.paths == [str(photos / name) for name in names] and listed.ids == listed.paths and listed.upright
    (photos.parent / "marked.txt").write_text("\n".join(names), encoding="utf-8-sig")  # as Windows editors do
    assert list_images([str(photos.parent / "marked.txt")], str(photos)).paths == listed.paths


def test_results_are_not_photos(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "out" / "preview").mkdir(parents=True)
    shutil.copy(photos / "00.png", tmp_path / "photos" / "out" / "preview")
    monkeypatch.chdir(tmp_path / "photos")
    for folder in (".", str(tmp_path / "photos")):
        assert len(list_images([folder]).paths) == NUM_IMAGES + 1
        assert len(list_images([folder], out=Path("out")).paths) == NUM_IMAGES
        assert len(list_images([folder], out=tmp_path / "elsewhere").paths) == NUM_IMAGES + 1


def test_coco(tmp_path: Path) -> None:
    file = tmp_path / "annotations" / "instances_val.json"
    file.parent.mkdir()
    entries = [{"id": 7, "file_name": "b.jpg"}, {"id": 3, "file_name": "a.jpg"}]
    file.write_text(json.dumps({"images": entries}))
    with pytest.raises(td.TwinsError, match="name their folder with --image-dir"):
        list_images([str(file)])
    (tmp_path / "val").mkdir()
    found = list_images([str(file)])
    assert found.ids == ["3", "7"] and not found.upright
    assert found.paths == [str(tmp_path / "val" / name) for name in ("a.jpg", "b.jpg")]
    with pytest.raises(td.TwinsError, match="give either one COCO file or other images"):
        list_images([str(file), "x.jpg"])


@pytest.mark.parametrize("name", ["../secret.png", "/etc/secret.png", "a/../../secret.png", "..", "\n/../../x.png"])
def test_coco_names_that_lead_outside(tmp_path: Path, name: str) -> None:
    file = tmp_path / "images.json"
    file.write_text(json.dumps({"images": [{"id": 1, "file_name": "a/../b.jpg"}, {"id": 2, "file_name": name}]}))
    with pytest.raises(td.TwinsError, match=r"is not in the folder .*; add --allow-outside") as caught:
        list_images([str(file)], str(tmp_path / "val"))
    assert str(caught.value).startswith(f"{file}: image ") and "\n" not in str(caught.value)
    found = list_images([str(file)], str(tmp_path / "val"), allow_outside=True)
    assert found.paths == [str(tmp_path / "val" / "a/../b.jpg"), str(tmp_path / "val" / name)]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00"])
def test_bad_lists(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(td.TwinsError, match=r"bad\.txt"):
        list_images([str(tmp_path / "bad.txt")])
