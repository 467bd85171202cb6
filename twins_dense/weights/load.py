"""Load checkpoints strictly, and report what was loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TwinsError, shown
from ..models.spec import TwinsSpec
from .download import fetch_weights
from .formats import NormEps
from .keymap import RecognisedState, convert, recognise, unwrap
from .read import read_checkpoint

_SHOWN = 3
# An ImageNet classifier can be loaded, without its head, into a classifier with a different number of classes.
_IMAGENET_CLASSES = 1000
# Types of entries that `load_state_dict` converts to parameters and to counters as they are meant.
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True)
class LoadReport:
    """Result of `load_weights`, by official parameter names.

    Attributes:
        source: Path or catalog name of the checkpoint, or "state dict".
        variant: Name of the variant, or a description of a custom Twins.
        format: Format of the names: "official" (timm has the same names), "mmpretrain" or "mmseg".
        loaded: Parameters that were loaded.
        initialised: Parameters that stay freshly initialised: `norm_list.*` if the checkpoint has none, and `head.*` if
            the classifier does not have the 1000 classes of the checkpoint.
        dropped: Entries of the checkpoint that the model does not use: `head.*`, `norm.*`, stages that are not built,
            and the parts of the model around the backbone (`decode_head.*`).
        norm_eps: Differences between the LayerNorm epsilons of the format's project and those of the model; "" if there
            are none.
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
    """Load a checkpoint strictly into a backbone or classifier of this package.

    The format is recognised by the parameter names, which may be those of the official code, timm, mmpretrain or mmseg.
    The checkpoint is a state dict, or has one under `state_dict`, `model`, `state_dict_ema` or `model_ema`. The state
    dict may belong to a backbone, to a classifier, or to a detector or segmentor with a Twins backbone (`backbone.`,
    `bottom_up.`).

    Args:
        net: Model from `create_backbone` or `create_classifier`. It is unchanged if an error is raised.
        source: Path of a file, a catalog name (see `twins-dense weights list`), which is downloaded once, or a state
            dict or checkpoint in memory.

    Returns:
        Report of the parameters that were loaded, freshly initialised and dropped.

    Raises:
        TwinsError: If a parameter is missing, unexpected or of another shape; the message shows the first three. Also
            if one has another type than floating-point numbers, or values that are not finite.
    """
    if isinstance(source, Mapping):
        name, found = "state dict", recognise(unwrap(source))
    else:
        name, found = str(source), _recognise_file(source)
    state, target = found.state, net.state_dict()
    spec = getattr(net, "spec", None)

    missing = sorted(target.keys() - state.keys())
    # A checkpoint with level norms comes from a dense model, so none of them may be missing.
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
    defect = describe_defect(state, {key: target[key] for key in loaded})
    if defect:
        raise TwinsError(f"weights {name!r}: {defect}")
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
    """Load a checkpoint strictly into a whole segmentor whose `backbone` comes from this package.

    The checkpoint may come from mmseg, from the official repository or from a training run of this package. To convert
    back, call `convert_state_dict(model.state_dict(), to="mmseg")`.

    Args:
        model: Segmentor. It is unchanged if an error is raised.
        source: As in `load_weights`.

    Returns:
        Report of the parameters that were loaded and dropped.

    Raises:
        TwinsError: If the checkpoint belongs to another model. The message shows the first three differences.
    """
    if isinstance(source, Mapping):
        state, report = fit_segmentor(model, source, "state dict")
    else:
        state, report = fit_segmentor(model, read_state_dict(source), str(source))
    model.load_state_dict(state)
    return report


def fit_segmentor(model: nn.Module, checkpoint: Any, name: str) -> tuple[dict[str, Any], LoadReport]:
    """Return the state dict for `load_segmentor`, with the model's names, and the report. Errors mention `name`."""
    try:
        found = recognise(unwrap(checkpoint))
        conversion = convert(unwrap(checkpoint), to="official", task="segmentor")
    except TwinsError as error:
        raise TwinsError(f"weights {name!r}: {error}") from None
    misfit = describe_misfit(conversion.state, model.state_dict())
    defect = "" if misfit else describe_defect(conversion.state, model.state_dict())
    spec = getattr(model.backbone, "spec", None)
    if defect:
        raise TwinsError(f"weights {name!r}: {defect}")
    if misfit:
        raise TwinsError(
            f"weights {name!r}: this is a segmentor with {found.variant}, the model has "
            f"{getattr(spec, 'name', type(model.backbone).__name__)}; {misfit}. "
            "Give the config and overrides that it was trained with"
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
    """Describe the number of differences in names and shapes and the first three; return "" if there are none."""
    problems = [f"{key} is missing" for key in sorted(target.keys() - state.keys())]
    problems += [f"{shown(key)} {_shape(state[key])} is unexpected" for key in sorted(state.keys() - target.keys())]
    problems += [
        f"{key} is {_shape(state[key])} but the model has {_shape(target[key])}"
        for key in sorted(target.keys() & state.keys())
        if _shape(state[key]) != _shape(target[key])
    ]
    if not problems:
        return ""
    more = "; …" if len(problems) > _SHOWN else ""
    return f"entries that do not fit ({len(problems)}): {'; '.join(problems[:_SHOWN])}{more}"


def describe_defect(state: Mapping[str, Any], target: Mapping[str, Any]) -> str:
    """Describe the first entry whose type a model cannot use, or the number of values that are not finite.

    Values count as they will be in the model: 1e300 is not finite in float32. Return "" if all entries are good.

    Args:
        state: State dict with the names and shapes of `target`; others are ignored.
        target: State dict of the model.
    """
    num_infinite, first = 0, ""
    for key in target.keys() & state.keys():
        value, wanted = state[key], target[key].dtype
        if not isinstance(value, Tensor) or not _is_dense_and_real(value):
            return f"its entry {key!r} is not a dense, real tensor: save it as one"
        if value.dtype not in (_FLOATS if wanted.is_floating_point else _INTEGERS):
            return f"its entry {key!r} has the type {value.dtype}: convert it to {wanted}, which the model has"
        num_bad = int((~value.to(wanted).isfinite()).sum())
        if num_bad and (not num_infinite or key < first):
            first = key
        num_infinite += num_bad
    if not num_infinite:
        return ""
    values = "1 of its values is" if num_infinite == 1 else f"{num_infinite:,} of its values are"
    return f"{values} not finite (the first in {first!r}): use a checkpoint from before they became so"


def read_state_dict(source: str | PathLike[str]) -> Mapping[str, Any]:
    """Read the state dict from a file, given by its path or catalog name.

    Raises:
        TwinsError: If the file cannot be read, or has tensors that are not dense, real and complete.
    """
    checkpoint = read_checkpoint(fetch_weights(source))
    try:
        state = unwrap(checkpoint)
    except TwinsError as error:
        raise TwinsError(f"weights {str(source)!r}: {error}") from None
    odd = next((key for key, value in state.items() if isinstance(value, Tensor) and not _is_plain(value)), None)
    if odd is not None:
        raise TwinsError(
            f"weights {str(source)!r}: its entry {shown(odd)!r} is not a dense, real tensor: save it as one"
        )
    return state


def _is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor is dense, real, and stored completely: a small file can declare a huge tensor."""
    if not _is_dense_and_real(tensor):
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _is_dense_and_real(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_complex() and not tensor.is_meta


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
    """Return whether an entry may be dropped: a classifier's `norm` or `head`, or part of a stage that is not built."""
    group, _, rest = key.partition(".")
    names = {name.partition(".")[0] for name in target}
    if group in ("head", "norm"):
        return group not in names
    stage = rest.partition(".")[0]
    if group in ("patch_embeds", "blocks", "pos_block", "norm_list"):
        is_stage = stage.isascii() and stage.isdecimal() and len(stage) < 3
        return is_stage and group in names and not any(name.startswith(f"{group}.{stage}.") for name in target)
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
