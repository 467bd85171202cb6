"""The record of an evaluation: complete lines, resuming, and refusing what belongs to another evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from twins_dense.errors import TwinsError
from twins_dense.evaluation.record import (
    About,
    RecordWriter,
    checkpoint_hash,
    device_name,
    identity_of,
    package_versions,
    read_record,
)


def about(**changes: Any) -> About:
    fields = {
        "task": "detection",
        "classes": ("cat", "dog"),
        "num_images": 3,
        "identity": "abc",
        "checkpoint": "a.pth",
        "dataset": "photos",
        **changes,
    }
    return About(**fields)


def test_entries_of_all_processes_come_back_in_the_order_of_the_data_set(tmp_path: Path) -> None:
    for rank, indices in ((0, (0, 2)), (1, (1,))):
        with RecordWriter(tmp_path, about(), rank=rank) as writer:
            for index in indices:
                writer.add({"index": index, "file": f"{index}.jpg"})
    record = read_record(tmp_path)
    assert [entry["file"] for entry in record.entries] == ["0.jpg", "1.jpg", "2.jpg"]
    assert record.is_complete
    assert record.about.classes == ["cat", "dog"]


def test_a_cut_line_is_dropped_and_the_rest_is_resumed(tmp_path: Path) -> None:
    with RecordWriter(tmp_path, about()) as writer:
        writer.add({"index": 0})
        writer.add({"index": 1})
    path = tmp_path / "record" / "images-0.jsonl"
    path.write_bytes(path.read_bytes()[:-4])
    assert [entry["index"] for entry in read_record(tmp_path).entries] == [0]
    with RecordWriter(tmp_path, about()) as writer:
        assert [entry["index"] for entry in writer.finished] == [0]
        writer.add({"index": 1})
        assert not read_record(tmp_path).is_complete
        writer.add({"index": 2})
    assert read_record(tmp_path).is_complete


@pytest.mark.parametrize("changes", [{"identity": "abd"}, {"num_images": 4}])
def test_a_record_of_another_evaluation_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with RecordWriter(tmp_path, about()) as writer:
        writer.add({"index": 0})
    with pytest.raises(TwinsError, match="another checkpoint"):
        RecordWriter(tmp_path, about(**changes))


@pytest.mark.parametrize("content", ["{", "[]", '{"task": "detection"}'])
def test_a_broken_record_is_one_line(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "record"
    folder.mkdir()
    (folder / "about.json").write_text(content)
    with pytest.raises(TwinsError, match="broken"):
        read_record(tmp_path)


def test_no_record_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(TwinsError, match="twins-dense eval"):
        read_record(tmp_path)


def test_identity_depends_on_the_bytes_and_the_config(tmp_path: Path) -> None:
    first, second = tmp_path / "a.pth", tmp_path / "b.pth"
    first.write_bytes(b"weights")
    second.write_bytes(b"weightz")
    found = {identity_of(path, config) for path in (first, second) for config in ({"a": 1}, {"a": 2}, {})}
    assert len(found) == 6
    assert identity_of(first, json.loads('{"b": 1, "a": 2}')) == identity_of(first, {"a": 2, "b": 1})
    assert identity_of(first, {}).split("-")[0] == checkpoint_hash(first) != checkpoint_hash(second)


def test_versions_and_device() -> None:
    found = package_versions("hotcoco", "no-such-package")
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert "hotcoco" in found and "no-such-package" not in found
    assert device_name("cpu")


@pytest.mark.parametrize("program", ["/usr/bin/twins-dense", "/lib/twins_dense/__main__.py", "/home/me/score.py"])
def test_the_command_can_be_typed_again(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [program, "eval", "my runs/a"])
    name = program if program.endswith("score.py") else "twins-dense"
    assert about().command == f"{name} eval 'my runs/a'"
