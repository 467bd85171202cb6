"""Known copies are found, different pictures are not, and the order of files does not matter."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from detection_fixtures import COCO_MINI, NO_PHOTOS
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_fixtures import picture
from PIL import Image, ImageEnhance

from twins_dense.data import duplicates
from twins_dense.data.duplicates import Pair, SplitImage, find_duplicates, groups_of, leaks

Edit = Callable[[Image.Image], Image.Image]


def compressed(image: Image.Image) -> Image.Image:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=30)
    return Image.open(content).convert("RGB")


def cropped(image: Image.Image) -> Image.Image:
    width, height = image.size
    return image.crop((width // 50, height // 50, width - width // 50, height - height // 50))


EDITS: dict[str, Edit] = {
    "compressed": compressed,
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "cropped": cropped,
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
    "gray": lambda image: image.convert("L"),
}


def save(folder: Path, name: str, image: Image.Image) -> SplitImage:
    """Write an image below the folder of a split, such as "train/a.png"."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return SplitImage(str(path), path.parent.name)


def names(pair: Pair) -> tuple[str, str, str]:
    return *(Path(image.path).name for image in (pair.first, pair.second)), pair.kind


class TestKnownAnswers:
    def test_each_kind_and_each_edit(self, tmp_path: Path) -> None:
        images = [save(tmp_path, f"train/{seed}.png", picture(seed)) for seed in range(12)]
        shutil.copy(images[0].path, tmp_path / "train/copy.png")
        images.append(SplitImage(str(tmp_path / "train/copy.png"), "train"))
        images.append(save(tmp_path, "val/pixels.bmp", picture(1)))
        for seed, (name, edit) in enumerate(EDITS.items(), 2):
            images.append(save(tmp_path, f"val/{name}.jpg", edit(picture(seed))))
        pairs = find_duplicates(images)
        expected = {("0.png", "copy.png", "same file"), ("1.png", "pixels.bmp", "same pixels")}
        expected |= {(f"{seed}.png", f"{name}.jpg", "near") for seed, name in enumerate(EDITS, 2)}
        assert {names(pair) for pair in pairs} == expected and len(pairs) == len(expected)
        assert [pair.is_leak for pair in pairs] == [True] * 7 + [False]
        assert all(pair.correlation == 1 for pair in pairs if pair.kind != "near")

    @pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
    def test_photos(self, tmp_path: Path, edit: Edit) -> None:
        if not COCO_MINI.is_dir():
            pytest.skip(NO_PHOTOS)
        photos = sorted((COCO_MINI / "val2017").glob("*.jpg"))[:5]
        images = [SplitImage(str(path), "val") for path in photos]
        copies = [save(tmp_path, f"train/{path.stem}.png", edit(Image.open(path).convert("RGB"))) for path in photos]
        pairs = find_duplicates([*images, *copies])
        assert [Path(pair.first.path).stem for pair in pairs] == [Path(pair.second.path).stem for pair in pairs]
        assert len(pairs) == 5 and {pair.kind for pair in pairs} == {"near"}

    def test_different_photos_are_no_duplicates(self) -> None:
        if not COCO_MINI.is_dir():
            pytest.skip(NO_PHOTOS)
        assert not find_duplicates(SplitImage(str(path), path.parent.name) for path in COCO_MINI.glob("*/*.jpg"))

    def test_the_same_path_in_two_splits(self, tmp_path: Path) -> None:
        path = save(tmp_path, "a.png", picture(0)).path
        (pair,) = find_duplicates([SplitImage(path, "train"), SplitImage(path, "val"), SplitImage(path, "train")])
        assert pair == Pair(SplitImage(path, "train"), SplitImage(path, "val"), "same file") and pair.is_leak

    def test_many_copies_give_few_pairs(self, tmp_path: Path) -> None:
        images = [save(tmp_path, f"{split}/{n}.png", picture(0)) for split in ("train", "val") for n in range(5)]
        pairs = find_duplicates(images)
        assert len(pairs) == 4 * 2 + 1 + 4 * 2  # within the splits, and each with the first image of the other one
        assert groups_of(pairs) == [sorted(images)]
        assert len(leaks(pairs, "val")) == len(leaks(pairs, "train", "val")) == 5 and not leaks(pairs, "test")

    def test_leaks_of_copies(self, tmp_path: Path) -> None:
        """Identical files of val, which are near an image of train, all count."""
        images = [save(tmp_path, "train/a.png", picture(0)), save(tmp_path, "train/b.png", picture(1))]
        images += [save(tmp_path, f"val/{n}.png", cropped(picture(0))) for n in range(3)]
        found = leaks(find_duplicates(images), "val")
        assert sorted(found) == images[2:] and {pair.kind for pair in found.values()} == {"near", "same file"}

    def test_similar_pictures_give_few_pairs(self, tmp_path: Path) -> None:
        images = [
            save(tmp_path, f"train/{n}.png", ImageEnhance.Contrast(picture(0)).enhance(0.7 + 0.01 * n))
            for n in range(20)
        ]
        pairs = find_duplicates(images)
        assert 19 <= len(pairs) <= 20 * (duplicates._NEAREST + 1) and groups_of(pairs) == [sorted(images)]

    def test_pictures_without_contrast_are_compared_by_their_pixels(self, tmp_path: Path) -> None:
        black, gray = Image.new("RGB", (40, 40)), Image.new("RGB", (40, 40), (99, 99, 99))
        images = [
            save(tmp_path, "train/black.png", black),
            save(tmp_path, "train/gray.png", gray),
            save(tmp_path, "val/black.bmp", black),
            save(tmp_path, "val/larger.png", Image.new("RGB", (80, 80))),
        ]
        assert [names(pair) for pair in find_duplicates(images)] == [("black.png", "black.bmp", "same pixels")]

    def test_unreadable_and_odd_files(self, tmp_path: Path) -> None:
        (tmp_path / "broken.jpg").write_bytes(b"no image")
        images = [SplitImage(str(tmp_path / name), "train") for name in ("broken.jpg", "missing.jpg")]
        images.append(save(tmp_path, "train/one pixel.png", Image.new("RGB", (1, 1))))
        images.append(save(tmp_path, "train/palette.png", picture(0).convert("P")))
        images.append(save(tmp_path, "train/alpha.png", picture(0).convert("RGBA")))
        deep = np.asarray(picture(0).convert("L")).astype(np.uint16) << 8
        images.append(save(tmp_path, "train/16 bits.png", Image.fromarray(deep)))
        assert groups_of(find_duplicates(images)) == [sorted(images[3:])]

    def test_no_image(self) -> None:
        assert find_duplicates([]) == [] and groups_of([]) == []


@pytest.fixture(scope="module")
def some_images(tmp_path_factory: pytest.TempPathFactory) -> list[SplitImage]:
    folder = tmp_path_factory.mktemp("pictures")
    images = [save(folder, f"{split}/{seed}.png", picture(seed)) for seed in range(3) for split in ("train", "val")]
    return [*images, *(save(folder, f"test/{name}.jpg", edit(picture(0))) for name, edit in EDITS.items())]


@given(st.data())
@settings(max_examples=10)
def test_the_order_does_not_matter(some_images: list[SplitImage], data: st.DataObject) -> None:
    expected = find_duplicates(some_images)
    assert len(expected) > 10
    assert find_duplicates(data.draw(st.permutations(some_images))) == expected


def test_blocks_do_not_change_the_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """All pairs, computed one by one, are the reference."""
    rng = np.random.default_rng(0)
    bits = np.where(rng.random((60, 63)) < 0.5, 1, -1).astype(np.float32)
    bits[30:] = np.where(rng.random((30, 63)) < 0.15, -bits[:30], bits[:30])
    splits = np.array(["train", "val"])[rng.integers(0, 2, 60)]
    expected = {
        (i, j) for i in range(60) for j in range(i + 1, 60) if (bits[i] != bits[j]).sum() <= duplicates._MAX_BITS
    }
    monkeypatch.setattr(duplicates, "_BLOCK", 100)
    assert len(expected) >= 25 and duplicates._candidates(bits, splits) == sorted(expected)
