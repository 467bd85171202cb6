"""detectron2 checkpoints with damaged descriptions of their data, or weights that are not finite: one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from d2_fixtures import MARKS

from twins_dense.errors import TwinsError
from twins_dense.frameworks.checks import check_checkpoint
from twins_dense.frameworks.detectron2.checks import read_detector

pytestmark = MARKS


def read(folder: Path, content: Any) -> dict[str, Any]:
    torch.save(content, folder / "model.pth")
    return read_detector(folder / "model.pth")


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ({"classes": ["a", "b"], "category_ids": [1]}, "2 classes, 1 category_ids"),
        ({"classes": "ab", "category_ids": [1, 2]}, "classes='ab'"),
        ({"classes": ["a", 5], "category_ids": [1, 2]}, "classes=['a', 5]"),
        ({"classes": ["a"], "category_ids": [1.0]}, "category_ids=[1.0]"),
        ([1], "is a list instead of a dict"),
        (5, "is a int instead of a dict"),
    ],
)
def test_descriptions_of_the_data(tmp_path: Path, meta: Any, words: str) -> None:
    with pytest.raises(TwinsError, match=r"model\.pth") as caught:
        read(tmp_path, {"model": {}, "dataset_meta": meta})
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("meta", [None, {}, {"classes": ["a"], "category_ids": [7]}])
def test_usable_descriptions(tmp_path: Path, meta: Any) -> None:
    assert read(tmp_path, {"model": {}, "dataset_meta": meta})["dataset_meta"] == meta


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    target = {"a": torch.zeros(3), "b": torch.zeros(2)}
    content = read(tmp_path, {"model": {**target, "b": torch.tensor([1.0, float("nan")])}})
    with pytest.raises(TwinsError, match=r"1 of its values is not finite \(the first in 'b'\)"):
        check_checkpoint(content["model"], target, tmp_path / "model.pth")
