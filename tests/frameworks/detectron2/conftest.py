"""Fixtures for the detectron2 tests; they import detectron2 only when a test uses them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder for runs in this process, with the modules of the configs; metrics.jsonl gets exact values."""
    from d2_run_fixtures import folder_with_programs
    from detectron2.utils.events import JSONWriter

    monkeypatch.setattr(JSONWriter.__init__, "__defaults__", (1,))
    monkeypatch.syspath_prepend(folder_with_programs(tmp_path))
    monkeypatch.delitem(sys.modules, "mappers", raising=False)
    return tmp_path
