"""Recognise and convert state dicts of the official code, timm, mmpretrain and mmseg."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import TwinsError, did_you_mean, shown
from ..models.spec import TwinsSpec, get_spec, list_variants
from .formats import (
    COLUMNS,
    COMPANIONS,
    FORMATS,
    KEY_TABLE,
    NORM_EPS,
    PARENTS,
    PREFIXES,
    SHELLS,
    TASKS,
    WRAPPERS,
    NormEps,
)


@dataclass(frozen=True)
class RecognisedState:
    """A state dict in a known format, split into its parts.

    Attributes:
        format: "official" (timm has the same names), "mmpretrain" or "mmseg".
        variant: Name of the variant, or a description of a custom Twins.
        norm_eps: LayerNorm epsilon of the project that uses this format.
        state: Backbone, `norm` and `head` under official names. Unknown names in the backbone are unchanged.
        companions: The other parts of the model around the backbone (`neck.*`, `decode_head.*`), unchanged.
    """

    format: str
    variant: str
    norm_eps: NormEps
    state: dict[str, Any]
    companions: dict[str, Any]


@dataclass(frozen=True)
class Conversion:
    """A converted state dict.

    Attributes:
        source: Format before the conversion.
        variant: Name of the variant, or a description of a custom Twins.
        task: "backbone", "classifier" or "segmentor".
        state: The converted state dict.
        dropped: Official names of the entries that were dropped, because the task does not include them.
        norm_eps: Differences between the LayerNorm epsilons of the two projects; "" if there are none.
    """

    source: str
    variant: str
    task: str
    state: dict[str, Any]
    dropped: tuple[str, ...]
    norm_eps: str


def unwrap(checkpoint: Any) -> Mapping[str, Any]:
    """Return the state dict in a checkpoint: the checkpoint itself, or its entry under one of the known keys.

    Raises:
        TwinsError: If there is no mapping of names to values.
    """
    for _ in WRAPPERS:  # a limit, so that the loop ends even if a mapping contains itself
        if not isinstance(checkpoint, Mapping):
            break
        inner = next((key for key in WRAPPERS if checkpoint.get(key) is not None), None)
        if inner is None:
            break
        checkpoint = checkpoint[inner]
    if not isinstance(checkpoint, Mapping) or not all(isinstance(key, str) for key in checkpoint):
        raise TwinsError(f"it holds a {type(checkpoint).__name__} instead of a state dict: give a file with one")
    return checkpoint


def recognise(state: Mapping[str, Any]) -> RecognisedState:
    """Recognise the format of a state dict by its keys, and return its parts under official names.

    Raises:
        TwinsError: If it is not the state dict of a Twins model, or if it has values that are not tensors.
    """
    for shell in SHELLS:
        if all(key.startswith(shell) for key in state):
            state = {key.removeprefix(shell): value for key, value in state.items()}
    anchor = re.compile(r"(?P<parents>.*?)(?P<name>patch_embeds\.0\.(proj|projection)\.weight)")
    match = next((found for key in state if (found := anchor.fullmatch(key))), None)
    if match is None or not _made_of_parents(match["parents"]):
        listed = ", ".join(map(shown, list(state)[:3])) or "no keys"
        raise TwinsError(
            f"it is not a Twins state dict (it has {listed}, but no patch_embeds.0.proj.weight): "
            "give a file from the official repository, timm, mmpretrain or mmseg"
        )
    parents = match["parents"]
    foreign = next((key for key, value in state.items() if not isinstance(value, torch.Tensor)), None)
    if foreign is not None or state[match[0]].dim() != 4:
        raise TwinsError(
            f"its entry {shown(foreign or match[0])!r} is not a parameter of a Twins model: give a file with weights"
        )

    inside = {key.removeprefix(parents): value for key, value in state.items() if key.startswith(parents)}
    outside = {key: value for key, value in state.items() if not key.startswith(parents)}
    if match["name"] == "patch_embeds.0.proj.weight":
        format = "official"
    else:
        format = "mmpretrain" if any(key.startswith("stages.") for key in inside) else "mmseg"
    names = _names(inside, format)
    companions = {key: outside.pop(key) for key in list(outside) if key not in names and _is_companion(key, parents)}
    model = _rename({**inside, **outside}, names)
    return RecognisedState(format, _describe(model), _norm_eps(format, model), model, companions)


def convert(state: Mapping[str, Any], *, to: str, task: str | None = None) -> Conversion:
    """Convert a state dict to another format. Tensors are not copied, except those that mmseg stacks.

    Args:
        state: State dict of any known format.
        to: Target format, one of `FORMATS`.
        task: "backbone" for the backbone alone, with the names of the project's backbone class; "classifier" or
            "segmentor" for a whole model of the project. `None` keeps as much as the target format has a place for.

    Raises:
        TwinsError: If the format or the task is unknown, if the format has no model for the task, or if the
            format has no name for an entry of this task.
    """
    if to not in FORMATS:
        raise TwinsError(f"unknown format {to!r}{did_you_mean(to, FORMATS)}")
    if task is not None and task not in TASKS:
        raise TwinsError(f"unknown task {task!r}{did_you_mean(task, TASKS)}")
    found = recognise(state)
    has = {
        "backbone": True,
        "classifier": "head.weight" in found.state,
        "segmentor": any(key.startswith("decode_head.") for key in found.companions),
    }
    possible = [name for name in PREFIXES[to] if has[name]]
    task = task or possible[-1]
    if task not in possible:
        raise TwinsError(
            f"a {task} in {to} format cannot be made from this state dict of {found.variant}: "
            f"choose {' or '.join(possible)}, or another format"
        )

    names = _names(found.state, "official", to)
    kept = {key: value for key, value in found.state.items() if task == "classifier" or not _of_classifier(key)}
    stuck = next((key for key in kept if key not in names), None)
    if stuck is not None:
        raise TwinsError(f"{shown(stuck)} does not exist in {to} format: choose another format, or weights without it")
    prefix = PREFIXES[to][task]
    converted = {
        name if name.startswith("head.") else prefix + name: value for name, value in _rename(kept, names).items()
    }
    dropped = [key for key in found.state if key not in kept]
    if task == "segmentor":
        converted.update(found.companions)
    else:
        dropped += found.companions
    norm_eps = found.norm_eps.differences(_norm_eps(to, found.state), to)
    return Conversion(found.format, found.variant, task, converted, tuple(dropped), norm_eps)


def convert_state_dict(state: Mapping[str, Any], *, to: str, task: str | None = None) -> dict[str, Any]:
    """Convert a state dict to the names of another project.

    Args:
        state: State dict, or a checkpoint with one, in any known format.
        to: "official", "timm", "mmpretrain" or "mmseg".
        task: "backbone" for the backbone alone, with the names of the project's backbone class; "classifier" or
            "segmentor" for a whole model of the project. `None` keeps as much as the target format has a place for.

    Returns:
        The converted state dict. Its tensors are those of `state`, except those that mmseg stacks.

    Raises:
        TwinsError: If it is not the state dict of a Twins model, if the format or the task is unknown, or if the target
            format has no name for an entry.
    """
    return convert(unwrap(state), to=to, task=task).state


def _names(state: Mapping[str, Any], source: str, to: str = "official") -> dict[str, str]:
    """Map source names to target names, for all parameters that a model with the blocks of `state` can have."""
    blocks = {match[0] for key in state if (match := re.match(r"(blocks|stages|layers)\.\d+\.\d+(?=\.)", key))}
    is_local = {block.partition(".")[2]: f"{block}.attn.qkv.weight" in state for block in blocks}
    stages = sorted({match[1] for key in state if (match := re.match(r"patch_embeds\.(\d{1,9})\.", key))}, key=int)
    places = {
        "s": stages,
        "last": stages[-1:],
        "b": list(is_local),
        "l": [block for block, local in is_local.items() if local],
        "g": [block for block, local in is_local.items() if not local],
    }
    return {
        theirs.format(p=p, **place): ours.format(p=p, **place)
        for theirs, ours in ((row[COLUMNS[source]], row[COLUMNS[to]]) for row in KEY_TABLE)
        if theirs is not None and ours is not None and not (to == "timm" and ours.startswith("norm_list."))
        for place in _places_of(theirs + ours, places)
        for p in ("weight", "bias")
    }


def _places_of(template: str, places: Mapping[str, list[str]]) -> Iterator[dict[str, str]]:
    letter = next((letter for letter in places if f"{{{letter}}}" in template), None)
    yield from ({letter: place} for place in places[letter]) if letter else [{}]


def _rename(state: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Rename entries, and split or stack q and kv. Names that are not in `names` are unchanged."""
    renamed: dict[str, Any] = {}
    for name, value in state.items():
        if f"{name}:q" in names and value.dim() > 0:
            dim = value.shape[0] // 3
            renamed[names[f"{name}:q"]] = value[:dim].clone()
            renamed[names[f"{name}:kv"]] = value[dim:].clone()
            continue
        new_name, _, part = names.get(name, name).partition(":")
        if not part:
            renamed[new_name] = value
        elif new_name not in renamed:
            renamed[new_name] = _stacked(state, name.replace(".attn.kv.", ".attn.q."))
    return renamed


def _stacked(state: Mapping[str, Any], query: str) -> torch.Tensor:
    """Return the rows of q followed by those of kv."""
    rows, other_rows = state.get(query), state.get(query.replace(".attn.q.", ".attn.kv."))
    if (
        rows is None
        or other_rows is None
        or rows.dim() * other_rows.dim() == 0
        or rows.shape[1:] != other_rows.shape[1:]
    ):
        raise TwinsError(f"{shown(query)} and its kv do not fit together: give a complete state dict")
    return torch.cat([rows, other_rows])


def _norm_eps(format: str, state: Mapping[str, Any]) -> NormEps:
    return NORM_EPS[format][_has_local_attention(state)]


def _of_classifier(key: str) -> bool:
    return key.startswith(("norm.", "head."))


def _is_companion(key: str, parents: str) -> bool:
    """Return whether an entry belongs to another part of the model around the backbone, such as a head or an FPN."""
    return parents.startswith("backbone.") and key.partition(".")[0] in ("backbone", *COMPANIONS)


def _made_of_parents(prefix: str) -> bool:
    while prefix:
        part = next((part for part in PARENTS if prefix.startswith(part)), None)
        if part is None:
            return False
        prefix = prefix.removeprefix(part)
    return True


def _describe(state: Mapping[str, Any]) -> str:
    """Return the variant of an official state dict, recognised by its dims and depths, or a description."""
    for name in list_variants():
        if _dims_and_depths_of(state) == _dims_and_depths_of_spec(get_spec(name)):
            return name
    dims, depths, _ = _dims_and_depths_of(state)
    return f"a custom Twins with dims {dims} and depths {depths}"


def _dims_and_depths_of(state: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...], bool]:
    dims: list[int] = []
    depths: list[int] = []
    while (key := f"patch_embeds.{len(dims)}.proj.weight") in state:
        stage = len(dims)
        dims.append(len(state[key]) if state[key].dim() else 0)
        depths.append(len({k.split(".")[2] for k in state if k.startswith(f"blocks.{stage}.")}))
    return tuple(dims), tuple(depths), _has_local_attention(state)


def _has_local_attention(state: Mapping[str, Any]) -> bool:
    return "blocks.0.0.attn.qkv.weight" in state


def _dims_and_depths_of_spec(spec: TwinsSpec) -> tuple[tuple[int, ...], tuple[int, ...], bool]:
    return (
        tuple(stage.dim for stage in spec.stages),
        tuple(stage.depth for stage in spec.stages),
        spec.stages[0].is_local(0),
    )
