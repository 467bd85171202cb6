"""Checkpoints of small models and assertions for the tests of weights."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts import SLIM_PCPVT, SLIM_SVT, random_backbone, randomise, state_dict_shapes
from torch import Tensor, nn

import twins_dense as td

State = dict[str, Tensor]
CLASSIFIER_END = ("head.bias", "head.weight", "norm.bias", "norm.weight")
FAMILIES = pytest.mark.parametrize("spec", [SLIM_PCPVT, SLIM_SVT], ids=lambda spec: spec.name)


def fresh_backbone(spec: td.TwinsSpec = SLIM_SVT, **settings: Any) -> td.TwinsBackbone:
    return td.create_backbone(spec, **settings)


def dense_state(spec: td.TwinsSpec = SLIM_SVT) -> State:
    return random_backbone(spec, seed=3).state_dict()


def classifier_state(spec: td.TwinsSpec = SLIM_SVT) -> State:
    return randomise(td.create_classifier(spec, num_classes=11), seed=3).state_dict()


def published_state(kind: str, variant: str) -> State:
    """Return the names and shapes of a published model; the values are zeros that take no memory."""
    return {name: torch.zeros(()).expand(shape) for name, shape in state_dict_shapes(kind, variant).items()}


def copy_of(net: nn.Module) -> State:
    return {name: value.clone() for name, value in net.state_dict().items()}


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def assert_refused(net: nn.Module, source: Path | Mapping[str, Any], *parts: str) -> str:
    """Check that loading raises a one-line TwinsError with these parts and the path, and does not change the model."""
    before = copy_of(net)
    with pytest.raises(td.TwinsError) as caught:
        td.load_weights(net, source)
    message = str(caught.value)
    assert "\n" not in message
    for part in (*parts, *([str(source)] if isinstance(source, Path) else [])):
        assert part in message, message
    assert_same(net.state_dict(), before)
    return message


def torch_bytes(value: Any, *, as_zip: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=as_zip)
    return buffer.getvalue()
