"""Checkpoints that fit are loaded bit-exactly, and all others are refused with a one-line error."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from contracts import SLIM_SVT, random_backbone, without_initialisation
from loading_fixtures import (
    CLASSIFIER_END,
    FAMILIES,
    State,
    assert_refused,
    assert_same,
    classifier_state,
    copy_of,
    dense_state,
    fresh_backbone,
    published_state,
    torch_bytes,
)
from torch import Tensor, nn

import twins_dense as td

# Checkpoints that fit


@FAMILIES
def test_official_state_dict(spec: td.TwinsSpec) -> None:
    state = dense_state(spec)
    net = fresh_backbone(spec)
    report = td.load_weights(net, state)
    assert_same(net.state_dict(), state)
    assert set(report.loaded) == set(state)
    assert report.initialised == report.dropped == ()


@pytest.mark.parametrize(
    "prefix", ["", "module.", "backbone.", "bottom_up.", "backbone.bottom_up.", "module.backbone."]
)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "args": None},
        lambda state: {"state_dict_ema": state},
        lambda state: {"model_ema": state, "optimizer": {"state": {0: torch.zeros(2)}}},
        lambda state: {"model": {"state_dict": state}},
    ],
    ids=["plain", "state_dict", "model", "state_dict_ema", "model_ema", "nested"],
)
def test_wrappers_and_prefixes(tmp_path: Path, wrap: Callable[[State], dict[str, Any]], prefix: str) -> None:
    state = dense_state()
    path = tmp_path / "checkpoint.pth"
    torch.save(wrap({prefix + name: value for name, value in state.items()}), path)
    net = fresh_backbone()
    report = td.load_weights(net, path)
    assert_same(net.state_dict(), state)
    assert set(report.loaded) == set(state) and report.source == str(path)


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.bottom_up."])
def test_safetensors(tmp_path: Path, prefix: str) -> None:
    state = dense_state()
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({prefix + name: value for name, value in state.items()}, path)
    net = fresh_backbone()
    td.load_weights(net, path)
    assert_same(net.state_dict(), state)


def test_old_torch_format(tmp_path: Path) -> None:
    state = dense_state()
    path = tmp_path / "old.pth"
    path.write_bytes(torch_bytes({"model": state}, as_zip=False))
    net = fresh_backbone()
    td.load_weights(net, path)
    assert_same(net.state_dict(), state)


def test_paths_may_be_strings(tmp_path: Path) -> None:
    state = dense_state()
    torch.save(state, tmp_path / "weights.pth")
    net = fresh_backbone(weights=str(tmp_path / "weights.pth"))
    assert_same(net.state_dict(), state)


@pytest.mark.parametrize("ema", ["state_dict_ema", "model_ema"])
@pytest.mark.parametrize("plain", ["state_dict", "model"])
def test_averaged_weights_win(plain: str, ema: str) -> None:
    state = dense_state()
    net = fresh_backbone()
    td.load_weights(net, {plain: {name: value + 1 for name, value in state.items()}, ema: state})
    assert_same(net.state_dict(), state)


def test_prefixed_classifier_loses_its_head_outside_the_prefix() -> None:
    state = classifier_state()
    end = {name: state[name] for name in CLASSIFIER_END}
    net = fresh_backbone(level_norm=False)
    report = td.load_weights(net, {**{f"backbone.{name}": state[name] for name in state.keys() - end.keys()}, **end})
    assert report.dropped == CLASSIFIER_END
    assert_same(net.state_dict(), {name: state[name] for name in net.state_dict()})


def test_classifier_into_dense_model_with_level_norms() -> None:
    state = classifier_state()
    net = fresh_backbone()
    before = copy_of(net)
    report = td.load_weights(net, state)
    norms = {f"norm_list.{stage}.{name}" for stage in range(4) for name in ("weight", "bias")}
    assert set(report.initialised) == norms
    assert report.dropped == CLASSIFIER_END
    assert set(report.loaded) == set(state) - set(CLASSIFIER_END)
    assert_same(net.state_dict(), {name: before[name] if name in norms else state[name] for name in before})


@pytest.mark.parametrize("variant", ["svt_small", "pcpvt_small"])
@pytest.mark.parametrize("kind", ["official_cls", "official_det", "official_seg", "timm"])
def test_published_names_into_published_variants(variant: str, kind: str) -> None:
    net = without_initialisation(lambda: td.create_backbone(variant))
    report = td.load_weights(net, published_state(kind, variant))
    assert report.variant == variant
    assert report.dropped == CLASSIFIER_END
    fresh_norms = variant == "svt_small" and kind in ("official_cls", "timm")
    assert len(report.initialised) == (8 if fresh_norms else 0)
    assert len(report.loaded) + len(report.initialised) == len(net.state_dict())
    assert not any(net.state_dict()[name].count_nonzero() for name in report.loaded)


@FAMILIES
def test_stages_that_are_not_built_are_dropped(spec: td.TwinsSpec) -> None:
    state = dense_state(spec)
    net = fresh_backbone(spec, out_indices=(0, 1))
    report = td.load_weights(net, state)
    later = {name for name in state if name.split(".")[1] in ("2", "3")}
    assert set(report.dropped) == later and len(later) > 20
    assert not report.initialised
    assert_same(net.state_dict(), {name: state[name] for name in state.keys() - later})


def test_report_is_one_readable_line(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    state = classifier_state()
    path = tmp_path / "slim.pth"
    torch.save(state, path)
    with caplog.at_level(logging.INFO, logger="twins_dense"), pytest.warns(UserWarning, match="norm_list"):
        net = fresh_backbone(weights=path)
    num_loaded = len(net.state_dict()) - 8
    assert caplog.messages == [
        f"{path} (a custom Twins with dims (8, 12, 20, 28) and depths (2, 2, 3, 2), official names): "
        f"{num_loaded} parameters loaded, 8 freshly initialised (norm_list.*), 4 dropped (head.*, norm.*)"
    ]


def test_fresh_level_norms_are_named_in_a_warning(tmp_path: Path) -> None:
    """ImageNet weights have no level norms, and freshly initialised ones change the output of an SVT."""
    torch.save(classifier_state(), tmp_path / "slim.pth")
    with pytest.warns(UserWarning) as caught:
        td.create_backbone(SLIM_SVT, weights=tmp_path / "slim.pth")
    (warning,) = caught
    text = str(warning.message)
    assert all(f"norm_list.{stage}.{name}" in text for stage in range(4) for name in ("weight", "bias"))
    assert "load_backbone('slim_svt', ...)" in text and "level_norm=False" in text and "\n" not in text
    assert warning.filename == __file__


def test_load_backbone_takes_weights_as_they_are(tmp_path: Path) -> None:
    torch.save(classifier_state(), tmp_path / "imagenet.pth")
    torch.save(dense_state(), tmp_path / "dense.pth")
    imagenet, dense = (td.load_backbone(SLIM_SVT, tmp_path / f"{name}.pth") for name in ("imagenet", "dense"))
    assert imagenet.norm_list is None and dense.norm_list is not None
    assert not imagenet.training and not dense.training


def test_source_is_left_alone() -> None:
    state = dense_state()
    wrapped = {"model": {f"module.{name}": value for name, value in state.items()}}
    names, values = list(wrapped["model"]), [value.clone() for value in wrapped["model"].values()]
    net = fresh_backbone()
    td.load_weights(net, wrapped)
    nn.init.zeros_(net.blocks[0][0].mlp.fc1.weight)  # type: ignore[index]
    assert list(wrapped["model"]) == names
    assert all(torch.equal(*pair) for pair in zip(wrapped["model"].values(), values, strict=True))


# Checkpoints that do not fit


@pytest.mark.parametrize(
    ("checkpoint", "model", "out_indices", "offenders"),
    [
        (
            "svt_base",
            "svt_small",
            (0, 1),
            [
                "blocks.0.0.attn.proj.bias is (96,) but the model has (64,)",
                "blocks.0.0.attn.proj.weight is (96, 96) but the model has (64, 64)",
                "blocks.0.0.attn.qkv.bias is (288,) but the model has (192,)",
            ],
        ),
        (
            "pcpvt_base",
            "pcpvt_small",
            (0, 1, 2),
            [
                "blocks.2.10.attn.kv.bias (640,) is unexpected",
                "blocks.2.10.attn.kv.weight (640, 320) is unexpected",
                "blocks.2.10.attn.norm.bias (320,) is unexpected",
            ],
        ),
        (
            "pcpvt_small",
            "pcpvt_large",
            (0, 1),
            [
                "blocks.1.4.attn.kv.bias is missing",
                "blocks.1.4.attn.kv.weight is missing",
                "blocks.1.4.attn.norm.bias is missing",
            ],
        ),
        (
            "pcpvt_small",
            "svt_small",
            (0,),
            [
                "blocks.0.0.attn.qkv.bias is missing",
                "blocks.0.0.attn.qkv.weight is missing",
                "blocks.0.0.attn.kv.bias (128,) is unexpected",
            ],
        ),
    ],
)
def test_another_variant(checkpoint: str, model: str, out_indices: tuple[int, ...], offenders: list[str]) -> None:
    """The error names both variants, and the first offending entries with their shapes."""
    net = td.create_backbone(model, out_indices=out_indices)
    state = published_state("official_cls", checkpoint)
    message = assert_refused(net, state, f"this is {checkpoint}, the model is {model}; ")
    positions = [message.index(offender) for offender in offenders]
    assert positions == sorted(positions)
    assert message[positions[-1] + len(offenders[-1]) :].startswith("; …")


@pytest.mark.parametrize("name", ["patch_embeds.1.norm.bias", "blocks.2.1.attn.sr.weight", "norm_list.3.weight"])
def test_missing_entry(name: str, tmp_path: Path) -> None:
    """A checkpoint with only some of the level norms is refused as well."""
    state = dense_state()
    del state[name]
    path = tmp_path / "missing.pth"
    torch.save(state, path)
    assert_refused(fresh_backbone(), path, f"{name} is missing", "do not fit (1): ")


@pytest.mark.parametrize(
    "name",
    ["blocks.0.0.attn.extra", "blocks.0.2.norm1.weight", "norm1.weight", "decode_head.conv_seg.weight", "cls_token"],
)
def test_surplus_entry(name: str, tmp_path: Path) -> None:
    path = tmp_path / "surplus.pth"
    torch.save({**dense_state(), name: torch.zeros(5, 3)}, path)
    assert_refused(fresh_backbone(), path, f"{name} (5, 3) is unexpected", "do not fit (1): ")


def test_classifier_needs_its_head() -> None:
    net = td.create_classifier(SLIM_SVT, num_classes=11)
    assert_refused(net, dense_state(), "head.bias is missing", "norm.bias is missing")


@pytest.mark.parametrize("name", ["head.scale", "norm.running_mean"])
def test_classifier_drops_nothing(name: str) -> None:
    net = td.create_classifier(SLIM_SVT, num_classes=11)
    assert_refused(net, {**classifier_state(), name: torch.zeros(5)}, f"{name} (5,) is unexpected", "do not fit (1): ")


def test_level_norms_are_not_dropped_silently() -> None:
    assert_refused(fresh_backbone(level_norm=False), dense_state(), "norm_list.0.bias (8,) is unexpected")


def test_wrong_shape() -> None:
    state = dense_state()
    state["blocks.1.0.attn.qkv.weight"] = torch.zeros(36, 13)
    assert_refused(fresh_backbone(), state, "blocks.1.0.attn.qkv.weight is (36, 13) but the model has (36, 12)")


@pytest.mark.parametrize(
    "source",
    [
        pytest.param({}, id="empty"),
        pytest.param({"model": {}}, id="empty inside"),
        pytest.param({"epoch": 3}, id="no tensors"),
        pytest.param({"conv1.weight": torch.zeros(2)}, id="another network"),
        pytest.param({"encoder.patch_embeds.0.proj.weight": torch.zeros(8, 3, 4, 4)}, id="unknown prefix"),
        pytest.param({0: torch.zeros(2)}, id="numbers for names"),
        pytest.param({"optimizer": {}, 3: torch.zeros(2)}, id="a number among names"),
        pytest.param({"patch_embeds.0.proj.weight": 3}, id="number for a tensor"),
        pytest.param({"patch_embeds.0.proj.weight": torch.tensor(3.0)}, id="tensor without dimensions"),
        pytest.param({"patch_embeds.0.proj.weight": [1.0, 2.0]}, id="list for a tensor"),
    ],
)
def test_mappings_that_are_not_twins(source: dict[Any, Any], tmp_path: Path) -> None:
    net = fresh_backbone()
    assert_refused(net, source)
    torch.save(source, tmp_path / "other.pth")
    assert_refused(net, tmp_path / "other.pth")


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param(torch.zeros(4).to_sparse(), id="sparse"),
        pytest.param(torch.zeros(4, dtype=torch.complex64), id="complex"),
        pytest.param(torch.zeros(1).expand(10**13), id="a number said to be 40 terabytes"),
        pytest.param(torch.zeros(4, device="meta"), id="without numbers"),
    ],
)
def test_odd_tensors_in_files(odd: Tensor, tmp_path: Path) -> None:
    torch.save({**dense_state(), "norm_list.0.bias": odd}, tmp_path / "odd.pth")
    assert_refused(fresh_backbone(), tmp_path / "odd.pth", "'norm_list.0.bias' is not a dense, real tensor")


@pytest.mark.parametrize("value", [3, "text", [torch.zeros(2)], None, torch.zeros(3)], ids=lambda v: type(v).__name__)
def test_files_without_a_mapping(value: Any, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "other.pth")
    assert_refused(fresh_backbone(), tmp_path / "other.pth", f"it holds a {type(value).__name__}")


def test_round_trip_through_both_formats(tmp_path: Path) -> None:
    net = random_backbone(SLIM_SVT)
    torch.save(net.state_dict(), tmp_path / "a.pth")
    second = fresh_backbone(weights=tmp_path / "a.pth")
    safetensors.torch.save_file(second.state_dict(), tmp_path / "b.safetensors")
    third = fresh_backbone(weights=tmp_path / "b.safetensors")
    assert_same(third.state_dict(), net.state_dict())
