"""`twins-dense validate` scores like timm's model, alone and in two processes, and reports bad input."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from cli_fixtures import assert_error, twins
from contracts import randomise, without_initialisation
from detection_fixtures import run_python
from imagenet_fixtures import IMAGENET_MINI, noise, save
from PIL import Image

import twins_dense as td
from twins_dense.evaluation.record import Record, read_record
from twins_dense.imagenet.classes import WNIDS, class_names
from twins_dense.imagenet.folders import read_samples
from twins_dense.imagenet.scoring import score
from twins_dense.imagenet.transforms import VALIDATION_PROTOCOLS

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random weights with mmpretrain's names."""
    net = randomise(without_initialisation(lambda: td.create_classifier("svt_small")), seed=3)
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(td.convert_state_dict(net.state_dict(), to="mmpretrain"), path)
    return path


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven readable images of four classes, and two unreadable ones."""
    root = tmp_path_factory.mktemp("tree")
    for index, wnid in enumerate([WNIDS[0], WNIDS[5], WNIDS[500], WNIDS[999]]):
        for more in range(1 + (index < 3)):
            save(noise(240, 230, seed=2 * index + more), root / wnid / f"{more}.JPEG")
    (root / WNIDS[5] / "cut.JPEG").write_bytes((root / WNIDS[5] / "0.JPEG").read_bytes()[:900])
    (root / WNIDS[999] / "empty.JPEG").touch()
    return root


def expected_metrics(weights: Path, tree: Path, protocol: str) -> dict[str, float]:
    """Compute the metrics with timm's model and transform, one image at a time."""
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


def assert_record(record: Record, metrics: dict[str, Any], tree: Path) -> None:
    """Check that the record has every image once, the unreadable ones too, and leads to the same scores."""
    about = record.about
    assert (about.task, about.classes, about.num_images) == ("classification", list(class_names()), 9)
    assert about.settings == {"wnids": list(WNIDS), "protocol": metrics["protocol"]} and record.is_complete
    assert [Path(entry["file"]) for entry in record.entries] == [path for path, _ in read_samples(tree, subset=True)]
    readable = [entry for entry in record.entries if "error" not in entry]
    assert [Path(entry["file"]).name for entry in record.entries if "error" in entry] == ["cut.JPEG", "empty.JPEG"]
    assert len(readable) == metrics["images"]
    for entry in readable:
        assert Path(entry["file"]).parent.name == WNIDS[entry["label"]]
        assert len(entry["top"]) == 5 and entry["probabilities"] == sorted(entry["probabilities"], reverse=True)
        if entry["label"] in entry["top"]:
            probability = entry["probabilities"][entry["top"].index(entry["label"])]
            assert probability == pytest.approx(math.exp(-entry["loss"]), rel=1e-4)
    assert 100 * np.mean([entry["top"][0] == entry["label"] for entry in readable]) == metrics["top1"]
    assert 100 * np.mean([entry["label"] in entry["top"] for entry in readable]) == metrics["top5"]
    assert np.mean([entry["loss"] for entry in readable]) == pytest.approx(metrics["loss"], rel=1e-6)


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
    assert f"report: {out / 'svt_small' / 'report.html'}" in result.out
    page = (out / "svt_small" / "report.html").read_text(encoding="utf-8")
    assert f"Share of the {metrics['images']} images" in page and "2 images could not be read" in page
    assert_record(read_record(out / "svt_small"), metrics, tree)
    assert metrics["classes"] == 4 and metrics["protocol"] == protocol and metrics["images_per_second"] > 0
    assert "mmpretrain names): 290 parameters loaded" in result.out and "LayerNorm eps 1e-05 in blocks" in result.out
    assert "7 images of 4 classes, 2 unreadable images left out" in result.out
    assert result.err.count("left out: ") == 2 and "cut.JPEG cannot be read" in result.err
    assert [line.partition(",")[0] for line in (out / "svt_small.csv").read_text().splitlines()[1:]] == [
        WNIDS[label] for label in (0, 5, 500, 999)
    ]


def test_two_processes_add_up_to_one(weights: Path, tree: Path, tmp_path: Path) -> None:
    """With seven readable and two unreadable images, the processes get five and four files."""
    arguments = ["--data", str(tree), "--variant", "svt_small", "--weights", str(weights), "--subset"]
    arguments += ["--workers", "0", "--batch-size", "2", "--out"]
    assert twins("validate", *arguments, tmp_path / "one").code == 0
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "twins_dense")
    result = run_python(*launch, "validate", *arguments, str(tmp_path / "two"))
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("top-1") == result.stdout.count("parameters loaded") == 1
    by_class = [(tmp_path / out / "svt_small.csv").read_text() for out in ("one", "two")]
    assert by_class[0] == by_class[1]
    assert result.stdout.count("report: ") == 1 and (tmp_path / "two" / "svt_small" / "report.html").is_file()
    for rank, count in enumerate((5, 4)):
        lines = (tmp_path / "two" / "svt_small" / "record" / f"images-{rank}.jsonl").read_text().splitlines()
        assert [json.loads(line)["index"] for line in lines] == [2 * number + rank for number in range(count)]
    single, shared = (read_record(tmp_path / out / "svt_small") for out in ("one", "two"))
    assert shared.about.identity == single.about.identity and shared.is_complete
    for mine, other in zip(single.entries, shared.entries, strict=True):
        assert all(mine.get(name) == other.get(name) for name in ("index", "file", "label", "error"))
        assert mine.get("probabilities", []) == pytest.approx(other.get("probabilities", []), rel=1e-3)
    one, two = (json.loads((tmp_path / out / "metrics.json").read_text())[0] for out in ("one", "two"))
    # Batch the images of each process in the same way, because the last digits of a loss depend on the batch.
    net, samples = td.create_classifier("svt_small", weights=weights).eval(), read_samples(tree, subset=True)
    halves = [
        score(net, samples[rank::2], VALIDATION_PROTOCOLS["official"], device=CPU, batch_size=2, num_workers=0)
        for rank in range(2)
    ]
    assert one.pop("loss") == pytest.approx(two["loss"], rel=1e-4)
    assert two.pop("loss") == pytest.approx(sum(half.loss * half.num_images for half in halves) / 7, rel=1e-6)
    assert one.pop("images_per_second") > 0 and two.pop("images_per_second") > 0
    assert one == two and one["images"] == 7 and len(one["unreadable"]) == 2


def test_no_report(weights: Path, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On request, or without the extra: then one line says how to get it, and the scores are complete."""
    arguments = ["--data", tree, "--variant", "svt_small", "--weights", weights, "--subset", "--workers", "0"]
    result = twins("validate", *arguments, "--no-report", "--out", tmp_path / "request")
    assert result.code == 0 and "report: " not in result.out and "warning" not in result.err
    for name in [name for name in sys.modules if name.startswith("twins_dense.evaluation.report")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    result = twins("validate", *arguments, "--out", tmp_path / "extra")
    assert result.code == 0 and "report: " not in result.out
    (line,) = [line for line in result.err.splitlines() if line.startswith("warning: ")]
    assert "there is no report (jinja2 is not installed: pip install 'twins-dense[report]')" in line
    for out in ("request", "extra"):
        assert (tmp_path / out / "metrics.json").is_file() and read_record(tmp_path / out / "svt_small").is_complete
        assert not (tmp_path / out / "svt_small" / "report.html").exists()


def test_reproduce(weights: Path, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published scores are shown beside ours. Random weights stand in for the published file."""
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


def test_a_folder_that_cannot_be_created(weights: Path, tree: Path, tmp_path: Path) -> None:
    """The error comes before anything is scored."""
    (tmp_path / "file").write_text("mine")
    model = ("--variant", "svt_small", "--weights", weights)
    result = twins("validate", "--data", tree, "--subset", *model, "--out", tmp_path / "file" / "out")
    assert_error(result, str(tmp_path / "file"))
    assert "top-1" not in result.out


def test_a_headless_file_is_refused(tree: Path, tmp_path: Path) -> None:
    """Without its head, a classifier would predict at random."""
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
    assert metrics["top1"] <= 5  # random weights score at chance
