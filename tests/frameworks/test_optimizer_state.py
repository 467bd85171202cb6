"""States of optimisers in checkpoints: those of the same optimiser are accepted, all others are refused in one line."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from twins_dense.errors import TwinsError
from twins_dense.frameworks.optimizer_state import check_optimizer_state

KINDS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "SGD": (torch.optim.SGD, {}),
    "SGD with momentum": (torch.optim.SGD, {"momentum": 0.9}),
    "AdamW": (torch.optim.AdamW, {}),
    "AdamW with amsgrad": (torch.optim.AdamW, {"amsgrad": True}),
    "Adagrad": (torch.optim.Adagrad, {}),
    "Adafactor": (torch.optim.Adafactor, {}),
    "RMSprop": (torch.optim.RMSprop, {}),
    "NAdam": (torch.optim.NAdam, {}),
    "LBFGS": (torch.optim.LBFGS, {}),  # it needs a closure, so it cannot be tried
}
# torch continues with the settings in the checkpoint, so these are the same optimiser.
SAME = [{"SGD", "SGD with momentum"}, {"AdamW", "AdamW with amsgrad"}]


def build(name: str) -> torch.optim.Optimizer:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LayerNorm(4), nn.Linear(4, 2), nn.Linear(2, 2))
    for parameter in net[3].parameters():  # without a gradient
        parameter.requires_grad_(False)
    kind, options = KINDS[name]
    return kind(list(net.parameters()), lr=0.01, **options)


def trained(name: str) -> dict[str, Any]:
    optimizer = build(name)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def step() -> float:
        for parameter in parameters[:-2]:
            parameter.grad = torch.ones_like(parameter)
        return 1.0

    step()
    optimizer.step(step)
    return copy.deepcopy(optimizer.state_dict())


@pytest.mark.parametrize("saved", sorted(KINDS.keys() - {"LBFGS"}))
@pytest.mark.parametrize("name", sorted(KINDS.keys() - {"LBFGS"}))
def test_pairs(name: str, saved: str) -> None:
    state, optimizer = trained(saved), build(name)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append(1))
    before = str(optimizer.state_dict())
    if name == saved or {name, saved} in SAME:
        check_optimizer_state(optimizer, state, "a.pth")
    else:
        with pytest.raises(TwinsError, match=r"'a\.pth' cannot be resumed: ") as caught:
            check_optimizer_state(optimizer, state, "a.pth")
        assert "\n" not in str(caught.value)
    assert str(optimizer.state_dict()) == before and not calls


def test_what_cannot_be_tried_is_accepted() -> None:
    check_optimizer_state(build("LBFGS"), trained("LBFGS"), "a.pth")


def test_steps_of_older_versions_of_torch() -> None:
    state = trained("AdamW")
    for entry in state["state"].values():
        entry["step"] = 1
    check_optimizer_state(build("AdamW"), state, "a.pth")


ODD: list[Any] = [None, True, 5, "", "a\nb", [], [1], {}, {"a": 1}, {1: 2}, torch.zeros(2), [{"params": 5}], [[]]]


@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value)[:12])
@pytest.mark.parametrize("place", [(), ("state",), ("param_groups",), ("state", 0), ("state", 0, "exp_avg")])
def test_any_value_in_any_place(place: tuple[Any, ...], value: Any) -> None:
    state = {"": trained("AdamW")}
    *path, last = ("", *place)
    target: Any = state
    for key in path:
        target = target[key]
    target[last] = value
    if place == ("state", 0) and value is None:  # as for a parameter without a gradient
        return
    with pytest.raises(TwinsError) as caught:
        check_optimizer_state(build("AdamW"), state[""], "a.pth")
    assert "\n" not in str(caught.value) and str(caught.value).startswith("checkpoint 'a.pth' cannot be resumed: ")


@pytest.mark.parametrize("value", [torch.zeros(4, 3, 3, 2), torch.full((4, 3, 3, 3), float("nan"))])
def test_tensors_that_do_not_suit(value: torch.Tensor) -> None:
    state = trained("AdamW")
    state["state"][0]["exp_avg"] = value
    with pytest.raises(TwinsError, match=r"exp_avg .* does not suit a parameter of \(4, 3, 3, 3\)"):
        check_optimizer_state(build("AdamW"), state, "a.pth")
