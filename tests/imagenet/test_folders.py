"""The validation set is read from class folders, or from a flat folder with a ground truth."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import timm
from detection_fixtures import ROOT, run_python
from hypothesis import given
from hypothesis import strategies as st
from imagenet_fixtures import save
from PIL import Image

import twins_dense as td
from twins_dense.imagenet.classes import WNIDS
from twins_dense.imagenet.folders import read_ground_truth, read_samples, sort_into_folders


def make_tree(root: Path, wnids: list[str]) -> Path:
    for index, wnid in enumerate(wnids):
        save(Image.new("RGB", (64, 48), (index % 256,) * 3), root / wnid / f"{wnid}.JPEG")
    return root


def test_the_classes_are_those_of_the_published_classifiers() -> None:
    """Compare with timm's list of classes for the weights that it converted."""
    assert timm.data.ImageNetInfo().label_names() == list(WNIDS)
    assert list(WNIDS) == sorted(set(WNIDS)) and len(WNIDS) == 1000


@pytest.mark.parametrize("above", ["", "val"])
def test_labels_are_positions_among_all_classes(tmp_path: Path, above: str) -> None:
    make_tree(tmp_path / above, [WNIDS[999], WNIDS[3]])
    (tmp_path / above / WNIDS[3] / "notes.txt").touch()
    (tmp_path / above / ".cache").mkdir()
    samples = read_samples(tmp_path, subset=True)
    assert [(path.parent.name, label) for path, label in samples] == [(WNIDS[3], 3), (WNIDS[999], 999)]


def test_missing_classes(tmp_path: Path) -> None:
    make_tree(tmp_path, list(WNIDS[2:]))
    (tmp_path / WNIDS[0]).mkdir()  # empty
    with pytest.raises(td.TwinsError, match=rf"no images of 2 classes \({WNIDS[0]}, {WNIDS[1]}\): .*--subset"):
        read_samples(tmp_path)
    assert len(read_samples(tmp_path, subset=True)) == 998
    make_tree(tmp_path, list(WNIDS[:2]))
    assert [label for _, label in read_samples(tmp_path)] == list(range(1000))


@pytest.mark.parametrize("name", ["n00000001", "train", "N01440764"])
def test_extra_folders(tmp_path: Path, name: str) -> None:
    make_tree(tmp_path, [WNIDS[0], name])
    with pytest.raises(td.TwinsError, match=rf"has 1 folders \({name}\) that are not classes of ImageNet-1k"):
        read_samples(tmp_path, subset=True)


def test_no_folders_or_images(tmp_path: Path) -> None:
    with pytest.raises(td.TwinsError, match="no such folder"):
        read_samples(tmp_path / "missing")
    with pytest.raises(td.TwinsError, match=r"no class folders.*--ground-truth"):
        read_samples(tmp_path)
    (tmp_path / WNIDS[0]).mkdir()
    with pytest.raises(td.TwinsError, match="has no images"):
        read_samples(tmp_path, subset=True)


# Flat images and their ground truth

NAMES = [f"ILSVRC2012_val_0000000{i}" for i in range(1, 4)]
TRUTH = {NAMES[0]: WNIDS[65], NAMES[1]: WNIDS[0], NAMES[2]: WNIDS[999]}
GROUND_TRUTHS = {
    "kaggle": "ImageId,PredictionString\n"
    + "".join(f"{name},{TRUTH[name]} 85 1 499 272 {TRUTH[name]} 5 6 7 8\n" for name in reversed(NAMES)),
    "caffe": "".join(f"{name}.JPEG {label}\n" for name, label in zip(NAMES, (65, 0, 999), strict=True)),
    "wnids": "\n".join(TRUTH.values()),
}


def make_flat(root: Path) -> Path:
    for index, name in enumerate(NAMES):
        save(Image.new("RGB", (64, 48), (index,) * 3), root / f"{name}.JPEG")
    return root


@pytest.mark.parametrize("kind", GROUND_TRUTHS)
def test_ground_truths(tmp_path: Path, kind: str) -> None:
    (tmp_path / "truth.txt").write_text(GROUND_TRUTHS[kind])
    samples = read_samples(make_flat(tmp_path / "flat"), tmp_path / "truth.txt", subset=True)
    assert [(path.stem, WNIDS[label]) for path, label in samples] == list(TRUTH.items())


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("490\n361\n171\n", "line '490' is not an image name .*ILSVRC2012_ID"),  # the devkit's file
        (GROUND_TRUTHS["wnids"] + f"\n{WNIDS[1]}", "has 4 wnids for 3 images"),
        (GROUND_TRUTHS["caffe"].replace("999", "1000"), r"line 'ILSVRC2012_val_00000003.JPEG 1000'"),
        (GROUND_TRUTHS["caffe"].replace(" 0\n", " n00000001\n"), r"line 'ILSVRC2012_val_00000002.JPEG n00000001'"),
        (GROUND_TRUTHS["caffe"].replace("3.JPEG", "4.JPEG"), r"lacks 1 images \(ILSVRC2012_val_00000003\)"),
        (GROUND_TRUTHS["caffe"] + "more.JPEG 3\n", r"names 1 missing images \(more\)"),
        (GROUND_TRUTHS["caffe"] * 2, "has ILSVRC2012_val_00000001 twice"),
        ("", "lacks 3 images"),
    ],
)
def test_wrong_ground_truths(tmp_path: Path, content: str, expected: str) -> None:
    (tmp_path / "truth.txt").write_text(content)
    with pytest.raises(td.TwinsError, match=expected) as caught:
        read_samples(make_flat(tmp_path / "flat"), tmp_path / "truth.txt", subset=True)
    assert "\n" not in str(caught.value)


@given(
    content=st.one_of(
        st.text(max_size=60),
        st.lists(
            st.lists(st.sampled_from([*NAMES, *WNIDS[:2], "0", "999", "1000", "-1", ",", "x.JPEG", ""]), max_size=3),
            max_size=5,
        ).map(lambda rows: "\n".join(" ".join(row) for row in rows)),
    )
)
def test_any_ground_truth_is_read_or_refused(content: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "truth.txt"
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    try:
        wnids = read_ground_truth(path, NAMES)
    except td.TwinsError as error:
        assert "\n" not in str(error)
    else:
        assert set(wnids) == set(NAMES) and set(wnids.values()) <= set(WNIDS)


def test_ground_truth_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "bytes"):
        with pytest.raises(td.TwinsError, match=r"ground truth .* cannot be read"):
            read_ground_truth(path, NAMES)


class TestPreparation:
    def test_the_script(self, tmp_path: Path) -> None:
        make_flat(tmp_path / "flat")
        truth, out = tmp_path / "truth.csv", tmp_path / "out"
        truth.write_text(GROUND_TRUTHS["kaggle"])
        script = str(ROOT / "datasets" / "prepare_imagenet_val.py")
        result = run_python(script, str(tmp_path / "flat"), str(truth), str(out))
        assert (result.returncode, result.stdout) == (0, f"3 images in {out}\n"), result.stderr
        samples = read_samples(out, subset=True)
        assert {path.stem: WNIDS[label] for path, label in samples} == TRUTH
        for path, _ in samples:
            assert path.read_bytes() == (tmp_path / "flat" / path.name).read_bytes()
        assert sort_into_folders(tmp_path / "flat", truth, out) == 3  # a second time
        assert read_samples(out, subset=True) == samples
        result = run_python(script, str(tmp_path / "missing"), str(truth), str(out))
        assert result.returncode == 2 and result.stderr.count("\n") == 1 and "no such folder" in result.stderr

    def test_nothing_is_lost(self, tmp_path: Path) -> None:
        make_flat(tmp_path / "flat")
        (tmp_path / "truth.csv").write_text(GROUND_TRUTHS["wnids"])
        other = tmp_path / "out" / WNIDS[0] / f"{NAMES[1]}.JPEG"
        other.parent.mkdir(parents=True)
        other.write_text("mine")
        with pytest.raises(td.TwinsError, match="differs from"):
            sort_into_folders(tmp_path / "flat", tmp_path / "truth.csv", tmp_path / "out")
        assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [other]
        assert other.read_text() == "mine"

    def test_images_of_another_ground_truth_are_not_mixed(self, tmp_path: Path) -> None:
        make_flat(tmp_path / "flat")
        (tmp_path / "truth.csv").write_text(GROUND_TRUTHS["wnids"])
        sort_into_folders(tmp_path / "flat", tmp_path / "truth.csv", tmp_path / "out")
        before = sorted((tmp_path / "out").rglob("*"))
        wnids = GROUND_TRUTHS["wnids"].split()
        (tmp_path / "truth.csv").write_text("\n".join([*wnids[1:], wnids[0]]))
        with pytest.raises(td.TwinsError, match="does not belong there"):
            sort_into_folders(tmp_path / "flat", tmp_path / "truth.csv", tmp_path / "out")
        assert sorted((tmp_path / "out").rglob("*")) == before

    def test_images_that_are_relative_links(self, tmp_path: Path) -> None:
        make_flat(tmp_path / "real")
        (tmp_path / "flat").mkdir()
        for file in (tmp_path / "real").iterdir():
            (tmp_path / "flat" / file.name).symlink_to(Path("..") / "real" / file.name)
        (tmp_path / "truth.csv").write_text(GROUND_TRUTHS["caffe"])
        sort_into_folders(tmp_path / "flat", tmp_path / "truth.csv", tmp_path / "out")
        for path, _ in read_samples(tmp_path / "out", subset=True):
            assert path.read_bytes() == (tmp_path / "real" / path.name).read_bytes()

    def test_copies_if_links_are_not_possible(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise OSError("no links here")

        monkeypatch.setattr(os, "link", refuse)
        make_flat(tmp_path / "flat")
        (tmp_path / "truth.csv").write_text(GROUND_TRUTHS["caffe"])
        assert sort_into_folders(tmp_path / "flat", tmp_path / "truth.csv", tmp_path / "out") == 3
        assert len(read_samples(tmp_path / "out", subset=True)) == 3
