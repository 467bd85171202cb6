"""Fixtures for the tests of weights."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Path of a cache folder for one test, not created yet. Proxies are disabled."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("TWINS_DENSE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"
