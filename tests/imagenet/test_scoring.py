"""ImageNet validation: pixels to the bit, totals by hand, shards that add up, images that are odd or broken."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
from pathlib import Path

import pytest
import timm
import torch
from cli_fixtures import assert_error, twins
from contracts import randomise, without_initialisation
from detection_fixtures import ROOT, run_python
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torchvision.models import Swin_T_Weights

import twins_dense as td
from twins_dense.imagenet.classes import WNIDS
from twins_dense.imagenet.folders import Sample, read_ground_truth, read_samples, sort_into_folders
from twins_dense.imagenet.scoring import PROTOCOLS, LabelledImages, image_transform, score, write_classes
from twins_dense.weights.catalog import CATALOG

# 100 photos, one for every tenth class, which licences keep out of the repository.
IMAGENET_MINI = Path(os.environ.get("TWINS_DENSE_TEST_DATA", "real-photos")) / "imagenet_mini"
CPU = torch.device("cpu")


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    channels = {"RGB": 3, "L": 1, "CMYK": 4}[mode]
    # Upscaled, because JPEG keeps little of noise that changes from pixel to pixel.
    pixels = torch.randint(0, 256, (height // 8 + 1, width // 8 + 1, channels), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.squeeze(2).numpy() if channels == 1 else pixels.numpy(), mode).resize((width, height))


def save(image: Image.Image, path: Path, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "JPEG", quality=90, **options)
    return path


# Pixels

SIZES = [(500, 375), (375, 500), (224, 224), (256, 256), (1023, 257), (100, 333), (257, 255), (248, 249)]


def images_of_many_sizes() -> list[Image.Image]:
    photos = sorted(IMAGENET_MINI.glob("val/*/*.JPEG")) if IMAGENET_MINI.is_dir() else []
    return [noise(*size, seed=i) for i, size in enumerate(SIZES)] + [
        Image.open(photo).convert("RGB") for photo in photos
    ]


@pytest.mark.parametrize(("protocol", "crop_pct"), [("official", 0.875), ("timm", 0.9)])
def test_transform_is_timms_to_the_bit(protocol: str, crop_pct: float) -> None:
    with torch.device("meta"):
        config = timm.data.resolve_data_config({}, model=timm.create_model("twins_svt_small"))
    assert config["crop_pct"] == 0.9
    theirs = timm.data.create_transform(**{**config, "crop_pct": crop_pct}, is_training=False)
    ours = image_transform(PROTOCOLS[protocol])
    for image in images_of_many_sizes():
        found = ours(image)
        assert found.shape == (3, 224, 224)
        assert torch.equal(found, theirs(image)), image.size


@pytest.mark.parametrize(("protocol", "resize_size"), [("official", 256), ("timm", 248)])
def test_transform_is_torchvisions_to_the_bit(protocol: str, resize_size: int) -> None:
    """torchvision's preset of a published classifier that resizes bicubically as well."""
    theirs = Swin_T_Weights.IMAGENET1K_V1.transforms(resize_size=resize_size)
    assert theirs.crop_size == [224] and theirs.interpolation.value == "bicubic"
    ours = image_transform(PROTOCOLS[protocol])
    for image in images_of_many_sizes():
        assert torch.equal(ours(image), theirs(image)), image.size


def test_the_protocol_is_that_of_the_weights() -> None:
    """The catalog's preprocessing of timm's weights is what timm itself says of them."""
    for name, spec in CATALOG.items():
        if name.endswith("-timm"):
            config = timm.get_pretrained_cfg(f"twins_{spec.variant}.in1k")
            assert spec.preprocessing.short_side == math.floor(224 / config.crop_pct)
            assert (spec.preprocessing.interpolation, spec.preprocessing.crop) == (config.interpolation, 224)
            assert (spec.preprocessing.mean, spec.preprocessing.std) == (config.mean, config.std)
            assert spec.preprocessing == PROTOCOLS["timm"]
        elif spec.task == "classification":
            assert spec.preprocessing == PROTOCOLS["official"]


# Totals


class KnownAnswers(nn.Module):
    """Ranks the classes by how near their number is to the image's gray value, with a logit of minus the distance."""

    def forward(self, images: Tensor) -> Tensor:
        gray = (images[:, 0, 112, 112] * 0.229 + 0.485) * 255
        return -(gray[:, None] - torch.arange(1000)).abs()


def gray_samples(root: Path, values_and_labels: list[tuple[int, int]]) -> list[Sample]:
    return [
        (save(Image.new("RGB", (64, 48), (value,) * 3), root / f"{index}.jpg"), label)
        for index, (value, label) in enumerate(values_and_labels)
    ]


def run(samples: list[Sample], batch_size: int = 3, num_workers: int = 0, amp: torch.dtype | None = None):  # type: ignore[no-untyped-def]
    return score(
        KnownAnswers(),
        samples,
        PROTOCOLS["official"],
        device=CPU,
        batch_size=batch_size,
        num_workers=num_workers,
        amp=amp,
    )


@pytest.mark.parametrize("batch_size", [1, 3, 5, 64])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_totals_by_hand(tmp_path: Path, batch_size: int, num_workers: int) -> None:
    """Off by 0, 1 or 2 is among the first five; JPEG keeps a flat gray to the unit."""
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
    with pytest.raises(td.TwinsError, match="outputs are not finite"):
        score(
            lambda images: torch.full((len(images), 1000), math.nan),
            samples,
            PROTOCOLS["official"],
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
    item = LabelledImages([(path, 0)], PROTOCOLS["official"])[0]
    return item if isinstance(item, str) else item[0]


def test_gray_and_cmyk_become_rgb(tmp_path: Path) -> None:
    for mode in ("L", "CMYK"):
        path = save(noise(300, 260, mode), tmp_path / f"{mode}.jpg")
        with Image.open(path) as file:
            assert file.mode == mode
            expected = image_transform(PROTOCOLS["official"])(file.convert("RGB"))
        found = tensor_of(path)
        assert isinstance(found, Tensor) and torch.equal(found, expected)


def test_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    """The published numbers were made so: the pixels count as they are stored."""
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
    line = save(Image.new("L", (60_000, 1)), folder / "line.jpg")  # resized it would have gigabytes
    return [*(folder / name for name in contents), line, folder / "missing.jpg"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_broken_images_are_named_and_left_out(tmp_path: Path, num_workers: int) -> None:
    """They come first, in the middle and last, and some batches hold nothing else."""
    good = gray_samples(tmp_path, [(10, 10), (20, 21), (30, 3)])
    broken = [(path, 7) for path in broken_images(tmp_path)]
    samples = [*broken[:3], good[0], *broken[3:5], *good[1:], broken[5]]
    result = run(samples, batch_size=2, num_workers=num_workers)
    assert result.counts.sum(0).tolist() == [3, 1, 2] and result.counts[7].tolist() == [0, 0, 0]
    assert len(result.unreadable) == 6
    for path, line in zip([path for path, _ in broken], result.unreadable, strict=True):
        assert line.startswith(f"{path} can't be read (") and "\n" not in line
    with pytest.raises(td.TwinsError, match=r"none of the 6 images can be read; the first: .*cut.jpg"):
        run(broken)


# Folders


def make_tree(root: Path, wnids: list[str]) -> Path:
    for index, wnid in enumerate(wnids):
        save(Image.new("RGB", (64, 48), (index % 256,) * 3), root / wnid / f"{wnid}.JPEG")
    return root


def test_the_classes_are_those_of_the_published_classifiers() -> None:
    """timm's list is that of the weights it converted."""
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
    with pytest.raises(td.TwinsError, match=rf"has 1 folders \({name}\) that are no class of ImageNet-1k"):
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
        ("490\n361\n171\n", "line '490' is no image's name .*ILSVRC2012_ID"),  # the devkit's own file
        (GROUND_TRUTHS["wnids"] + f"\n{WNIDS[1]}", "has 4 wnids for 3 images"),
        (GROUND_TRUTHS["caffe"].replace("999", "1000"), r"line 'ILSVRC2012_val_00000003.JPEG 1000'"),
        (GROUND_TRUTHS["caffe"].replace(" 0\n", " n00000001\n"), r"line 'ILSVRC2012_val_00000002.JPEG n00000001'"),
        (GROUND_TRUTHS["caffe"].replace("3.JPEG", "4.JPEG"), r"says nothing of 1 images \(ILSVRC2012_val_00000003\)"),
        (GROUND_TRUTHS["caffe"] + "more.JPEG 3\n", r"names 1 missing images \(more\)"),
        (GROUND_TRUTHS["caffe"] * 2, "has ILSVRC2012_val_00000001 twice"),
        ("", "says nothing of 3 images"),
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


def test_ground_truth_that_can_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "bytes"):
        with pytest.raises(td.TwinsError, match=r"ground truth .* can't be read"):
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
        assert sort_into_folders(tmp_path / "flat", truth, out) == 3  # again
        assert read_samples(out, subset=True) == samples
        result = run_python(script, str(tmp_path / "missing"), str(truth), str(out))
        assert result.returncode == 2 and result.stderr.count("\n") == 1 and "no such folder" in result.stderr

    def test_nothing_is_lost(self, tmp_path: Path) -> None:
        make_flat(tmp_path / "flat")
        (tmp_path / "truth.csv").write_text(GROUND_TRUTHS["wnids"])
        other = tmp_path / "out" / WNIDS[0] / f"{NAMES[1]}.JPEG"
        other.parent.mkdir(parents=True)
        other.write_text("mine")
        with pytest.raises(td.TwinsError, match="is another file"):
            sort_into_folders(tmp_path / "flat", tmp_path / "truth.csv", tmp_path / "out")
        assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [other]
        assert other.read_text() == "mine"

    def test_images_of_another_truth_are_not_joined(self, tmp_path: Path) -> None:
        make_flat(tmp_path / "flat")
        (tmp_path / "truth.csv").write_text(GROUND_TRUTHS["wnids"])
        sort_into_folders(tmp_path / "flat", tmp_path / "truth.csv", tmp_path / "out")
        before = sorted((tmp_path / "out").rglob("*"))
        wnids = GROUND_TRUTHS["wnids"].split()
        (tmp_path / "truth.csv").write_text("\n".join([*wnids[1:], wnids[0]]))
        with pytest.raises(td.TwinsError, match="doesn't belong there"):
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

    def test_copies_where_there_are_no_links(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise OSError("no links here")

        monkeypatch.setattr(os, "link", refuse)
        make_flat(tmp_path / "flat")
        (tmp_path / "truth.csv").write_text(GROUND_TRUTHS["caffe"])
        assert sort_into_folders(tmp_path / "flat", tmp_path / "truth.csv", tmp_path / "out") == 3
        assert len(read_samples(tmp_path / "out", subset=True)) == 3


# The command line


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random ones, in mmpretrain's names."""
    net = randomise(without_initialisation(lambda: td.create_classifier("svt_small")), seed=3)
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(td.convert_state_dict(net.state_dict(), to="mmpretrain"), path)
    return path


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven images of four classes and two that can't be read."""
    root = tmp_path_factory.mktemp("tree")
    for index, wnid in enumerate([WNIDS[0], WNIDS[5], WNIDS[500], WNIDS[999]]):
        for more in range(1 + (index < 3)):
            save(noise(240, 230, seed=2 * index + more), root / wnid / f"{more}.JPEG")
    (root / WNIDS[5] / "cut.JPEG").write_bytes((root / WNIDS[5] / "0.JPEG").read_bytes()[:900])
    (root / WNIDS[999] / "empty.JPEG").touch()
    return root


def expected_metrics(weights: Path, tree: Path, protocol: str) -> dict[str, float]:
    """By timm's model, timm's transform, and one image at a time."""
    net = without_initialisation(lambda: timm.create_model("twins_svt_small")).eval()
    net.load_state_dict(td.convert_state_dict(torch.load(weights, weights_only=True), to="timm"))
    transform = timm.data.create_transform(
        224, interpolation="bicubic", crop_pct={"official": 0.875, "timm": 0.9}[protocol], is_training=False
    )
    rows = []
    for path in sorted(tree.glob("*/[01].JPEG")):
        with torch.no_grad(), Image.open(path) as file:
            logits = net(transform(file.convert("RGB"))[None])[0]
        label = WNIDS.index(path.parent.name)
        rank = int((logits > logits[label]).sum())
        rows.append((rank < 1, rank < 5, float(logits.logsumexp(0) - logits[label])))
    top1, top5, loss = (sum(column) / len(rows) for column in zip(*rows, strict=True))
    return {"images": len(rows), "top1": 100 * top1, "top5": 100 * top5, "loss": loss}


@pytest.mark.parametrize("protocol", ["official", "timm"])
def test_validate(weights: Path, tree: Path, protocol: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--data", tree, "--variant", "svt_small", "--weights", weights, "--subset", "--protocol", protocol]
    result = twins("validate", *arguments, "--out", out, "--batch-size", "4", "--workers", "0")
    assert result.code == 0, result.err
    (metrics,) = json.loads((out / "metrics.json").read_text())
    expected = expected_metrics(weights, tree, protocol)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert metrics["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert metrics["classes"] == 4 and metrics["protocol"] == protocol and metrics["images_per_second"] > 0
    assert "mmpretrain names): 290 parameters loaded" in result.out and "LayerNorm eps 1e-05 in blocks" in result.out
    assert "7 images of 4 classes, 2 can't be read and are left out" in result.out
    assert result.err.count("left out: ") == 2 and "cut.JPEG can't be read" in result.err
    assert [line.partition(",")[0] for line in (out / "svt_small.csv").read_text().splitlines()[1:]] == [
        WNIDS[label] for label in (0, 5, 500, 999)
    ]


def test_two_processes_add_up_to_one(weights: Path, tree: Path, tmp_path: Path) -> None:
    """Seven images and two unreadable ones: the processes get five and four files."""
    arguments = ["--data", str(tree), "--variant", "svt_small", "--weights", str(weights), "--subset"]
    arguments += ["--workers", "0", "--batch-size", "2", "--out"]
    assert twins("validate", *arguments, tmp_path / "one").code == 0
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "twins_dense")
    result = run_python(*launch, "validate", *arguments, str(tmp_path / "two"))
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("top-1") == result.stdout.count("parameters loaded") == 1
    by_class = [(tmp_path / out / "svt_small.csv").read_text() for out in ("one", "two")]
    assert by_class[0] == by_class[1]
    one, two = (json.loads((tmp_path / out / "metrics.json").read_text())[0] for out in ("one", "two"))
    # The images of each process in the same batches, because the last digits of a loss depend on the batch.
    net, samples = td.create_classifier("svt_small", weights=weights).eval(), read_samples(tree, subset=True)
    halves = [
        score(net, samples[rank::2], PROTOCOLS["official"], device=CPU, batch_size=2, num_workers=0)
        for rank in range(2)
    ]
    assert one.pop("loss") == pytest.approx(two["loss"], rel=1e-4)
    assert two.pop("loss") == pytest.approx(sum(half.loss * half.num_images for half in halves) / 7, rel=1e-6)
    assert one.pop("images_per_second") > 0 and two.pop("images_per_second") > 0
    assert one == two and one["images"] == 7 and len(one["unreadable"]) == 2


def test_reproduce(weights: Path, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the six, whose published file is replaced by random weights: the published numbers stand beside ours."""
    name = "svt_small.in1k-mmpretrain"
    monkeypatch.setenv("TWINS_DENSE_HOME", str(tmp_path))
    (tmp_path / f"{name}.pth").symlink_to(weights)
    out = tmp_path / "out"
    result = twins("validate", "--data", tree, "--subset", "--reproduce", "--variant", "svt_small", "--out", out)
    assert result.code == 0, result.err
    (row,) = [line.split() for line in result.out.splitlines() if line.startswith(name)]
    (metrics,) = json.loads((out / "metrics.json").read_text())
    assert row[1:5] == [f"{metrics['top1']:.3f}", "81.770", f"{metrics['top5']:.3f}", "95.570"]
    assert metrics["published"] == {"top1": 81.77, "top5": 95.57}


def test_published_numbers_of_another_protocol_are_not_shown(
    weights: Path, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "svt_small.in1k-mmpretrain"
    monkeypatch.setenv("TWINS_DENSE_HOME", str(tmp_path))
    (tmp_path / f"{name}.pth").symlink_to(weights)
    arguments = ["--data", tree, "--subset", "--variant", "svt_small", "--weights", name, "--workers", "0"]
    shown = []
    for protocol in ("official", "timm"):
        out = twins("validate", *arguments, "--protocol", protocol, "--out", tmp_path / protocol).out
        shown.append("(published: top1 81.77 %, top5 95.57 %)" in out)
    assert shown == [True, False]


@pytest.mark.slow
def test_autocast_and_compile(weights: Path, tree: Path, tmp_path: Path) -> None:
    arguments = ["--data", tree, "--variant", "svt_small", "--weights", weights, "--subset", "--workers", "0"]
    losses = []
    for index, more in enumerate([[], ["--amp", "bf16"], ["--compile"]]):
        result = twins("validate", *arguments, *more, "--out", tmp_path / str(index))
        assert result.code == 0, result.err
        losses.append(json.loads((tmp_path / str(index) / "metrics.json").read_text())[0]["loss"])
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)
    assert losses[1] != losses[0] and losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--variant", "svt_small"], "give either --variant and --weights, or --reproduce"),
        (["--weights", "W"], "give either --variant and --weights, or --reproduce"),
        (["--variant", "svt_small", "--weights", "W", "--reproduce"], "give either"),
        (["--variant", "svt_smal", "--weights", "W"], "did you mean 'svt_small'"),
        (["--variant", "pcpvt_small", "--weights", "W"], "this is svt_small, the model is pcpvt_small"),
        (["--variant", "svt_small", "--weights", "missing.pth"], "weights 'missing.pth': no such file"),
        (["--variant", "svt_small", "--weights", "W", "--out", "W"], "is not empty"),
        (["--variant", "svt_small", "--weights", "W", "--device", "gpu"], "--device 'gpu'"),
        (["--variant", "svt_small", "--weights", "W", "--ground-truth", "x"], "has no images"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], expected: str, weights: Path, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [str(weights) if argument == "W" else argument for argument in arguments]
    assert_error(twins("validate", "--data", tree, "--subset", *arguments), expected)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_can_not_be_made(weights: Path, tree: Path, tmp_path: Path) -> None:
    """Found out before anything is scored."""
    (tmp_path / "file").write_text("mine")
    model = ("--variant", "svt_small", "--weights", weights)
    result = twins("validate", "--data", tree, "--subset", *model, "--out", tmp_path / "file" / "out")
    assert_error(result, str(tmp_path / "file"))
    assert "top-1" not in result.out


def test_a_headless_file_is_refused(tree: Path, tmp_path: Path) -> None:
    """A backbone's weights would score the head's random numbers."""
    net = without_initialisation(lambda: td.create_backbone("svt_small", level_norm=False))
    torch.save(net.state_dict(), tmp_path / "backbone.pth")
    result = twins(
        "validate", "--data", tree, "--subset", "--variant", "svt_small", "--weights", tmp_path / "backbone.pth"
    )
    assert_error(result, "head.bias is missing")


@pytest.mark.skipif(not IMAGENET_MINI.is_dir(), reason="set TWINS_DENSE_TEST_DATA to the folder of imagenet_mini")
def test_real_photos(weights: Path, tmp_path: Path) -> None:
    with (IMAGENET_MINI / "imagenet_class_index.json").open() as file:
        assert [entry[0] for entry in json.load(file).values()] == list(WNIDS)
    arguments = ["--data", IMAGENET_MINI, "--variant", "svt_small", "--weights", weights, "--out", tmp_path / "out"]
    assert_error(twins("validate", *arguments), "no images of 900 classes", "--subset")
    assert twins("validate", *arguments, "--subset").code == 0
    (metrics,) = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (metrics["images"], metrics["classes"], metrics["unreadable"]) == (100, 100, [])
    assert metrics["top1"] <= 5  # random weights know nothing
