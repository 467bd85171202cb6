"""The notebook of the tutorial runs from its first cell to its last."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from cli_fixtures import twins

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tutorial.ipynb"
SMALL = {
    "NUM_TRAIN": 4,
    "NUM_VAL": 2,
    "OPTIONS": "--epochs 1 --size 64 --max-dets 10 --samples 1 model.fpn_channels=16",
}


def read_cells() -> list[dict[str, Any]]:
    return [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def run_cell(source: str, names: dict[str, Any]) -> None:
    """Run a cell as a notebook would; `!twins-dense …` is run in this process."""
    if source.startswith("!"):
        program, *arguments = shlex.split(source.removeprefix("!").format_map(names))
        assert program == "twins-dense"
        result = twins(*arguments)
        assert result.code == 0, result.err
    else:
        exec(compile(source, "cell", "exec"), names)


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for cell in read_cells():
        run_cell("".join(cell["source"]), names)
        if "parameters" in cell["metadata"].get("tags", ()):
            assert names.keys() >= SMALL.keys()
            names.update(SMALL)
    assert len(list(tmp_path.glob("drawn/*.jpg"))) == 2
    assert 0 <= names["metrics"]["coco/bbox_AP50"] <= 1


def test_the_notebook_has_no_outputs() -> None:
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in read_cells())
