"""Read a checkpoint without running anything in it, load it strictly, report what happened."""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import TwinsError
from ..spec import TwinsSpec
from .keymap import NormEps, RecognisedState, convert, recognise, unwrap

_SHOWN = 3


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did, by official parameter names.

    Attributes:
        source: the file.
        variant: what the checkpoint was recognised as.
        format: "official" (timm's names are the same), "mmpretrain" or "mmseg".
        loaded: parameters that now hold the checkpoint's values.
        initialised: parameters that keep their fresh values: `norm_list.*` where the checkpoint has none.
        dropped: entries of the checkpoint that this model has no use for: `head.*`, `norm.*`, unbuilt stages, and
            what stands around the backbone of a dense model (`decode_head.*`).
        norm_eps: where the project of that format computes LayerNorm with another epsilon than this model: which.
    """

    source: str
    variant: str
    format: str
    loaded: tuple[str, ...]
    initialised: tuple[str, ...]
    dropped: tuple[str, ...]
    norm_eps: str

    def __str__(self) -> str:
        return (
            f"{self.source} ({self.variant}, {self.format} names): {len(self.loaded)} parameters loaded, "
            f"{len(self.initialised)} freshly initialised{_listed(self.initialised)}, "
            f"{len(self.dropped)} dropped{_listed(self.dropped)}"
            + (f"; {self.format} computes with LayerNorm {self.norm_eps}" if self.norm_eps else "")
        )


def read_checkpoint(path: str | PathLike[str]) -> Any:
    """Everything a `.safetensors` or torch checkpoint holds, on the CPU, read without running anything in it.

    Raises:
        TwinsError: for a missing, truncated or unsafe file, or one that is no checkpoint at all.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise TwinsError(f"weights {str(path)!r}: {what}; check the path")
    try:
        return _read(path)
    except TwinsError as error:
        raise TwinsError(f"weights {str(path)!r}: {error}") from None


def load_weights(net: nn.Module, source: str | PathLike[str] | Mapping[str, Any]) -> LoadReport:
    """Load a checkpoint into a backbone or classifier of this package, strictly.

    The file holds a state dict of the official code, timm, mmpretrain or mmseg, at the top or under `state_dict`,
    `model`, `state_dict_ema` or `model_ema`: a backbone, a classifier, or a detector or segmentor around one
    (`backbone.`, `bottom_up.`). It is recognised by its keys.

    Args:
        net: from `create_backbone` or `create_classifier`; unchanged where an error is raised.
        source: a file, or a state dict or checkpoint already in memory.

    Returns:
        What was loaded, freshly initialised and dropped.

    Raises:
        TwinsError: where a parameter is missing, left over or of another shape; the message shows the first ones.
    """
    if isinstance(source, Mapping):
        name, found = "state dict", recognise(unwrap(source))
    else:
        name, found = str(source), _recognise_file(source)
    state, target = found.model, net.state_dict()
    spec = getattr(net, "spec", None)

    missing = sorted(target.keys() - state.keys())
    # A checkpoint with some level norms is not an ImageNet one, and then none may be missing.
    has_level_norms = any(key.startswith("norm_list.") for key in state)
    initialised = [key for key in missing if key.startswith("norm_list.") and not has_level_norms]
    surplus = sorted(state.keys() - target.keys())
    dropped = [key for key in surplus if _may_be_dropped(key, target)]

    misfit = describe_misfit(
        {key: value for key, value in state.items() if key not in dropped},
        {key: value for key, value in target.items() if key not in initialised},
    )
    if misfit:
        raise TwinsError(
            f"weights {name!r}: this is {found.variant}, the model is {getattr(spec, 'name', type(net).__name__)}; "
            f"{misfit}. Give weights of the model's variant and kind"
        )
    loaded = sorted(target.keys() & state.keys())
    net.load_state_dict({key: state[key] for key in loaded}, strict=False)
    return LoadReport(
        name,
        found.variant,
        found.format,
        tuple(loaded),
        tuple(initialised),
        (*dropped, *sorted(found.companions)),
        "" if spec is None else _norm_eps_differences(found.norm_eps, spec),
    )


def load_segmentor(model: nn.Module, source: str | PathLike[str] | Mapping[str, Any]) -> LoadReport:
    """Load a whole segmentor into one with a Twins `backbone` of this package, strictly.

    The checkpoint is mmseg's, whose backbone has other names, the official repository's, or of a run of ours. The way
    back is `convert_state_dict(model.state_dict(), to="mmseg")`.

    Raises:
        TwinsError: where it is of another model; the message shows the first entries that don't fit.
    """
    if isinstance(source, Mapping):
        state, report = fit_segmentor(model, source, "state dict")
    else:
        state, report = fit_segmentor(model, read_checkpoint(source), str(source))
    model.load_state_dict(state)
    return report


def fit_segmentor(model: nn.Module, checkpoint: Any, name: str) -> tuple[dict[str, Any], LoadReport]:
    """What `load_segmentor` loads, under the names of the model, and its report; `name` is for messages."""
    try:
        found = recognise(unwrap(checkpoint))
        conversion = convert(unwrap(checkpoint), to="official", task="segmentor")
    except TwinsError as error:
        raise TwinsError(f"weights {name!r}: {error}") from None
    misfit = describe_misfit(conversion.state, model.state_dict())
    spec = getattr(model.backbone, "spec", None)
    if misfit:
        raise TwinsError(
            f"weights {name!r}: this is a segmentor with {found.variant}, the model has "
            f"{getattr(spec, 'name', type(model.backbone).__name__)}; {misfit}. "
            "Give the config and overrides of its model"
        )
    differences = "" if spec is None else _norm_eps_differences(found.norm_eps, spec)
    loaded = tuple(sorted(conversion.state))
    return conversion.state, LoadReport(name, found.variant, found.format, loaded, (), conversion.dropped, differences)


def describe_misfit(state: Mapping[str, Any], target: Mapping[str, Any]) -> str:
    """The first entries that keep `state` from filling `target` exactly, with their number; empty where it does."""
    problems = [f"{key} is missing" for key in sorted(target.keys() - state.keys())]
    problems += [f"{key} {_shape(state[key])} has no place" for key in sorted(state.keys() - target.keys())]
    problems += [
        f"{key} is {_shape(state[key])} where the model has {_shape(target[key])}"
        for key in sorted(target.keys() & state.keys())
        if _shape(state[key]) != _shape(target[key])
    ]
    if not problems:
        return ""
    more = "; …" if len(problems) > _SHOWN else ""
    return f"entries that don't fit ({len(problems)}): {'; '.join(problems[:_SHOWN])}{more}"


def _recognise_file(path: str | PathLike[str]) -> RecognisedState:
    checkpoint = read_checkpoint(path)
    try:
        return recognise(unwrap(checkpoint))
    except TwinsError as error:
        raise TwinsError(f"weights {str(path)!r}: {error}") from None


def _norm_eps_differences(theirs: NormEps, spec: TwinsSpec) -> str:
    ours = NormEps(spec.norm_eps, spec.reduction_norm_eps, spec.reduction_norm_eps)
    return ", ".join(
        f"eps {their_eps:g} in {place.replace('_', ' ')} (here {our_eps:g})"
        for place, their_eps, our_eps in zip(NormEps._fields, theirs, ours, strict=True)
        if their_eps != our_eps
    )


def _may_be_dropped(key: str, target: Mapping[str, Any]) -> bool:
    """The declared drops: a classifier's end, and stages and levels that this backbone doesn't have."""
    group, _, rest = key.partition(".")
    names = {name.partition(".")[0] for name in target}
    if group in ("head", "norm"):
        return group not in names
    stage = rest.partition(".")[0]
    if group in ("patch_embeds", "blocks", "pos_block", "norm_list"):
        return group in names and not any(name.startswith(f"{group}.{stage}.") for name in target)
    return False


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise TwinsError(f"it is no whole safetensors file ({_first_line(error)}); fetch it again") from None
    try:
        # The official training script saves its arguments beside the weights; a Namespace only holds values.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # about the pickle protocol, where the error says more
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what torch raises for a broken file depends on where it breaks off
        # torch names what it refuses to run: "GLOBAL io.open was not an allowed", "GLOBAL os.system whose module is".
        refused = re.search(r"GLOBAL (\S+) (?:was not|whose)", str(error))
        if refused is not None:
            raise TwinsError(
                f"it holds {refused[1]} beside tensors and is not read, because that could run code; "
                "save its state dict alone"
            ) from None
        raise TwinsError(f"it is no whole torch checkpoint ({_first_line(error)}); fetch it again") from None


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(getattr(value, "shape", ()))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _listed(names: tuple[str, ...]) -> str:
    if not names:
        return ""
    groups = sorted({name.partition(".")[0] + ".*" for name in names})
    return f" ({', '.join(groups)})"
