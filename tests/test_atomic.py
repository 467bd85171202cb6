"""Files appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from cli_fixtures import snapshot

from twins_dense.atomic import write_atomically


class TestWriteAtomically:
    def test_writes_and_replaces(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "file.bin"
        for content in (b"first", b"second, longer"):
            write_atomically(path, content)
            assert path.read_bytes() == content
        assert [child.name for child in path.parent.iterdir()] == ["file.bin"]

    def test_a_failed_write_leaves_the_old_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "file.bin"
        path.write_bytes(b"old")
        whole = Path.write_bytes

        def half(self: Path, content: bytes) -> int:
            whole(self, content[: len(content) // 2])
            raise OSError("disk full")

        monkeypatch.setattr(Path, "write_bytes", half)
        with pytest.raises(OSError, match="disk full"):
            write_atomically(path, b"new content")
        assert snapshot(tmp_path) == {"file.bin": b"old"}

    def test_a_kill_before_the_renaming_leaves_the_old_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "file.bin"
        path.write_bytes(b"old")

        def killed(*args: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_atomically(path, b"new content")
        assert snapshot(tmp_path) == {"file.bin": b"old"}
