"""Weights of any type, value and name: what is loaded is what the file says, and everything else is refused."""

from __future__ import annotations

import contextlib
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from loading_fixtures import assert_refused, assert_same, classifier_state, dense_state, fresh_backbone
from torch import Tensor

import twins_dense as td
from twins_dense.errors import TwinsError
from twins_dense.weights.read import read_checkpoint

KEY = "blocks.1.0.mlp.fc1.weight"
FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
QUANTISED = (torch.quint8, torch.qint8, torch.qint32)
pytestmark = pytest.mark.filterwarnings("ignore:.*(experimental|deprecated):UserWarning")  # about types of torch


def as_type(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.quantize_per_tensor(tensor, 0.1, 0, dtype) if dtype in QUANTISED else tensor.to(dtype)


def dtypes() -> Iterator[torch.dtype]:
    """Yield the types that torch can convert to."""
    for name in sorted(dir(torch)):
        dtype = getattr(torch, name)
        if isinstance(dtype, torch.dtype) and str(dtype) == f"torch.{name}":
            with warnings.catch_warnings(), contextlib.suppress(RuntimeError, NotImplementedError, TypeError):
                warnings.simplefilter("ignore")
                as_type(torch.ones(2), dtype)
                yield dtype


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("dtype", [*dtypes()], ids=str)
def test_every_type(tmp_path: Path, dtype: torch.dtype, in_memory: bool) -> None:
    state = dense_state()
    state[KEY] = as_type(state[KEY], dtype)
    source: Any = state
    if not in_memory:
        source = tmp_path / "weights.pth"
        torch.save(state, source)
    net = fresh_backbone()
    if dtype in FLOATS:
        td.load_weights(net, source)
        torch.testing.assert_close(net.state_dict()[KEY], state[KEY].float(), rtol=0, atol=0)
    else:
        # torch itself refuses files with some types.
        assert_refused(net, source, *([repr(KEY)] if in_memory else []))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8, torch.qint8, torch.float8_e4m3fn], ids=str)
def test_the_type_is_named(dtype: torch.dtype) -> None:
    state = dense_state()
    state[KEY] = as_type(state[KEY], dtype)
    assert_refused(fresh_backbone(), state, f"its entry {KEY!r} has the type {dtype}: convert it to torch.float32")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
@pytest.mark.parametrize("count", [1, 2000])
def test_values_that_are_not_finite(tmp_path: Path, value: float, count: int) -> None:
    """1e300 is finite in the file, and infinite in the model."""
    state = {name: tensor.double() for name, tensor in dense_state().items()}
    later = state["blocks.2.0.mlp.fc1.weight"]
    later.view(-1)[:count] = value
    state[KEY].view(-1)[5] = value
    torch.save(state, tmp_path / "weights.pth")
    number = f"{count + 1:,}" if count < later.numel() else f"{later.numel() + 1:,}"
    message = f"{number} of its values are not finite (the first in {KEY!r})"
    for source in (state, tmp_path / "weights.pth"):
        assert_refused(fresh_backbone(), source, message)


def test_values_that_are_dropped_may_be_anything() -> None:
    state = classifier_state()
    state["head.weight"] = torch.full_like(state["head.weight"], float("nan"))
    td.load_weights(fresh_backbone(), state)


NAMES = [
    "patch_embeds." + "1" * 5000 + ".proj.weight",
    "blocks." + "1" * 5000 + "." + "2" * 5000 + ".attn.q.weight",
    "stages." + "9" * 4301 + ".0.attn.q.weight",
    "a\nb",
    "blocks.0.0.\n.weight",
    "\x1b[31m",
    "\ud800",
    "patch_embeds.².proj.weight",
    "patch_embeds.٣.proj.weight",
    "n" * 100_000,
    "",
    ".",
    "{0}{p}{s}",
]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:20])
@pytest.mark.parametrize("alone", [False, True])
def test_any_name(name: str, alone: bool) -> None:
    state = {} if alone else dense_state()
    state[name] = torch.zeros(2, 3, 4, 4)
    message = assert_refused(fresh_backbone(), state)
    assert len(message) < 600 and message.isprintable()
    for to in ("official", "mmpretrain", "mmseg"):
        try:
            td.convert_state_dict(state, to=to)
        except TwinsError as error:
            assert len(str(error)) < 600 and str(error).isprintable()


class Shadowed:
    """Pickled as an `OrderedDict` with attributes."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content

    def __reduce__(self) -> Any:
        names = ("keys", "items", "values", "get", "copy", "__len__", "_metadata", "pop")
        return OrderedDict, (), dict.fromkeys(names, 5), None, iter(self.content.items())


class TestShadowedMethods:
    """A file can give an `OrderedDict` attributes, which would replace its methods."""

    def test_weights(self, tmp_path: Path) -> None:
        state = dense_state()
        for content in (Shadowed(state), {"state_dict": Shadowed(state)}):
            torch.save(content, tmp_path / "weights.pth")
            net = fresh_backbone()
            td.load_weights(net, tmp_path / "weights.pth")
            assert_same(net.state_dict(), state)

    def test_nested_and_cyclic(self, tmp_path: Path) -> None:
        inner = Shadowed({"a": 1})
        cyclic: list[Any] = [inner]
        cyclic.append(cyclic)
        torch.save({"x": [(Shadowed({"y": inner}),)], "z": cyclic}, tmp_path / "file.pth")
        found = read_checkpoint(tmp_path / "file.pth")
        assert list(found["x"][0][0].keys()) == ["y"] and list(found["x"][0][0]["y"].items()) == [("a", 1)]
        assert found["z"][1] is found["z"]
