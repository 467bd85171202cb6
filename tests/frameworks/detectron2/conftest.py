"""Fixtures of the tests of detectron2, which is imported only where a test asks for them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder for runs in this process, with exact values in metrics.jsonl and the modules of the configs."""
    from d2_run_fixtures import folder_with_programs
    from detectron2.utils.events import JSONWriter

    monkeypatch.setattr(JSONWriter.__init__, "__defaults__", (1,))
    monkeypatch.syspath_prepend(folder_with_programs(tmp_path))
    monkeypatch.delitem(sys.modules, "mappers", raising=False)
    return tmp_path
