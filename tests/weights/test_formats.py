"""The tables of formats, and the modules that the command line reads before torch is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import twins_dense
from twins_dense.weights.formats import COLUMNS, FORMATS, KEY_TABLE, NORM_EPS, PREFIXES, TASKS


@pytest.mark.parametrize("module", ["weights.catalog", "weights.formats", "weights.preprocessing", "models.spec"])
def test_imports_without_torch(module: str) -> None:
    """This runs in a separate process, because other tests have imported torch."""
    code = f"import sys, twins_dense.{module}; sys.exit(', '.join({{'torch', 'numpy', 'PIL'}} & sys.modules.keys()))"
    environment = {**os.environ, "PYTHONPATH": str(Path(twins_dense.__file__).parents[1])}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    assert result.stderr.strip() == ""


def test_every_table_has_every_format() -> None:
    assert set(FORMATS) == set(PREFIXES) == set(NORM_EPS) == set(COLUMNS)
    assert all(set(prefixes) <= set(TASKS) for prefixes in PREFIXES.values())
    assert {len(row) for row in KEY_TABLE} == {max(COLUMNS.values()) + 1}
