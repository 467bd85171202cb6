"""Load a checkpoint strictly and report what happened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TwinsError
from ..models.spec import TwinsSpec
from .download import fetch_weights
from .formats import NormEps
from .keymap import RecognisedState, convert, recognise, unwrap
from .read import read_checkpoint

_SHOWN = 3
# ImageNet's classifiers lend their weights, without the head, to classifiers of other classes.
_IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did, by official parameter names.

    Attributes:
        source: the file.
        variant: what the checkpoint was recognised as.
        format: "official" (timm's names are the same), "mmpretrain" or "mmseg".
        loaded: parameters that now hold the checkpoint's values.
        initialised: parameters that keep their fresh values: `norm_list.*` where the checkpoint has none, and `head.*`
            of a classifier of other classes than the checkpoint's 1000 of ImageNet.
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


def load_weights(net: nn.Module, source: str | PathLike[str] | Mapping[str, Any]) -> LoadReport:
    """Load a checkpoint into a backbone or classifier of this package, strictly.

    The file holds a state dict of the official code, timm, mmpretrain or mmseg, at the top or under `state_dict`,
    `model`, `state_dict_ema` or `model_ema`: a backbone, a classifier, or a detector or segmentor around one
    (`backbone.`, `bottom_up.`). It is recognised by its keys.

    Args:
        net: from `create_backbone` or `create_classifier`; unchanged where an error is raised.
        source: a file, a name of the catalog (`twins-dense weights list`; it is downloaded once), or a state dict or
            checkpoint already in memory.

    Returns:
        What was loaded, freshly initialised and dropped.

    Raises:
        TwinsError: where a parameter is missing, left over or of another shape; the message shows the first ones.
    """
    if isinstance(source, Mapping):
        name, found = "state dict", recognise(unwrap(source))
    else:
        name, found = str(source), _recognise_file(source)
    state, target = found.state, net.state_dict()
    spec = getattr(net, "spec", None)

    missing = sorted(target.keys() - state.keys())
    # A checkpoint with some level norms is not an ImageNet one, and then none may be missing.
    has_level_norms = any(key.startswith("norm_list.") for key in state)
    initialised = [key for key in missing if key.startswith("norm_list.") and not has_level_norms]
    surplus = sorted(state.keys() - target.keys())
    dropped = [key for key in surplus if _may_be_dropped(key, target)]
    if _wants_another_head(state, target):
        initialised += ["head.bias", "head.weight"]
        dropped += ["head.bias", "head.weight"]

    misfit = describe_misfit(
        {key: value for key, value in state.items() if key not in dropped},
        {key: value for key, value in target.items() if key not in initialised},
    )
    if misfit:
        raise TwinsError(
            f"weights {name!r}: this is {found.variant}, the model is {getattr(spec, 'name', type(net).__name__)}; "
            f"{misfit}. Give weights of the model's variant and kind"
        )
    loaded = sorted((target.keys() & state.keys()) - set(initialised))
    net.load_state_dict({key: state[key] for key in loaded}, strict=False)
    return LoadReport(
        name,
        found.variant,
        found.format,
        tuple(loaded),
        tuple(initialised),
        (*dropped, *sorted(found.companions)),
        _norm_eps_differences(found, spec),
    )


def load_segmentor(model: nn.Module, source: str | PathLike[str] | Mapping[str, Any]) -> LoadReport:
    """Load a whole segmentor into one with a Twins `backbone` of this package, strictly.

    The checkpoint is mmseg's, whose backbone has other names, the official repository's, or of a run of ours. The way
    back is `convert_state_dict(model.state_dict(), to="mmseg")`. `source` is as `load_weights` takes it.

    Raises:
        TwinsError: where it is of another model; the message shows the first entries that don't fit.
    """
    if isinstance(source, Mapping):
        state, report = fit_segmentor(model, source, "state dict")
    else:
        state, report = fit_segmentor(model, read_state_dict(source), str(source))
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
    return conversion.state, LoadReport(
        name,
        found.variant,
        found.format,
        tuple(sorted(conversion.state)),
        (),
        conversion.dropped,
        _norm_eps_differences(found, spec),
    )


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


def read_state_dict(source: str | PathLike[str]) -> Mapping[str, Any]:
    """The state dict in a file, or in a file of the catalog by its name.

    Raises:
        TwinsError: for a file that can't be read, or has tensors that are not plain.
    """
    checkpoint = read_checkpoint(fetch_weights(source))
    try:
        state = unwrap(checkpoint)
    except TwinsError as error:
        raise TwinsError(f"weights {str(source)!r}: {error}") from None
    odd = next((key for key, value in state.items() if isinstance(value, Tensor) and not _is_plain(value)), None)
    if odd is not None:
        raise TwinsError(f"weights {str(source)!r}: its entry {odd!r} is no dense tensor of real numbers: save one")
    return state


def _is_plain(tensor: Tensor) -> bool:
    """Dense, real, and with each number in memory: a small file can promise a tensor of any size."""
    if tensor.layout != torch.strided or tensor.is_complex() or tensor.is_meta:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _recognise_file(path: str | PathLike[str]) -> RecognisedState:
    state = read_state_dict(path)
    try:
        return recognise(state)
    except TwinsError as error:
        raise TwinsError(f"weights {str(path)!r}: {error}") from None


def _norm_eps_differences(found: RecognisedState, spec: TwinsSpec | None) -> str:
    if spec is None:
        return ""
    return found.norm_eps.differences(NormEps(spec.norm_eps, *[spec.reduction_norm_eps] * 2), "here")


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


def _wants_another_head(state: Mapping[str, Any], target: Mapping[str, Any]) -> bool:
    names = ("head.weight", "head.bias")
    if not all(name in entries for name in names for entries in (state, target)):
        return False
    theirs, ours = ([_shape(entries[name]) for name in names] for entries in (state, target))
    return theirs != ours and theirs == [(_IMAGENET_CLASSES, *shape[1:]) for shape in ours]


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(getattr(value, "shape", ()))


def _listed(names: tuple[str, ...]) -> str:
    if not names:
        return ""
    groups = sorted({name.partition(".")[0] + ".*" for name in names})
    return f" ({', '.join(groups)})"
