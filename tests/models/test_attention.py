"""Attention against a slow reference in float64, in every way that it is computed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from twins_dense.models import attention
from twins_dense.models.attention import attend


def inputs(dtype: torch.dtype, tokens: int, keys: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 2, tokens, 5), (3, 2, keys, 5), (3, 2, keys, 5)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def reference(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> list[Tensor]:
    """Return the output and the gradients of its sum of squares, in float64."""
    query, key, value = (x.detach().double().requires_grad_() for x in (query, key, value))
    scores = torch.einsum("bhtd,bhrd->bhtr", query, key) / 5**0.5
    if mask is not None:
        scores = torch.where(mask, scores, torch.tensor(-torch.inf, dtype=torch.float64))
    out = torch.einsum("bhtr,bhrd->bhtd", scores.softmax(-1), value)
    return [out, *torch.autograd.grad(out.square().sum(), (query, key, value))]


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize(("tokens", "keys"), [(49, 49), (37, 11), (1, 1)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 4e-2)], ids=str
)
def test_values_and_gradients(dtype: torch.dtype, tolerance: float, tokens: int, keys: int, with_mask: bool) -> None:
    query, key, value = inputs(dtype, tokens, keys)
    mask = None
    if with_mask:
        mask = torch.rand(3, 1, 1, keys, generator=torch.Generator().manual_seed(1)) < 0.5
        mask[..., 0] = True  # every query reads at least one key
    out = attend(query, key, value, mask)
    assert out.dtype == dtype
    found = [out, *torch.autograd.grad(out.square().sum(), (query, key, value))]
    for ours, exact in zip(found, reference(query, key, value, mask), strict=True):
        scale = exact.abs().max().clamp(min=1)
        torch.testing.assert_close(ours.double() / scale, exact / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("dtype", "training", "max_scores", "is_fused"),
    [
        (torch.bfloat16, True, 12, False),
        (torch.bfloat16, True, 11, True),
        (torch.bfloat16, False, 12, True),
        (torch.float32, True, 12, True),
    ],
)
def test_only_training_in_reduced_precision_avoids_the_fused_kernel(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, training: bool, max_scores: int, is_fused: bool
) -> None:
    calls = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or fused(*a, **k))
    monkeypatch.setattr(attention, "_MAX_PLAIN_SCORES", max_scores)
    with torch.set_grad_enabled(training):
        query, key, value = (x * 1 for x in inputs(dtype, 4, 3))
        attend(query, key, value)
    assert bool(calls) == is_fused
