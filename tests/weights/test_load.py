"""Loading checkpoints: what fits loads bit by bit, and what doesn't is refused in one line that names the file."""

from __future__ import annotations

import io
import logging
import os
import pickle
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from contracts import (
    SLIM_PCPVT,
    SLIM_SVT,
    random_backbone,
    randomise,
    state_dict_shapes,
    without_initialisation,
)
from mmengine.logging import HistoryBuffer
from torch import Tensor, nn

import twins_dense as td
from twins_dense.weights.read import read_checkpoint

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
    """Names and shapes of a published model; the values are zeros that take no memory."""
    return {name: torch.zeros(()).expand(shape) for name, shape in state_dict_shapes(kind, variant).items()}


def copy_of(net: nn.Module) -> State:
    return {name: value.clone() for name, value in net.state_dict().items()}


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def assert_refused(net: nn.Module, source: Path | Mapping[str, Any], *parts: str) -> str:
    """Loading raises TwinsError in one line with the parts and the file's name, and leaves the model as it was."""
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


# What loads


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
    """ImageNet weights have no level norms: an SVT that gets fresh ones does not compute what the weights were."""
    torch.save(classifier_state(), tmp_path / "slim.pth")
    with pytest.warns(UserWarning) as caught:
        fresh_backbone(weights=tmp_path / "slim.pth")
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


# What doesn't fit


@pytest.mark.parametrize(
    ("checkpoint", "model", "out_indices", "offenders"),
    [
        (
            "svt_base",
            "svt_small",
            (0, 1),
            [
                "blocks.0.0.attn.proj.bias is (96,) where the model has (64,)",
                "blocks.0.0.attn.proj.weight is (96, 96) where the model has (64, 64)",
                "blocks.0.0.attn.qkv.bias is (288,) where the model has (192,)",
            ],
        ),
        (
            "pcpvt_base",
            "pcpvt_small",
            (0, 1, 2),
            [
                "blocks.2.10.attn.kv.bias (640,) has no place",
                "blocks.2.10.attn.kv.weight (640, 320) has no place",
                "blocks.2.10.attn.norm.bias (320,) has no place",
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
                "blocks.0.0.attn.kv.bias (128,) has no place",
            ],
        ),
    ],
)
def test_another_variant(checkpoint: str, model: str, out_indices: tuple[int, ...], offenders: list[str]) -> None:
    """Both are named, and the first offenders with their shapes."""
    net = td.create_backbone(model, out_indices=out_indices)
    state = published_state("official_cls", checkpoint)
    message = assert_refused(net, state, f"this is {checkpoint}, the model is {model}; ")
    positions = [message.index(offender) for offender in offenders]
    assert positions == sorted(positions)
    assert message[positions[-1] + len(offenders[-1]) :].startswith("; …")


@pytest.mark.parametrize("name", ["patch_embeds.1.norm.bias", "blocks.2.1.attn.sr.weight", "norm_list.3.weight"])
def test_missing_entry(name: str, tmp_path: Path) -> None:
    """A checkpoint with some of the level norms is refused as well."""
    state = dense_state()
    del state[name]
    path = tmp_path / "missing.pth"
    torch.save(state, path)
    assert_refused(fresh_backbone(), path, f"{name} is missing", "don't fit (1): ")


@pytest.mark.parametrize(
    "name",
    ["blocks.0.0.attn.extra", "blocks.0.2.norm1.weight", "norm1.weight", "decode_head.conv_seg.weight", "cls_token"],
)
def test_surplus_entry(name: str, tmp_path: Path) -> None:
    path = tmp_path / "surplus.pth"
    torch.save({**dense_state(), name: torch.zeros(5, 3)}, path)
    assert_refused(fresh_backbone(), path, f"{name} (5, 3) has no place", "don't fit (1): ")


def test_classifier_needs_its_head() -> None:
    net = td.create_classifier(SLIM_SVT, num_classes=11)
    assert_refused(net, dense_state(), "head.bias is missing", "norm.bias is missing")


@pytest.mark.parametrize("name", ["head.scale", "norm.running_mean"])
def test_classifier_drops_nothing(name: str) -> None:
    net = td.create_classifier(SLIM_SVT, num_classes=11)
    assert_refused(net, {**classifier_state(), name: torch.zeros(5)}, f"{name} (5,) has no place", "don't fit (1): ")


def test_level_norms_are_not_dropped_silently() -> None:
    assert_refused(fresh_backbone(level_norm=False), dense_state(), "norm_list.0.bias (8,) has no place")


def test_wrong_shape() -> None:
    state = dense_state()
    state["blocks.1.0.attn.qkv.weight"] = torch.zeros(36, 13)
    assert_refused(fresh_backbone(), state, "blocks.1.0.attn.qkv.weight is (36, 13) where the model has (36, 12)")


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
def test_mappings_that_are_no_twins(source: dict[Any, Any], tmp_path: Path) -> None:
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
    assert_refused(fresh_backbone(), tmp_path / "odd.pth", "'norm_list.0.bias' is no dense tensor of real numbers")


def test_files_with_the_suffix_of_the_other_format(tmp_path: Path) -> None:
    state = dense_state()
    torch.save(state, tmp_path / "torch.safetensors")
    safetensors.torch.save_file(state, tmp_path / "safe.pth")
    for path in tmp_path.iterdir():
        net = fresh_backbone()
        td.load_weights(net, path)
        assert_same(net.state_dict(), state)


@pytest.mark.parametrize("value", [3, "text", [torch.zeros(2)], None, torch.zeros(3)], ids=lambda v: type(v).__name__)
def test_files_that_hold_no_mapping(value: Any, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "other.pth")
    assert_refused(fresh_backbone(), tmp_path / "other.pth", f"it holds a {type(value).__name__}")


# Files that are broken


@pytest.mark.parametrize("part", [0.01, 0.1, 0.25, 0.5, 0.9, 0.99, 0.9999])
@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "old format"])
def test_truncated_torch_file(tmp_path: Path, as_zip: bool, part: float) -> None:
    data = torch_bytes({"model": dense_state()}, as_zip=as_zip)
    assert len(data) > 50_000
    path = tmp_path / "cut.pth"
    path.write_bytes(data[: int(len(data) * part)])
    message = assert_refused(fresh_backbone(), path, "it is no", "torch checkpoint", "fetch it again")
    assert "run code" not in message


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "old format"])
def test_torch_file_truncated_anywhere_in_its_header(tmp_path: Path, as_zip: bool) -> None:
    """The first 1,500 bytes in steps of 7: opcodes and their operands are cut in many ways.

    What the message says is left open, because the name of a harmless class that is cut is the name of another one.
    """
    data = torch_bytes({"model": dense_state()}, as_zip=as_zip)
    path = tmp_path / "cut.pth"
    for length in range(0, 1500, 7):
        path.write_bytes(data[:length])
        assert_refused(nn.Identity(), path, "it ")


@pytest.mark.parametrize("length", [1, 7, 8, 50, 2000, 100_000, -1])
def test_truncated_safetensors(tmp_path: Path, length: int) -> None:
    path = tmp_path / "cut.safetensors"
    safetensors.torch.save_file(dense_state(), path)
    path.write_bytes(path.read_bytes()[:length])
    assert_refused(fresh_backbone(), path, "it is no whole safetensors file", "fetch it again")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n",
        b"\r\n<html>Too many requests</html>",
        b"404: Not Found",
        b'{"error": "Repository not found"}',
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 96443\n",
        bytes(range(256)) * 20,
    ],
    ids=["empty", "html", "html after a line", "404", "json", "git lfs pointer", "bytes"],
)
def test_files_that_are_no_checkpoint(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"page.{suffix}"
    path.write_bytes(content)
    assert_refused(fresh_backbone(), path, "fetch it again")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_missing_file_and_directory(tmp_path: Path, suffix: str) -> None:
    assert_refused(fresh_backbone(), tmp_path / f"missing.{suffix}", "no such file", "check the path")
    directory = tmp_path / f"directory.{suffix}"
    directory.mkdir()
    assert_refused(fresh_backbone(), directory, "is a folder", "check the path")


# Files that would run code


class RunsCommand:
    """Unpickling it would create the file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"echo > '{self.target}'",)


class OpensFile(RunsCommand):
    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.target), "w")


@pytest.mark.parametrize("kind", [RunsCommand, OpensFile])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("form", ["zip", "old format", "bare pickle"])
def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, kind: type[RunsCommand], form: str, protocol: int) -> None:
    target = tmp_path / "created"
    value = {"model": {**dense_state(), "norm_list.0.bias": kind(target)}}
    path = tmp_path / "unsafe.pth"
    if form == "bare pickle":
        path.write_bytes(pickle.dumps({"model": kind(target)}, protocol=protocol))
    else:
        torch.save(value, path, _use_new_zipfile_serialization=form == "zip", pickle_protocol=protocol)
    message = assert_refused(fresh_backbone(), path)
    assert not target.exists()
    if protocol == 2:  # torch reads no other protocol far enough to see what is called
        called = f"{os.system.__module__}.system" if kind is RunsCommand else "io.open"
        assert "not read, because that could run code" in message and called in message


def test_the_unsafe_objects_are_unsafe(tmp_path: Path) -> None:
    """The test above would pass for objects that do nothing."""
    for kind in (RunsCommand, OpensFile):
        target = tmp_path / kind.__name__
        opened = pickle.loads(pickle.dumps(kind(target)))
        if isinstance(opened, io.IOBase):
            opened.close()
        assert target.exists()


def test_other_classes_are_refused_by_name(tmp_path: Path) -> None:
    """A whole module, which old training scripts saved instead of its state dict."""
    torch.save(fresh_backbone(), tmp_path / "module.pth")
    assert_refused(
        fresh_backbone(), tmp_path / "module.pth", "twins_dense.models.backbone.TwinsBackbone", "state dict alone"
    )


def test_round_trip_through_both_formats(tmp_path: Path) -> None:
    net = random_backbone(SLIM_SVT)
    torch.save(net.state_dict(), tmp_path / "a.pth")
    second = fresh_backbone(weights=tmp_path / "a.pth")
    safetensors.torch.save_file(second.state_dict(), tmp_path / "b.safetensors")
    third = fresh_backbone(weights=tmp_path / "b.safetensors")
    assert_same(third.state_dict(), net.state_dict())


# What training code saves beside the weights


def legacy_values() -> dict[str, Any]:
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    net = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(2)).sum().backward()
    optimizer.step()
    return {
        "optimizer": optimizer.state_dict(),
        "args": Namespace(lr=0.1, output=Path("out")),
        "max_accuracy": np.float64(81.7),
        "others": [np.float32(1), np.int64(3), np.bool_(True), np.str_("x"), {np.int64(5): 1}],
        "array": np.arange(3),
        "objects": np.array([None, "x"], dtype=object),
        "message_hub": {"log_scalars": {"train/loss": history}, "runtime_info": {}},
    }


@pytest.mark.parametrize("numpy_core", [b"numpy._core", b"numpy.core"])
@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "old format"])
def test_values_beside_the_weights(tmp_path: Path, as_zip: bool, numpy_core: bytes) -> None:
    """Optimizer states, arguments, numpy's scalars and arrays under both of its names, MMEngine's log history."""
    state = classifier_state()
    content = torch_bytes({"model": state, **legacy_values()}, as_zip=as_zip)
    assert b"numpy._core.multiarray" in content and b"HistoryBuffer" in content and b"getattr" in content
    if not as_zip:  # a zip file's checksums would be wrong
        content = content.replace(b"numpy._core", numpy_core)
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(content)
    net = fresh_backbone(level_norm=False)
    td.load_weights(net, path)
    assert_same(net.state_dict(), {name: state[name] for name in net.state_dict()})


def test_allowed_names_are_not_looked_up(tmp_path: Path) -> None:
    """`getattr`, which MMEngine's log history names, gives a placeholder and no attribute."""

    class Getter:
        def __reduce__(self) -> tuple[Any, ...]:
            return getattr, ("text", "upper")

    torch.save({"model": dense_state(), "x": Getter()}, tmp_path / "a.pth")
    assert type(read_checkpoint(tmp_path / "a.pth")["x"]).__name__ == "_Placeholder"
    assert td.load_weights(fresh_backbone(), tmp_path / "a.pth").loaded


def test_everything_refused_is_named(tmp_path: Path) -> None:
    from collections import defaultdict
    from fractions import Fraction

    torch.save({"model": dense_state(), "a": Fraction(1, 3), "b": defaultdict(list)}, tmp_path / "a.pth")
    assert_refused(fresh_backbone(), tmp_path / "a.pth", "it holds builtins.list, collections.defaultdict, fractions.")
