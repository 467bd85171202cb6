"""Galleries and their pictures: what is embedded, in which colours and coordinates, and what happens to bad input."""

from __future__ import annotations

import base64
import io
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils
from report_fixtures import HOSTILE_NAMES, write_image

from twins_dense.data.coco_masks import decode_segmentation
from twins_dense.errors import TwinsError
from twins_dense.evaluation.report.gallery import Card, Layer, Shape, gallery
from twins_dense.evaluation.report.pictures import contours_of, palette_picture, path_data, thumbnail


def open_uri(uri: str) -> Image.Image:
    head, data = uri.split(",")
    assert head in ("data:image/jpeg;base64", "data:image/png;base64")
    return Image.open(io.BytesIO(base64.b64decode(data)))


def points(path: str) -> list[list[tuple[float, float]]]:
    """Return the absolute points of a path of relative moves, an independent reading of `path_data`."""
    outlines = []
    start = (0.0, 0.0)
    for part in path.split("z")[:-1]:
        assert part[0] == "m"
        values = [float(number) for number in re.findall(r"-?[\d.]+", part)]
        outline = []
        place = start
        for dx, dy in zip(values[::2], values[1::2], strict=True):
            place = (round(place[0] + dx, 1), round(place[1] + dy, 1))
            outline.append(place)
        start = outline[0]
        outlines.append(outline)
    return outlines


def fill(contours: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """Return the pixels whose centres lie inside outlines, by the even-odd rule."""
    inside = np.zeros((height, width), bool)
    ys, xs = np.mgrid[:height, :width] + 0.5
    for contour in contours:
        for (x1, y1), (x2, y2) in zip(contour, np.roll(contour, -1, axis=0), strict=True):
            if y1 != y2:
                inside ^= ((y1 > ys) != (y2 > ys)) & (xs < x1 + (ys - y1) / (y2 - y1) * (x2 - x1))
    return inside


@pytest.mark.parametrize(("size", "expected"), [((47, 31), (47, 31)), ((1100, 600), (512, 279)), ((5, 1024), (2, 512))])
def test_thumbnails_have_at_most_512_pixels_and_are_never_enlarged(
    tmp_path: Path, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    Image.new("RGB", size, (200, 90, 30)).save(tmp_path / "a.png")
    uri, *found = thumbnail(tmp_path / "a.png")
    picture = open_uri(uri)
    assert tuple(found) == size
    assert (picture.format, picture.size) == ("JPEG", expected)
    assert np.abs(np.asarray(picture).astype(int) - (200, 90, 30)).max() <= 3


def test_large_jpeg_files_are_reduced_by_their_decoder(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 2501).astype(np.uint8)[None, :, None].repeat(1901, axis=0).repeat(3, axis=2)
    Image.fromarray(ramp).save(tmp_path / "a.jpg")
    uri, width, height = thumbnail(tmp_path / "a.jpg")
    assert (width, height) == (2501, 1901)
    picture = open_uri(uri)
    assert picture.size == (512, 389)
    expected = np.asarray(Image.fromarray(ramp).resize((512, 389))).astype(int)
    assert np.abs(np.asarray(picture) - expected).max() <= 4


@pytest.mark.parametrize(("name", "size"), [("a.jpg", (47, 31)), ("a.jpg", (2501, 1901)), ("a.png", (47, 31))])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_upright_thumbnails_are_turned(tmp_path: Path, name: str, size: tuple[int, int], orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size).save(tmp_path / name, exif=exif)
    uri, *found = thumbnail(tmp_path / name, upright=True)
    assert tuple(found) == (size[::-1] if orientation == 6 else size)
    width, height = open_uri(uri).size
    assert (width > height) == (orientation != 6)
    assert thumbnail(tmp_path / name)[1:] == size


def test_thumbnails_show_the_pixels_as_they_are_stored(tmp_path: Path) -> None:
    """The EXIF orientation is neither applied nor passed on to the browser, because shapes refer to stored pixels."""
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(path, exif=exif)
    html = str(gallery("g", [Card(str(path), "turned", "", shapes=[Shape((1, 2, 3, 4), "truth", "cat")])]))
    assert 'width="64" height="48"' in html
    assert 'viewBox="0 0 64 48"' in html
    assert not open_uri(re.findall(r'src="([^"]+)"', html)[0]).getexif()


@pytest.mark.parametrize("num_colors", [1, 3, 255, 256])
def test_maps_keep_their_colours_and_unknown_pixels_are_transparent(num_colors: int) -> None:
    indices = np.arange(256, dtype=np.uint8).reshape(16, 16)
    palette = np.random.default_rng(0).integers(0, 256, (num_colors, 3)).tolist()
    picture = open_uri(palette_picture(indices, palette))
    pixels = np.asarray(picture.convert("RGBA")).reshape(256, 4)
    assert picture.format == "PNG"
    np.testing.assert_array_equal(pixels[:num_colors, :3], palette)
    np.testing.assert_array_equal(pixels[:, 3], [255] * num_colors + [0] * (256 - num_colors))


def test_large_maps_are_reduced_without_new_values() -> None:
    indices = np.zeros((700, 1536), np.uint8)
    indices[:, 768:] = 9
    picture = open_uri(palette_picture(indices, [(index, 0, 0) for index in range(10)]))
    assert picture.size == (512, 233)
    red = np.asarray(picture.convert("RGBA"))[..., 0]
    np.testing.assert_array_equal(red, np.repeat([[0] * 256 + [9] * 256], 233, axis=0))


def test_polygons_are_outlines_as_they_are() -> None:
    (contour,) = contours_of([[2.5, 3.0, 20.0, 3.0, 20.0, 17.0, 2.5, 17.0]], 23, 29)
    np.testing.assert_array_equal(contour, [(2.5, 3), (20, 3), (20, 17), (2.5, 17)])


@pytest.mark.parametrize("compressed", [False, True])
def test_outlines_of_run_lengths_enclose_the_mask_with_its_holes(compressed: bool) -> None:
    mask = np.zeros((41, 53), np.uint8)
    mask[5:30, 4:40] = 1
    mask[12:20, 10:25] = 0  # a hole
    mask[35:40, 44:53] = 1  # a second part, at the border
    rle = mask_utils.encode(np.asfortranarray(mask))
    counts: Any = rle["counts"].decode()
    if not compressed:
        flat = mask.ravel(order="F").astype(int)
        changes = np.flatnonzero(np.diff(flat)) + 1
        counts = np.diff([0, *changes.tolist(), flat.size]).tolist()
    segmentation = {"size": [41, 53], "counts": counts}
    np.testing.assert_array_equal(decode_segmentation(segmentation, 41, 53), mask)
    contours = contours_of(segmentation, 41, 53)
    assert len(contours) == 3
    # Outlines run through the centres of the outermost pixels, so pixels on them may fall on either side.
    wrong = fill(contours, 41, 53) != mask.astype(bool)
    neighbours = np.pad(mask, 1, mode="edge")
    shifted = [neighbours[y : y + 41, x : x + 53] for y in range(3) for x in range(3)]
    border = np.any([part != mask for part in shifted], axis=0)
    border[[0, -1]] = border[:, [0, -1]] = True
    border[39, 44:] = True
    assert not (wrong & ~border).any()
    assert wrong.sum() < border.sum()


def test_long_outlines_are_simplified() -> None:
    angles = np.linspace(0, 2 * np.pi, 2000, endpoint=False)
    circle = np.stack([300 + 200 * np.cos(angles), 240 + 200 * np.sin(angles)], axis=1)
    (contour,) = contours_of([circle.ravel().tolist()], 480, 640)
    assert 20 < len(contour) < 100
    assert abs(np.hypot(*(contour - (300, 240)).T) - 200).max() < 1


@pytest.mark.parametrize("segmentation", [[], None, {"size": [5, 7], "counts": [35]}])
def test_nothing_has_no_outline(segmentation: Any) -> None:
    assert contours_of(segmentation, 5, 7) == []


@pytest.mark.parametrize(
    "segmentation", [[[1, 2, 3]], [[1, 2, 3, 4, 5, float("nan")]], {"size": [7, 5], "counts": [35]}, "m"]
)
def test_malformed_segmentations_are_refused(segmentation: Any) -> None:
    with pytest.raises(TwinsError, match="segmentation "):
        contours_of(segmentation, 5, 7)


def test_paths_are_short_and_exact_to_one_decimal() -> None:
    contours = [np.array([(10.04, 3), (20, 3.5), (20, 17)]), np.array([(2, 40), (-3, 41), (2.26, 44)])]
    path = path_data(contours)
    assert path == "m10 3 10 0.5 0 13.5zm-8 37-5 1 5.3 3z"
    assert points(path) == [[(10, 3), (20, 3.5), (20, 17)], [(2, 40), (-3, 41), (2.3, 44)]]
    assert path_data([]) == ""


def test_shapes_are_drawn_in_pixels_of_the_image_with_large_ones_and_errors_last(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.jpg", 0)
    shapes = [
        Shape((0, 0, 5, 5), "truth", "small"),
        Shape((1, 2, 30.25, 40), "truth", "large"),
        Shape((0, 0, 60, 40), "missed", "error"),
        Shape((0, 0, 9, 9), "correct", "mask", [np.array([(1, 1), (8, 1), (8, 8)])]),
        Shape((0, 0, 3, 2), "correct", "point", [np.array([(1.5, 1.5)])]),
        Shape((0, 0, float("nan"), 2), "correct", "not finite"),
    ]
    html = str(gallery("g", [Card(str(path), "a", "", shapes=shapes)]))
    found = re.findall(r'<g class="shape ([^"]+)" data-box="([^"]+)"><title>([^<]+)</title><path d="([^"]+)"', html)
    assert [(classes, label) for classes, _, label, _ in found] == [
        ("kind-truth", "large"),
        ("kind-truth", "small"),
        ("kind-missed error", "error"),
        ("kind-correct", "mask"),
        ("kind-correct", "point"),
    ]
    assert points(found[0][3]) == [[(1, 2), (30.2, 2), (30.2, 40), (1, 40)]]
    assert found[0][1] == "1 2 30 40"
    assert points(found[3][3]) == [[(1, 1), (8, 1), (8, 8)]]
    assert points(found[4][3]) == [[(0, 0), (3, 0), (3, 2), (0, 2)]]  # a mask that is too small is drawn as a box


def test_switches_and_legend_name_what_is_used(tmp_path: Path) -> None:
    path = str(write_image(tmp_path / "a.jpg", 0))
    indices = np.array([[0, 1], [255, 255]], np.uint8)
    layers = [
        Layer("truth", indices, [(1, 2, 3), (4, 5, 6), (7, 8, 9)], ["sky", "road", "tree"]),
        Layer("errors", indices, [(9, 9, 9), (8, 8, 8)], ["wrong", "ignored"]),
    ]
    shapes = [Shape((0, 0, 5, 5), "missed", "cat"), Shape((0, 0, 5, 5), "duplicate", "cat 0.50")]
    html = str(gallery("g", [Card(path, "a", "", layers=layers), Card(path, "b", "", shapes=shapes)]))
    switches = re.findall(r'<button type="button" class="switch" data-group="(\d)" aria-pressed="(\w+)">(\w+)<', html)
    assert switches == [("0", "true", "Truth"), ("1", "true", "Prediction"), ("2", "false", "Errors")]
    assert "Side by side" in html
    assert re.findall(r'data-kind="(\w+)"', html) == ["missed", "duplicate"]
    legends = re.findall(
        r'<ul class="gallery-colors" data-groups="(\d)" aria-label="Colours"( hidden)?>(.*?)</ul>', html, re.S
    )
    assert [(group, bool(hidden)) for group, hidden, _ in legends] == [("0", False), ("2", True)]
    colors = [re.findall(r'<li data-color="([\d,]+)">.*?</span>(\w+)</li>', legend) for *_, legend in legends]
    assert colors == [[("1,2,3", "sky"), ("4,5,6", "road")], [("9,9,9", "wrong"), ("8,8,8", "ignored")]]
    assert 'type="range"' in html


def test_a_gallery_without_shapes_has_no_switches(tmp_path: Path) -> None:
    html = str(gallery("g", [Card(str(write_image(tmp_path / "a.jpg", 0)), "a", "")]))
    assert "aria-pressed" not in html
    assert ">1 image<" in html


def test_annotations_have_one_colour_per_class(tmp_path: Path) -> None:
    path = str(write_image(tmp_path / "a.jpg", 0))
    shapes = [Shape((0, 0, 9 - i, 5), "annotation", label) for i, label in enumerate(("cat", "dog", "cat"))]
    html = str(gallery("g", [Card(path, "a", "", shapes=shapes)]))
    assert re.findall(r"tint-\d", html) == ["tint-0", "tint-1", "tint-0"]
    assert "Annotations" in html


def test_filters_count_images_and_leave_out_what_no_image_has(tmp_path: Path) -> None:
    path = str(write_image(tmp_path / "a.jpg", 0))
    cards = [Card(path, str(i), "", ["cat", *(["dog"] if i else []), "cat"]) for i in range(3)]
    html = str(gallery("g", cards, filters=[("class", ["cat", "bird", "dog"]), ("error", ["missed"])]))
    assert re.findall(r'<option value="(\w*)">([^<]+)<', html) == [("", "all"), ("cat", "cat (3)"), ("dog", "dog (2)")]
    assert "Error" not in html


def test_an_image_that_cannot_be_read_has_a_placeholder(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    shapes = [Shape((0, 0, 5, 5), "missed", "cat")]
    names = ("broken.jpg", "gone.jpg")
    html = unescape(str(gallery("g", [Card(str(tmp_path / name), name, "2 missed", shapes=shapes) for name in names])))
    placeholders = re.findall(r'<div class="placeholder">([^<]+)</div>', html)
    assert placeholders == [f"{tmp_path / name} is missing or cannot be read." for name in names]
    assert "2 missed" in html


def test_an_empty_gallery_is_a_gallery() -> None:
    assert ">0 images<" in str(gallery("g", []))


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_hostile_names_are_text(tmp_path: Path, name: str) -> None:
    path = str(write_image(tmp_path / "a.jpg", 0))
    layers = [Layer(name, np.zeros((2, 2), np.uint8), [(1, 2, 3)], [name])]
    card = Card(path, name, name, [name], [Shape((0, 0, 9, 9), "missed", name)], layers)
    html = str(gallery("g", [card], filters=[(name, [name])]))
    own = "button div g img input label li option p path select span svg title ul"
    assert set(re.findall(r"<(\w+)", html)) <= set(own.split())
    assert html.count("<img") == 2
    assert f"<title>{name}</title>" in unescape(html)
