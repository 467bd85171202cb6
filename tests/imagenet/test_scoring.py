"""Scores equal those computed by hand, and broken images are left out."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from imagenet_fixtures import noise, save
from PIL import Image
from torch import Tensor, nn

import twins_dense as td
from twins_dense.imagenet.folders import Sample
from twins_dense.imagenet.scoring import LabelledImages, Score, score, write_classes
from twins_dense.imagenet.transforms import VALIDATION_PROTOCOLS, image_transform

CPU = torch.device("cpu")


class KnownAnswers(nn.Module):
    """Classifier whose logits are the negative distances between the class index and the image's gray value."""

    def forward(self, images: Tensor) -> Tensor:
        gray = (images[:, 0, 112, 112] * 0.229 + 0.485) * 255
        return -(gray[:, None] - torch.arange(1000)).abs()


def gray_samples(root: Path, values_and_labels: list[tuple[int, int]]) -> list[Sample]:
    return [
        (save(Image.new("RGB", (64, 48), (value,) * 3), root / f"{index}.jpg"), label)
        for index, (value, label) in enumerate(values_and_labels)
    ]


def run(samples: list[Sample], batch_size: int = 3, num_workers: int = 0, **options: Any) -> Score:
    return score(
        KnownAnswers(),
        samples,
        VALIDATION_PROTOCOLS["official"],
        device=CPU,
        batch_size=batch_size,
        num_workers=num_workers,
        **options,
    )


@pytest.mark.parametrize("batch_size", [1, 3, 5, 64])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_totals_by_hand(tmp_path: Path, batch_size: int, num_workers: int) -> None:
    """A label that is off by up to 2 is in the top 5. JPEG keeps the exact value of a uniform gray."""
    samples = gray_samples(tmp_path, [(10, 10), (20, 21), (30, 32), (40, 43), (50, 50), (60, 50), (70, 70)])
    result = run(samples, batch_size, num_workers)
    assert (result.num_images, result.unreadable) == (7, ())
    assert result.top1 == pytest.approx(100 * 3 / 7) and result.top5 == pytest.approx(100 * 5 / 7)
    assert result.counts[50].tolist() == [2, 1, 1]
    assert result.counts[32].tolist() == [1, 0, 1] and result.counts[43].tolist() == [1, 0, 0]
    assert result.counts.sum(0).tolist() == [7, 3, 5]
    expected = 0.0
    for value, label in [(10, 10), (20, 21), (30, 32), (40, 43), (50, 50), (60, 50), (70, 70)]:
        expected += math.log(sum(math.exp(-abs(value - i)) for i in range(1000))) + abs(value - label)
    assert result.loss == pytest.approx(expected / 7, rel=1e-4)


def test_outputs_that_are_not_finite(tmp_path: Path) -> None:
    samples = gray_samples(tmp_path, [(10, 10), (20, 21)])
    with pytest.raises(td.TwinsError, match="outputs of the classifier are not finite"):
        score(
            lambda images: torch.full((len(images), 1000), math.nan),
            samples,
            VALIDATION_PROTOCOLS["official"],
            device=CPU,
            batch_size=1,
            num_workers=0,
        )


def test_classes(tmp_path: Path) -> None:
    result = run(gray_samples(tmp_path, [(4, 4), (4, 5), (9, 5), (18, 16)]))
    write_classes(result, tmp_path / "classes.csv")
    with (tmp_path / "classes.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["wnid", "name", "images", "top1", "top5"],
        ["n01494475", "hammerhead", "1", "100.00", "100.00"],
        ["n01496331", "electric ray", "2", "0.00", "50.00"],
        ["n01560419", "bulbul", "1", "0.00", "100.00"],
    ]


# Odd and broken images


def tensor_of(path: Path) -> Tensor | str:
    item = LabelledImages([(path, 0)], VALIDATION_PROTOCOLS["official"])[0]
    return item if isinstance(item, str) else item[0]


def test_gray_and_cmyk_become_rgb(tmp_path: Path) -> None:
    for mode in ("L", "CMYK"):
        path = save(noise(300, 260, mode), tmp_path / f"{mode}.jpg")
        with Image.open(path) as file:
            assert file.mode == mode
            expected = image_transform(VALIDATION_PROTOCOLS["official"])(file.convert("RGB"))
        found = tensor_of(path)
        assert isinstance(found, Tensor) and torch.equal(found, expected)


def test_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    """The published scores were computed without it."""
    image = noise(300, 260)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    plain, turned = save(image, tmp_path / "plain.jpg"), save(image, tmp_path / "turned.jpg", exif=exif)
    with Image.open(turned) as file:
        assert file.getexif()[0x0112] == 6
    assert torch.equal(tensor_of(turned), tensor_of(plain))  # type: ignore[arg-type]


def broken_images(folder: Path) -> list[Path]:
    whole = save(noise(300, 260), folder / "whole.jpg").read_bytes()
    (folder / "whole.jpg").unlink()
    contents = {"cut.jpg": whole[: len(whole) // 2], "empty.jpg": b"", "page.jpg": b"<html>", "head.jpg": whole[:20]}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    line = save(Image.new("L", (60_000, 1)), folder / "line.jpg")  # resizing it would take gigabytes
    return [*(folder / name for name in contents), line, folder / "missing.jpg"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_broken_images_are_named_and_left_out(tmp_path: Path, num_workers: int) -> None:
    """They come first, in the middle and last, and some batches contain no others."""
    good = gray_samples(tmp_path, [(10, 10), (20, 21), (30, 3)])
    broken = [(path, 7) for path in broken_images(tmp_path)]
    samples = [*broken[:3], good[0], *broken[3:5], *good[1:], broken[5]]
    entries: list[dict[str, Any]] = []
    result = run(samples, batch_size=2, num_workers=num_workers, on_image=entries.append)
    assert [(entry["index"], Path(entry["file"])) for entry in entries] == [
        (index, path) for index, (path, _) in enumerate(samples)
    ]
    assert [entry.get("top", [None])[0] for entry in entries] == [None, None, None, 10, None, None, 20, 30, None]
    assert [entry["error"] for entry in entries if "error" in entry] == sorted(
        result.unreadable, key=lambda line: [line.startswith(str(path)) for path, _ in broken].index(True)
    )
    assert result.counts.sum(0).tolist() == [3, 1, 2] and result.counts[7].tolist() == [0, 0, 0]
    assert len(result.unreadable) == 6
    for path, line in zip([path for path, _ in broken], result.unreadable, strict=True):
        assert line.startswith(f"{path} cannot be read (") and "\n" not in line
    with pytest.raises(td.TwinsError, match=r"none of the 6 images can be read; the first: .*cut.jpg"):
        run(broken)
