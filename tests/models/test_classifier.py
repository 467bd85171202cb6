"""TwinsClassifier and create_classifier. test_golden.py compares the logits with those of the official code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from contracts import (
    SLIM_PCPVT,
    SLIM_SVT,
    VARIANTS,
    randomise,
    shapes_of,
    stage_numbers,
    state_dict_shapes,
)
from reference import slow_twins

import twins_dense as td

# `n_parameters` in the official training logs.
NUM_PARAMETERS = {
    "pcpvt_small": 24_106_216,
    "pcpvt_base": 43_828_456,
    "pcpvt_large": 60_989_672,
    "svt_small": 24_060_776,
    "svt_base": 56_070_952,
    "svt_large": 99_271_400,
}
FAMILIES = pytest.mark.parametrize("spec", [SLIM_PCPVT, SLIM_SVT], ids=lambda spec: spec.name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_are_the_official_ones(variant: str) -> None:
    with torch.device("meta"):
        net = td.create_classifier(variant)
    assert shapes_of(net) == state_dict_shapes("official_cls", variant)
    assert sum(parameter.numel() for parameter in net.parameters()) == NUM_PARAMETERS[variant]


@FAMILIES
@pytest.mark.parametrize(("height", "width"), [(64, 96), (61, 75)])
@torch.no_grad()
def test_logits_equal_the_slow_reference(spec: td.TwinsSpec, height: int, width: int) -> None:
    net = randomise(td.create_classifier(spec, num_classes=11), seed=5).double().eval()
    images = torch.randn(2, 3, height, width, dtype=torch.float64)
    logits = net(images)
    assert logits.shape == (2, 11)
    for image, row in zip(images, logits, strict=True):
        expected = slow_twins.classifier(net.state_dict(), stage_numbers(spec), image)
        torch.testing.assert_close(row, expected, rtol=1e-10, atol=1e-10)


@FAMILIES
def test_every_parameter_gets_a_gradient(spec: td.TwinsSpec) -> None:
    net = randomise(td.create_classifier(spec, num_classes=11, drop_path_rate=0.0), seed=5).train()
    (net(torch.randn(2, 3, 64, 96)) * torch.randn(2, 11)).sum().backward()
    without = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.count_nonzero()]
    assert without == []


def test_initialisation_of_the_head() -> None:
    net = td.create_classifier(SLIM_SVT)
    weight = net.head.weight.detach()
    assert weight.shape == (1000, 28)
    # Five standard errors of a standard deviation over 28,000 numbers.
    assert abs(weight.std().item() / 0.02 - 1) < 5 / (2 * 28_000) ** 0.5
    assert not net.head.bias.count_nonzero() and not net.norm.bias.count_nonzero()
    assert torch.equal(net.norm.weight, torch.ones(28))


@pytest.mark.parametrize("num_classes", [0, -1])
def test_bad_number_of_classes(num_classes: int) -> None:
    with pytest.raises(td.TwinsError, match=f"num_classes={num_classes}: give at least 1"):
        td.create_classifier(SLIM_SVT, num_classes=num_classes)


def test_bad_arguments_are_those_of_the_backbone() -> None:
    with pytest.raises(td.TwinsError, match="did you mean 'svt_base'"):
        td.create_classifier("svt_bas")
    with pytest.raises(td.TwinsError, match="window_padding='none'"):
        td.create_classifier(SLIM_SVT, window_padding="none")  # type: ignore[arg-type]
    with pytest.raises(td.TwinsError, match="images of 31x32 pixels are too small"):
        td.create_classifier(SLIM_SVT)(torch.zeros(1, 3, 31, 32))


def test_weights_argument(tmp_path: Path) -> None:
    source = randomise(td.create_classifier(SLIM_SVT, num_classes=11), seed=5)
    torch.save(source.state_dict(), tmp_path / "slim.pth")
    net = td.create_classifier(SLIM_SVT, num_classes=11, weights=tmp_path / "slim.pth")
    for name, value in source.state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name


def test_weights_with_another_number_of_classes(tmp_path: Path) -> None:
    torch.save(td.create_classifier(SLIM_SVT, num_classes=11).state_dict(), tmp_path / "slim.pth")
    with pytest.raises(td.TwinsError, match=r"head.weight is \(11, 28\) but the model has \(13, 28\)"):
        td.create_classifier(SLIM_SVT, num_classes=13, weights=tmp_path / "slim.pth")


@pytest.mark.parametrize("form", ["official", "mmpretrain"])
def test_imagenet_weights_with_a_head_of_other_classes(form: str) -> None:
    state = randomise(td.create_classifier(SLIM_SVT), seed=5).state_dict()
    net = td.create_classifier(SLIM_SVT, num_classes=13)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    report = td.load_weights(net, td.convert_state_dict(state, to=form))
    heads = ("head.bias", "head.weight")
    assert report.initialised == report.dropped == heads
    assert "2 freshly initialised (head.*), 2 dropped (head.*)" in str(report)
    for name, value in net.state_dict().items():
        assert torch.equal(value, (before if name in heads else state)[name]), name
    assert net.norm.weight.ne(1).all()


@pytest.mark.parametrize(("source", "model"), [(11, 1000), (1001, 1000), (11, 13)])
def test_other_heads_are_not_dropped(source: int, model: int) -> None:
    """Only a head of ImageNet's 1000 classes is dropped, and only for a model with another number of classes."""
    state = td.create_classifier(SLIM_SVT, num_classes=source).state_dict()
    with pytest.raises(td.TwinsError, match=rf"head.weight is \({source}, 28\) but the model has \({model}, 28\)"):
        td.load_weights(td.create_classifier(SLIM_SVT, num_classes=model), state)


def test_a_head_of_another_width_is_not_dropped() -> None:
    state = td.create_classifier(SLIM_SVT).state_dict()
    state["head.weight"] = torch.zeros(1000, 27)
    with pytest.raises(td.TwinsError, match=r"head.weight is \(1000, 27\)"):
        td.load_weights(td.create_classifier(SLIM_SVT, num_classes=13), state)
