"""`twins-dense convert` writes the converted weights, prints a summary, and refuses bad input."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import pytest
import safetensors.torch
import torch
from cli_fixtures import assert_error, twins
from contracts import SLIM_SVT, random_backbone, randomise
from detection_fixtures import ROOT, run_python
from torch import Tensor

import twins_dense as td


@pytest.fixture
def classifier(tmp_path: Path) -> dict[str, Tensor]:
    """State dict of a classifier, which is also saved as in.pth."""
    state = randomise(td.create_classifier(SLIM_SVT, num_classes=11), seed=3).state_dict()
    torch.save({"model": state, "epoch": 3}, tmp_path / "in.pth")
    return state


def read(path: Path) -> Mapping[str, Tensor]:
    return safetensors.torch.load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


def same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_there_and_back(classifier: dict[str, Tensor], suffix: str, tmp_path: Path) -> None:
    there, back = tmp_path / f"new/there.{suffix}", tmp_path / f"back.{suffix}"
    result = twins("convert", tmp_path / "in.pth", there, "--to", "mmpretrain")
    assert result.code == 0, result.err
    assert same(read(there), td.convert_state_dict(classifier, to="mmpretrain"))
    numel = sum(value.numel() for value in classifier.values())
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "in.pth", there)]
    assert result.out.splitlines() == [
        "a custom Twins with dims (8, 12, 20, 28) and depths (2, 2, 3, 2), official names -> mmpretrain classifier: "
        f"{len(classifier)} entries with {numel:,} values, 0 dropped",
        "official computes with LayerNorm eps 1e-06 in blocks (mmpretrain 1e-05)",
        f"{hashes[0]}  {tmp_path / 'in.pth'}",
        f"{hashes[1]}  {there}",
    ]
    assert twins("convert", there, back, "--to", "official").code == 0
    assert same(read(back), classifier)


def test_task_and_dropped(classifier: dict[str, Tensor], tmp_path: Path) -> None:
    result = twins("convert", tmp_path / "in.pth", tmp_path / "out.pth", "--to", "timm", "--task", "backbone")
    assert ", 4 dropped (norm.* 2, head.* 2)" in result.out
    assert read(tmp_path / "out.pth").keys() == {name for name in classifier if not name.startswith(("norm.", "head."))}


def test_dry_run(classifier: dict[str, Tensor], tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    result = twins("convert", tmp_path / "in.pth", tmp_path / "new" / "out.pth", "--to", "mmseg", "--dry-run")
    assert result.code == 0 and result.out.endswith("dry run: nothing was written\n")
    assert "-> mmseg backbone" in result.out
    assert sorted(tmp_path.iterdir()) == before


def test_a_segmentor(tmp_path: Path) -> None:
    backbone = random_backbone(SLIM_SVT).state_dict()
    heads = {"decode_head.conv_seg.weight": torch.randn(5, 3, 1, 1), "decode_head.n": torch.tensor(7)}
    torch.save({"state_dict": {**{f"backbone.{k}": v for k, v in backbone.items()}, **heads}}, tmp_path / "in.pth")
    result = twins("convert", tmp_path / "in.pth", tmp_path / "out.safetensors", "--to", "mmseg")
    assert "-> mmseg segmentor" in result.out and " 0 dropped" in result.out
    found = read(tmp_path / "out.safetensors")
    assert same({name: found[name] for name in heads}, heads)
    net = td.create_backbone(SLIM_SVT, weights=tmp_path / "out.safetensors")
    assert same(net.state_dict(), backbone)


def test_parts_of_a_shared_tensor_are_written_alone(tmp_path: Path) -> None:
    state = random_backbone(SLIM_SVT).state_dict()
    everything = torch.randn(sum(value.numel() for value in state.values()))
    pieces = everything.split([value.numel() for value in state.values()])
    shared = {name: piece.view(value.shape) for (name, value), piece in zip(state.items(), pieces, strict=True)}
    torch.save({**shared, "head.weight": everything[:56].view(2, 28)}, tmp_path / "in.pth")
    for suffix in ("pth", "safetensors"):
        out = tmp_path / f"out.{suffix}"
        assert twins("convert", tmp_path / "in.pth", out, "--to", "official", "--task", "backbone").code == 0
        assert same(read(out), shared)
        assert out.stat().st_size < 2 * everything.nbytes


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["missing.pth", "out.pth", "--to", "timm"], "weights 'missing.pth': no such file"),
        (["in.pth", "out.bin", "--to", "timm"], "OUT 'out.bin': end its name in .pth or .safetensors"),
        (["in.pth", "in.pth", "--to", "timm"], "OUT 'in.pth' exists: name a new file"),
        (
            ["in.pth", "out.pth", "--to", "mmseg", "--task", "classifier"],
            "'in.pth': a classifier in mmseg format cannot",
        ),
        (["dense.pth", "out.pth", "--to", "timm"], "norm_list.0.weight does not exist in timm format"),
        (["page.pth", "out.pth", "--to", "timm"], "weights 'page.pth': it is a web page"),
    ],
)
def test_refused(
    arguments: list[str],
    expected: str,
    classifier: dict[str, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(random_backbone(SLIM_SVT).state_dict(), "dense.pth")
    Path("page.pth").write_text("<html>")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert_error(twins("convert", *arguments), expected)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_created(classifier: dict[str, Tensor], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert_error(twins("convert", tmp_path / "in.pth", tmp_path / "file/out.pth", "--to", "timm"), "file")


def test_the_script(classifier: dict[str, Tensor], tmp_path: Path) -> None:
    script = str(ROOT / "tools" / "convert_weights.py")
    result = run_python(script, str(tmp_path / "in.pth"), str(tmp_path / "out.pth"), "--to", "timm")
    assert result.returncode == 0, result.stderr
    assert same(read(tmp_path / "out.pth"), classifier)
