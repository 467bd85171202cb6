"""From the keys of a checkpoint to official parameter names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import TwinsError
from ..spec import TwinsSpec, get_spec, list_variants

# Where training code puts the state dict inside a checkpoint, looked up in this order: an averaged copy comes first.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
# Where models put the backbone: DistributedDataParallel, MMEngine models, detectron2's FPN models.
_PREFIXES = ("module.", "backbone.", "bottom_up.", "net.")
_ANCHOR = "patch_embeds.0.proj.weight"


def unwrap(checkpoint: Any) -> Mapping[str, Any]:
    """The state dict inside a checkpoint: a mapping of names to values, at the top or under known wrappers."""
    for _ in _WRAPPERS:  # nested at most once each, so that a mapping that holds itself ends too
        if not isinstance(checkpoint, Mapping):
            break
        inner = next((key for key in _WRAPPERS if checkpoint.get(key) is not None), None)
        if inner is None:
            break
        checkpoint = checkpoint[inner]
    if not isinstance(checkpoint, Mapping) or not all(isinstance(key, str) for key in checkpoint):
        raise TwinsError(f"it holds a {type(checkpoint).__name__} and no state dict: give a file with one")
    return checkpoint


def to_official(state: Mapping[str, Any]) -> dict[str, Any]:
    """Strip the prefixes that all backbone keys share; what stands outside that prefix stays as it is.

    Raises:
        TwinsError: where no key ends in the name that every official and timm state dict has.
    """
    prefix = next((key[: -len(_ANCHOR)] for key in state if key.endswith(_ANCHOR)), None)
    if prefix is None or not _made_of_known_prefixes(prefix):
        shown = ", ".join(list(state)[:3]) or "no keys"
        raise TwinsError(
            f"it is no official or timm Twins state dict (it has {shown}, and not {_ANCHOR}): "
            "give a file of the official repository or of timm"
        )
    state = {key.removeprefix(prefix): value for key, value in state.items()}
    foreign = next((key for key, value in state.items() if not hasattr(value, "shape")), None)
    if foreign is not None or len(state[_ANCHOR].shape) != 4:
        raise TwinsError(f"its entry {foreign or _ANCHOR!r} is no parameter of a Twins model: give a file with weights")
    return state


def describe(state: Mapping[str, Any]) -> str:
    """The variant that an official state dict belongs to, by the shapes and number of its blocks."""
    for name in list_variants():
        if _columns_of(state) == _columns_of_spec(get_spec(name)):
            return name
    dims, depths, _ = _columns_of(state)
    return f"a custom Twins with dims {dims} and depths {depths}"


def _columns_of(state: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...], bool]:
    dims: list[int] = []
    depths: list[int] = []
    while (key := f"patch_embeds.{len(dims)}.proj.weight") in state:
        stage = len(dims)
        dims.append(state[key].shape[0])
        depths.append(len({k.split(".")[2] for k in state if k.startswith(f"blocks.{stage}.")}))
    return tuple(dims), tuple(depths), "blocks.0.0.attn.qkv.weight" in state


def _columns_of_spec(spec: TwinsSpec) -> tuple[tuple[int, ...], tuple[int, ...], bool]:
    return (
        tuple(stage.dim for stage in spec.stages),
        tuple(stage.depth for stage in spec.stages),
        spec.stages[0].is_local(0),
    )


def _made_of_known_prefixes(prefix: str) -> bool:
    while prefix:
        part = next((part for part in _PREFIXES if prefix.startswith(part)), None)
        if part is None:
            return False
        prefix = prefix.removeprefix(part)
    return True
