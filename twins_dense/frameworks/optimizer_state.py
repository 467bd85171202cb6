"""Check the state of an optimiser in a checkpoint before a run is resumed from it."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TwinsError

_SIDES = (2, 3, 5, 7)  # of the parameters that are tried


def check_optimizer_state(optimizer: torch.optim.Optimizer, state: Any, checkpoint: str | Path) -> None:
    """Raise `TwinsError` unless an optimiser can continue from the state in a checkpoint.

    torch accepts the state of another optimiser or an empty one. The run would then fail in its first step, or lose the
    running means of its gradients without a word.

    Args:
        optimizer: The optimiser of the run, which is not changed.
        state: Its state in the checkpoint.
        checkpoint: Path of the checkpoint, for messages.
    """
    problem = next(_problems(optimizer, state), None)
    if problem:
        raise TwinsError(
            f"checkpoint {str(checkpoint)!r} cannot be resumed: {problem}. Use the config and the overrides that it "
            "was trained with, or start a new run from its weights"
        )


def _problems(optimizer: torch.optim.Optimizer, state: Any) -> Iterator[str]:
    kind = type(optimizer).__name__
    if not isinstance(state, Mapping) or not isinstance(state.get("state"), Mapping):
        yield "it has no state of an optimiser"
        return
    groups = state.get("param_groups")
    if not isinstance(groups, list) or not all(
        isinstance(group, Mapping) and isinstance(group.get("params"), list) for group in groups
    ):
        yield "the state of its optimiser has no groups of parameters"
        return
    counts = [[len(group["params"]) for group in some] for some in (groups, optimizer.param_groups)]
    if counts[0] != counts[1]:
        listed = [f"{len(some)} groups of {sum(some)} parameters" for some in counts]
        yield f"its optimiser has {listed[0]}, that of the config has {listed[1]}, or they are grouped otherwise"
        return
    keeps_state = has_state = False
    for saved, group in zip(groups, optimizer.param_groups, strict=True):
        expected: dict[int, Mapping[str, Any] | None] = {}
        for index, parameter in zip(saved["params"], group["params"], strict=True):
            if parameter.ndim not in expected:
                # torch continues with the settings in the checkpoint.
                expected[parameter.ndim] = _state_after_a_step(optimizer, {**group, **saved}, parameter)
                if expected[parameter.ndim] is None and _state_after_a_step(optimizer, group, parameter) is not None:
                    yield f"the settings of its optimiser do not suit {kind}"
                    return
            wanted = expected[parameter.ndim]
            if wanted is None:
                continue
            keeps_state |= bool(wanted)
            found = state["state"].get(index) if isinstance(index, int) else None
            if found is None:  # parameters without a gradient have no state
                continue
            has_state = True
            names = sorted(found) if isinstance(found, Mapping) and all(isinstance(key, str) for key in found) else None
            if names != sorted(wanted):
                yield f"its optimiser has stored {names}, but {kind} stores {sorted(wanted)}"
                return
            for name, value in wanted.items():
                if not _fits(found[name], value, parameter):
                    yield f"{name} in the state of its optimiser does not suit a parameter of {tuple(parameter.shape)}"
                    return
    if keeps_state and not has_state:
        yield "the state of its optimiser is empty"


def _fits(found: Any, expected: Any, parameter: Tensor) -> bool:
    if not isinstance(expected, Tensor) or expected.ndim == 0:  # older versions of torch count steps as numbers
        return isinstance(found, (int, float)) or (isinstance(found, Tensor) and found.numel() == 1)
    if not isinstance(found, Tensor) or not bool(found.isfinite().all()):
        return False
    return found.shape == parameter.shape if expected.shape == _SIDES[: parameter.ndim] else found.ndim == expected.ndim


def _state_after_a_step(
    optimizer: torch.optim.Optimizer, settings: Mapping[str, Any], like: Tensor
) -> Mapping[str, Any] | None:
    """Return the state that an optimiser keeps for a parameter like this; `None` if it cannot be tried."""
    parameter = nn.Parameter(like.new_zeros(_SIDES[: like.ndim]))
    parameter.grad = torch.zeros_like(parameter)
    trial = copy.copy(optimizer)  # without its hooks
    trial.state = defaultdict(dict)
    trial.param_groups = [{**settings, "params": [parameter]}]
    try:
        type(optimizer).step(trial)
    except Exception:  # of any optimiser with any settings
        return None
    return trial.state[parameter]
