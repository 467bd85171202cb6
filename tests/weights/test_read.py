"""Broken checkpoints are refused with a one-line error, and code in a checkpoint is not run."""

from __future__ import annotations

import io
import os
import pickle
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from loading_fixtures import (
    assert_refused,
    assert_same,
    classifier_state,
    dense_state,
    fresh_backbone,
    torch_bytes,
)
from mmengine.logging import HistoryBuffer
from torch import nn

import twins_dense as td
from twins_dense.weights.read import read_checkpoint

# Formats


def test_files_with_the_suffix_of_the_other_format(tmp_path: Path) -> None:
    state = dense_state()
    torch.save(state, tmp_path / "torch.safetensors")
    safetensors.torch.save_file(state, tmp_path / "safe.pth")
    for path in tmp_path.iterdir():
        net = fresh_backbone()
        td.load_weights(net, path)
        assert_same(net.state_dict(), state)


# Files that are broken


@pytest.mark.parametrize("part", [0.01, 0.1, 0.25, 0.5, 0.9, 0.99, 0.9999])
@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "old format"])
def test_truncated_torch_file(tmp_path: Path, as_zip: bool, part: float) -> None:
    data = torch_bytes({"model": dense_state()}, as_zip=as_zip)
    assert len(data) > 50_000
    path = tmp_path / "cut.pth"
    path.write_bytes(data[: int(len(data) * part)])
    message = assert_refused(fresh_backbone(), path, "it is not a complete torch checkpoint", "download it again")
    assert "run code" not in message


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "old format"])
def test_torch_file_truncated_anywhere_in_its_header(tmp_path: Path, as_zip: bool) -> None:
    """The first 1,500 bytes are truncated in steps of 7, so that opcodes and operands are cut in many ways.

    The message may vary, because the truncated name of a harmless class is the name of another class.
    """
    data = torch_bytes({"model": dense_state()}, as_zip=as_zip)
    path = tmp_path / "cut.pth"
    for length in range(0, 1500, 7):
        path.write_bytes(data[:length])
        assert_refused(nn.Identity(), path, "it ")


@pytest.mark.parametrize("length", [1, 7, 8, 50, 2000, 100_000, -1])
def test_truncated_safetensors(tmp_path: Path, length: int) -> None:
    path = tmp_path / "cut.safetensors"
    safetensors.torch.save_file(dense_state(), path)
    path.write_bytes(path.read_bytes()[:length])
    assert_refused(fresh_backbone(), path, "it is not a complete safetensors file", "download it again")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n",
        b"\r\n<html>Too many requests</html>",
        b"404: Not Found",
        b'{"error": "Repository not found"}',
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 96443\n",
        bytes(range(256)) * 20,
    ],
    ids=["empty", "html", "html after a line", "404", "json", "git lfs pointer", "bytes"],
)
def test_files_that_are_not_checkpoints(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"page.{suffix}"
    path.write_bytes(content)
    assert_refused(fresh_backbone(), path, "download it again")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_missing_file_and_directory(tmp_path: Path, suffix: str) -> None:
    assert_refused(fresh_backbone(), tmp_path / f"missing.{suffix}", "no such file", "check the path")
    directory = tmp_path / f"directory.{suffix}"
    directory.mkdir()
    assert_refused(fresh_backbone(), directory, "is a folder", "check the path")


# Files that would run code


class RunsCommand:
    """An object that creates the file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"echo > '{self.target}'",)


class OpensFile(RunsCommand):
    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.target), "w")


@pytest.mark.parametrize("kind", [RunsCommand, OpensFile])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("form", ["zip", "old format", "bare pickle"])
def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, kind: type[RunsCommand], form: str, protocol: int) -> None:
    target = tmp_path / "created"
    value = {"model": {**dense_state(), "norm_list.0.bias": kind(target)}}
    path = tmp_path / "unsafe.pth"
    if form == "bare pickle":
        path.write_bytes(pickle.dumps({"model": kind(target)}, protocol=protocol))
    else:
        torch.save(value, path, _use_new_zipfile_serialization=form == "zip", pickle_protocol=protocol)
    message = assert_refused(fresh_backbone(), path)
    assert not target.exists()
    if protocol == 2:  # torch does not read other protocols far enough to see the names
        called = f"{os.system.__module__}.system" if kind is RunsCommand else "io.open"
        assert "not read, because that could run code" in message and called in message


def test_the_unsafe_objects_are_unsafe(tmp_path: Path) -> None:
    """Without this, the test above would also pass for harmless objects."""
    for kind in (RunsCommand, OpensFile):
        target = tmp_path / kind.__name__
        opened = pickle.loads(pickle.dumps(kind(target)))
        if isinstance(opened, io.IOBase):
            opened.close()
        assert target.exists()


def test_other_classes_are_refused_by_name(tmp_path: Path) -> None:
    """Old training scripts saved a whole module instead of its state dict."""
    torch.save(fresh_backbone(), tmp_path / "module.pth")
    assert_refused(
        fresh_backbone(), tmp_path / "module.pth", "twins_dense.models.backbone.TwinsBackbone", "only its state dict"
    )


# Other values in checkpoints


def legacy_values() -> dict[str, Any]:
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    net = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(2)).sum().backward()
    optimizer.step()
    return {
        "optimizer": optimizer.state_dict(),
        "args": Namespace(lr=0.1, output=Path("out")),
        "max_accuracy": np.float64(81.7),
        "others": [np.float32(1), np.int64(3), np.bool_(True), np.str_("x"), {np.int64(5): 1}],
        "array": np.arange(3),
        "objects": np.array([None, "x"], dtype=object),
        "message_hub": {"log_scalars": {"train/loss": history}, "runtime_info": {}},
    }


@pytest.mark.parametrize("numpy_core", [b"numpy._core", b"numpy.core"])
@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "old format"])
def test_values_beside_the_weights(tmp_path: Path, as_zip: bool, numpy_core: bytes) -> None:
    """Optimiser states, arguments, numpy values under both module names, and MMEngine's log history are accepted."""
    state = classifier_state()
    content = torch_bytes({"model": state, **legacy_values()}, as_zip=as_zip)
    assert b"numpy._core.multiarray" in content and b"HistoryBuffer" in content and b"getattr" in content
    if not as_zip:  # a zip file's checksums would be wrong
        content = content.replace(b"numpy._core", numpy_core)
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(content)
    net = fresh_backbone(level_norm=False)
    td.load_weights(net, path)
    assert_same(net.state_dict(), {name: state[name] for name in net.state_dict()})


def test_allowed_names_are_not_looked_up(tmp_path: Path) -> None:
    """`getattr`, which MMEngine's log history contains, becomes a placeholder and is not called."""

    class Getter:
        def __reduce__(self) -> tuple[Any, ...]:
            return getattr, ("text", "upper")

    torch.save({"model": dense_state(), "x": Getter()}, tmp_path / "a.pth")
    assert type(read_checkpoint(tmp_path / "a.pth")["x"]).__name__ == "_Placeholder"
    assert td.load_weights(fresh_backbone(), tmp_path / "a.pth").loaded


def test_everything_refused_is_named(tmp_path: Path) -> None:
    from collections import defaultdict
    from fractions import Fraction

    torch.save({"model": dense_state(), "a": Fraction(1, 3), "b": defaultdict(list)}, tmp_path / "a.pth")
    assert_refused(fresh_backbone(), tmp_path / "a.pth", "it holds builtins.list, collections.defaultdict, fractions.")
