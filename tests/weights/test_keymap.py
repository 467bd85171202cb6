"""Conversion between formats gives the names and shapes of the other project, and is bit-exact there and back."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from contracts import SLIM_PCPVT, SLIM_SVT, VARIANTS, state_dict_shapes
from hypothesis import given, settings
from hypothesis import strategies as st
from loading_fixtures import CLASSIFIER_END, FAMILIES, State, classifier_state, dense_state, published_state
from torch import nn

import twins_dense as td
from twins_dense.models.layers import GlobalAttention
from twins_dense.weights.keymap import convert, recognise

HEADS = ("decode_head.", "auxiliary_head.")


def shapes(state: State) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def official_segmentor(variant: str) -> State:
    """Return a checkpoint like the official segmentation code's: its backbone under `backbone.`, with mmseg's heads."""
    heads = {k: v for k, v in published_state("mmseg_upernet", variant).items() if k.startswith(HEADS)}
    return {**{f"backbone.{k}": v for k, v in published_state("official_seg", variant).items()}, **heads}


def segmentor_state(spec: td.TwinsSpec) -> State:
    return {
        **{f"backbone.{name}": value for name, value in dense_state(spec).items()},
        "decode_head.conv_seg.weight": torch.randn(5, 3, 1, 1),
        "neck.lateral_convs.0.conv.weight": torch.randn(4, 8, 1, 1),
        "auxiliary_head.convs.0.bn.num_batches_tracked": torch.tensor(7),
    }


def assert_bits(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


# Names and shapes


@pytest.mark.parametrize("variant", VARIANTS)
class TestListedNames:
    def test_classifiers(self, variant: str) -> None:
        states = {
            "official": published_state("official_cls", variant),
            "timm": published_state("timm", variant),
            "mmpretrain": published_state("mmpretrain", variant),
        }
        for source, state in states.items():
            for to, expected in states.items():
                conversion = convert(state, to=to)
                assert shapes(conversion.state) == shapes(expected), (source, to)
                assert (conversion.variant, conversion.task, conversion.dropped) == (variant, "classifier", ())

    def test_segmentors(self, variant: str) -> None:
        theirs, official = published_state("mmseg_upernet", variant), official_segmentor(variant)
        for state in (theirs, official):
            conversion = convert(state, to="mmseg")
            assert shapes(conversion.state) == shapes(theirs)
            assert (conversion.variant, conversion.task) == (variant, "segmentor")
        assert sorted(conversion.dropped) == list(CLASSIFIER_END)  # the official backbone has these as well
        unused = {f"backbone.{name}" for name in CLASSIFIER_END}
        assert shapes(td.convert_state_dict(theirs, to="official")) == {
            name: shape for name, shape in shapes(official).items() if name not in unused
        }

    @pytest.mark.parametrize("kind", ["official_det", "official_seg"])
    def test_dense_backbones(self, variant: str, kind: str) -> None:
        expected = {
            name.removeprefix("backbone."): shape
            for name, shape in state_dict_shapes("mmseg_upernet", variant).items()
            if name.startswith("backbone.")
        }
        conversion = convert(published_state(kind, variant), to="mmseg")
        assert shapes(conversion.state) == expected
        assert conversion.task == "backbone" and sorted(conversion.dropped) == list(CLASSIFIER_END)
        back = td.convert_state_dict(conversion.state, to="official")
        assert shapes(back) == {k: v for k, v in state_dict_shapes(kind, variant).items() if k not in CLASSIFIER_END}

    def test_backbone_of_a_classifier(self, variant: str) -> None:
        """mmseg's published ImageNet files have no prefix, no level norms and no head."""
        conversion = convert(published_state("mmpretrain", variant), to="mmseg")
        assert conversion.task == "backbone"
        listed = {f"backbone.{name}": shape for name, shape in shapes(conversion.state).items()}
        expected = state_dict_shapes("mmseg_upernet", variant)
        assert listed == {
            name: shape
            for name, shape in expected.items()
            if name.startswith("backbone.") and not name.startswith("backbone.norm_list.")
        }

    @pytest.mark.parametrize("kind", ["official_cls", "official_seg", "timm", "mmpretrain", "mmseg_upernet"])
    def test_recognised_by_names(self, variant: str, kind: str) -> None:
        found = recognise(published_state(kind, variant))
        project = kind.partition("_")[0]
        assert found.variant == variant
        assert found.format == {"timm": "official"}.get(project, project)
        assert bool(found.companions) == (kind == "mmseg_upernet")


# Values


@FAMILIES
@pytest.mark.parametrize("through", ["timm", "mmpretrain"])
def test_classifier_there_and_back(spec: td.TwinsSpec, through: str) -> None:
    state = classifier_state(spec)
    there = td.convert_state_dict(state, to=through)
    assert_bits(td.convert_state_dict(there, to="official"), state)


@FAMILIES
def test_backbone_through_mmseg_and_back(spec: td.TwinsSpec) -> None:
    state = dense_state(spec)
    there = td.convert_state_dict(state, to="mmseg")
    assert any("in_proj" in name for name in there)
    assert_bits(td.convert_state_dict(there, to="official"), state)


@FAMILIES
def test_segmentor_through_mmseg_and_back(spec: td.TwinsSpec) -> None:
    state = segmentor_state(spec)
    there = td.convert_state_dict(state, to="mmseg")
    assert {name for name in there if not name.startswith("backbone.")} == set(list(state)[-3:])
    assert_bits(td.convert_state_dict(there, to="official"), state)


@pytest.mark.parametrize("variant", VARIANTS)
def test_published_sizes_there_and_back(variant: str) -> None:
    """A state dict passes through every format in turn, with a different number in every place."""
    state = {
        name: torch.arange(shape.numel(), dtype=torch.float32).add_(position).reshape(shape)
        for position, (name, shape) in enumerate(
            (n, torch.Size(s)) for n, s in state_dict_shapes("timm", variant).items()
        )
    }
    through = td.convert_state_dict(td.convert_state_dict(state, to="mmpretrain"), to="timm")
    assert_bits(td.convert_state_dict(through, to="official"), state)
    through = td.convert_state_dict(td.convert_state_dict(through, to="mmseg"), to="mmpretrain")
    backbone = {name: value for name, value in state.items() if name not in CLASSIFIER_END}
    assert_bits(td.convert_state_dict(through, to="official", task="backbone"), backbone)


@torch.no_grad()
def test_in_proj_is_what_torch_computes_with() -> None:
    """torch's MultiheadAttention, which mmseg uses, gives the same output with the converted entries."""
    state = dense_state(SLIM_SVT)
    converted = td.convert_state_dict(state, to="mmseg")
    ours = GlobalAttention(28, 7, 1, 1e-5)
    ours.load_state_dict(_below(state, "blocks.3.1.attn."))
    theirs = nn.MultiheadAttention(28, 7, batch_first=True)
    theirs.load_state_dict(_below(converted, "layers.3.1.attn.attn."))
    maps = torch.randn(2, 5, 3, 28)
    tokens = maps.flatten(1, 2)
    torch.testing.assert_close(ours(maps).flatten(1, 2), theirs(tokens, tokens, tokens)[0], rtol=1e-5, atol=1e-5)


def _below(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def test_the_source_is_left_alone_and_nothing_is_shared_by_the_parts_of_in_proj() -> None:
    theirs = td.convert_state_dict(dense_state(SLIM_SVT), to="mmseg")
    copies = {name: value.clone() for name, value in theirs.items()}
    ours = td.convert_state_dict({"state_dict": theirs}, to="official")
    for name in ("blocks.0.1.attn.q.weight", "blocks.0.1.attn.kv.weight"):
        assert ours[name].untyped_storage().nbytes() == ours[name].nbytes  # a file would contain nothing else
        ours[name].zero_()
    assert_bits(theirs, copies)


# Loading


@FAMILIES
@pytest.mark.parametrize("form", ["timm", "mmpretrain"])
def test_classifiers_load(spec: td.TwinsSpec, form: str) -> None:
    state = classifier_state(spec)
    net = td.create_classifier(spec, num_classes=11)
    report = td.load_weights(net, td.convert_state_dict(state, to=form))
    assert_bits(net.state_dict(), state)
    assert not report.initialised and not report.dropped


@FAMILIES
@pytest.mark.parametrize("around", ["", "module."])
@pytest.mark.parametrize("form", ["official", "mmseg"])
def test_segmentors_load_into_backbones(spec: td.TwinsSpec, form: str, around: str) -> None:
    state = segmentor_state(spec)
    net = td.create_backbone(spec)
    converted = td.convert_state_dict(state, to=form)
    report = td.load_weights(net, {"meta": {"epoch": 3}, "state_dict": {around + k: v for k, v in converted.items()}})
    assert_bits(net.state_dict(), dense_state(spec))
    assert report.format == form
    assert sorted(report.dropped) == sorted(list(state)[-3:])
    assert "3 dropped (auxiliary_head.*, decode_head.*, neck.*)" in str(report)


@pytest.mark.parametrize(
    ("prefix", "companions"),
    [
        ("backbone.bottom_up.", ("backbone.fpn_lateral2.weight", "proposal_generator.a", "roi_heads.b.weight")),
        ("backbone.bottom_up.", ("backbone.top_block.p6.weight", "head.cls_subnet.0.weight")),
        ("backbone.bottom_up.net.", ("backbone.fpn_output5.bias", "roi_heads.b.weight")),
        ("detector.backbone.bottom_up.", ("detector.backbone.fpn.a.weight", "detector.rpn.b", "detector.roi_heads.c")),
        ("backbone.", ("neck.a", "rpn_head.b", "roi_head.c")),
    ],
    ids=["detectron2 Mask R-CNN", "detectron2 RetinaNet", "ours in detectron2", "ours on torchvision", "mmdet"],
)
def test_detectors_load_into_backbones(prefix: str, companions: tuple[str, ...]) -> None:
    state = dense_state(SLIM_SVT)
    net = td.create_backbone(SLIM_SVT)
    detector = {**{prefix + k: v for k, v in state.items()}, **{name: torch.zeros(3) for name in companions}}
    report = td.load_weights(net, {"model": detector})
    assert_bits(net.state_dict(), state)
    assert sorted(report.dropped) == sorted(name.removeprefix("detector.") for name in companions)
    assert convert(detector, to="mmseg").task == "backbone"


@pytest.mark.parametrize(
    ("form", "spec", "expected"),
    [
        ("timm", SLIM_SVT, ""),
        ("mmpretrain", SLIM_SVT, "eps 1e-05 in blocks (here 1e-06)"),
        ("mmpretrain", SLIM_PCPVT, "eps 1e-06 in reduced maps (here 1e-05)"),
        ("mmseg", SLIM_SVT, "eps 1e-05 in blocks (here 1e-06)"),
        ("mmseg", SLIM_PCPVT, "eps 1e-05 in blocks (here 1e-06)"),
    ],
)
def test_another_epsilon_is_reported(form: str, spec: td.TwinsSpec, expected: str) -> None:
    net = td.create_backbone(spec, level_norm=False)
    report = td.load_weights(net, td.convert_state_dict(classifier_state(spec), to=form))
    assert report.norm_eps == expected
    assert str(report).endswith(f"; {form} computes with LayerNorm {expected}") == bool(expected)


# Conversions that are refused


@pytest.mark.parametrize(
    ("to", "task", "message"),
    [
        ("tim", None, "unknown format 'tim': did you mean 'timm'? known are official, timm, mmpretrain, mmseg"),
        ("timm", "detector", "unknown task 'detector': known are backbone, classifier, segmentor"),
        ("mmseg", "classifier", "a classifier in mmseg format cannot be made from this state dict of a custom Twins"),
        ("official", "segmentor", "choose backbone or classifier"),
        ("mmseg", "segmentor", "choose backbone"),
    ],
)
def test_formats_and_tasks(to: str, task: str | None, message: str) -> None:
    with pytest.raises(td.TwinsError, match=re.escape(message)):
        td.convert_state_dict(classifier_state(SLIM_SVT), to=to, task=task)


@pytest.mark.parametrize("to", ["timm", "mmpretrain"])
def test_level_norms_are_not_dropped(to: str) -> None:
    """A network without them would compute something else."""
    with pytest.raises(td.TwinsError, match=rf"norm_list\.0\.weight does not exist in {to} format"):
        td.convert_state_dict(dense_state(SLIM_SVT), to=to)


@pytest.mark.parametrize("key", ["blocks.0.0.attn.extra", "blocks.0.0.attn.q.weight", "cls_token", "neck.a.weight"])
def test_unknown_entries_are_not_dropped(key: str) -> None:
    with pytest.raises(td.TwinsError, match=rf"{re.escape(key)} does not exist in mmseg format"):
        td.convert_state_dict({**dense_state(SLIM_SVT), key: torch.zeros(3)}, to="mmseg")


def test_level_norms_of_mmpretrain_are_unknown() -> None:
    state = td.convert_state_dict(classifier_state(SLIM_SVT), to="mmpretrain")
    state["backbone.norm_after_stage0.weight"] = torch.ones(8)
    with pytest.raises(td.TwinsError, match=r"norm_after_stage0\.weight does not exist in official format"):
        td.convert_state_dict(state, to="official")
    with pytest.raises(td.TwinsError, match=r"norm_after_stage0\.weight \(8,\) is unexpected"):
        td.load_weights(td.create_backbone(SLIM_SVT), state)


@pytest.mark.parametrize("missing", ["q", "kv"])
def test_half_of_in_proj_is_missing(missing: str) -> None:
    state = dense_state(SLIM_PCPVT)
    del state[f"blocks.2.1.attn.{missing}.bias"]
    with pytest.raises(td.TwinsError, match=r"blocks\.2\.1\.attn\.q\.bias and its kv"):
        td.convert_state_dict(state, to="mmseg")


MODELS = [
    classifier_state(SLIM_PCPVT),
    td.convert_state_dict(classifier_state(SLIM_SVT), to="mmpretrain"),
    td.convert_state_dict(segmentor_state(SLIM_SVT), to="mmseg"),
]


@settings(max_examples=300)
@given(data=st.data())
def test_any_damage_is_one_line(data: st.DataObject) -> None:
    """A state dict with removed, renamed or replaced entries is either converted or refused with `TwinsError`."""
    state: dict[str, Any] = dict(data.draw(st.sampled_from(MODELS)))
    values = st.sampled_from(
        [None, 3, "x", [1.0], torch.tensor(2.0), torch.zeros(0), torch.zeros(7), torch.zeros(3, 3)]
    )
    for name in data.draw(st.lists(st.sampled_from(list(state)), min_size=1, max_size=4, unique=True)):
        value = state.pop(name)
        action = data.draw(st.sampled_from(["remove", "replace", "rename"]))
        if action == "replace":
            state[name] = data.draw(values)
        elif action == "rename":
            at = data.draw(st.integers(0, len(name)))
            state[name[:at] + data.draw(st.text("0.qkv", max_size=3)) + name[at + 1 :]] = value
    for attempt in (
        lambda: td.convert_state_dict(
            state, to=data.draw(st.sampled_from(["official", "timm", "mmpretrain", "mmseg"]))
        ),
        lambda: td.load_weights(nn.Identity(), state),
    ):
        try:
            attempt()
        except td.TwinsError as error:
            assert "\n" not in str(error)
