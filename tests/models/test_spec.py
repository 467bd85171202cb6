"""Specs of the published variants, and checks of custom specs."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from contracts import VARIANTS

import twins_dense as td

# Table 1 of the official code, copied by hand: dims, heads, MLP ratios, depths, window.
PUBLISHED = {
    "pcpvt_small": ((64, 128, 320, 512), (1, 2, 5, 8), (8, 8, 4, 4), (3, 4, 6, 3), None),
    "pcpvt_base": ((64, 128, 320, 512), (1, 2, 5, 8), (8, 8, 4, 4), (3, 4, 18, 3), None),
    "pcpvt_large": ((64, 128, 320, 512), (1, 2, 5, 8), (8, 8, 4, 4), (3, 8, 27, 3), None),
    "svt_small": ((64, 128, 256, 512), (2, 4, 8, 16), (4, 4, 4, 4), (2, 2, 10, 4), 7),
    "svt_base": ((96, 192, 384, 768), (3, 6, 12, 24), (4, 4, 4, 4), (2, 2, 18, 2), 7),
    "svt_large": ((128, 256, 512, 1024), (4, 8, 16, 32), (4, 4, 4, 4), (2, 2, 18, 2), 7),
}
STAGE = {
    "dim": 6, "depth": 2, "num_heads": 3, "mlp_ratio": 2, "sr_ratio": 1, "patch_size": 4, "window_size": 5
}  # fmt: skip


def test_variants_are_listed_in_order() -> None:
    assert td.list_variants() == VARIANTS


@pytest.mark.parametrize("variant", VARIANTS)
def test_published_numbers(variant: str) -> None:
    spec = td.get_spec(variant)
    dims, heads, mlp_ratios, depths, window_size = PUBLISHED[variant]
    assert spec.name == variant
    assert tuple(stage.dim for stage in spec.stages) == dims
    assert tuple(stage.num_heads for stage in spec.stages) == heads
    assert tuple(stage.mlp_ratio for stage in spec.stages) == mlp_ratios
    assert tuple(stage.depth for stage in spec.stages) == depths
    assert tuple(stage.sr_ratio for stage in spec.stages) == (8, 4, 2, 1)
    assert tuple(stage.patch_size for stage in spec.stages) == (4, 2, 2, 2)
    assert {stage.window_size for stage in spec.stages} == {window_size}
    assert spec.level_norm == variant.startswith("svt")
    assert (spec.norm_eps, spec.reduction_norm_eps) == (1e-6, 1e-5)
    assert spec.strides == (4, 8, 16, 32)
    assert spec.min_size == 32


@pytest.mark.parametrize(("window_size", "expected"), [(None, [False] * 4), (7, [True, False, True, False])])
def test_local_blocks(window_size: int | None, expected: list[bool]) -> None:
    stage = td.StageSpec(**{**STAGE, "window_size": window_size})
    assert [stage.is_local(block) for block in range(4)] == expected


def test_a_spec_is_its_own_variant() -> None:
    spec = td.TwinsSpec("own", (td.StageSpec(**STAGE),), level_norm=False)
    assert td.get_spec(spec) is spec


@pytest.mark.parametrize(
    ("patch_sizes", "sr_ratios", "strides", "min_size"),
    [((4, 2), (8, 1), (4, 8), 32), ((3, 5), (1, 2), (3, 15), 30), ((2, 3), (7, 1), (2, 6), 14)],
)
def test_strides_and_smallest_size(
    patch_sizes: tuple[int, ...], sr_ratios: tuple[int, ...], strides: tuple[int, ...], min_size: int
) -> None:
    spec = td.TwinsSpec.from_columns(
        "own",
        dims=(6, 10),
        num_heads=(2, 5),
        mlp_ratios=(2, 2),
        depths=(1, 1),
        sr_ratios=sr_ratios,
        patch_sizes=patch_sizes,
        window_size=3,
    )
    assert spec.strides == strides
    assert spec.min_size == min_size
    assert spec.level_norm


@pytest.mark.parametrize("frozen", [td.get_spec("svt_small"), td.get_spec("svt_small").stages[0]])
def test_specs_are_frozen(frozen: object) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        frozen.name = "other"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("variant", "hint"),
    [
        ("svt_smal", "did you mean 'svt_small'?"),
        ("pcpvt-base", "did you mean 'pcpvt_base'?"),
        ("SVT_large", "did you mean 'svt_large'?"),
        ("resnet50", None),
        ("", None),
        (None, None),
    ],
)
def test_unknown_variant(variant: Any, hint: str | None) -> None:
    with pytest.raises(td.TwinsError) as caught:
        td.get_spec(variant)
    message = str(caught.value)
    assert message.startswith(f"unknown variant {variant!r}: ") and "\n" not in message
    assert all(name in message for name in VARIANTS)
    if hint is None:
        assert "did you mean" not in message
    else:
        assert hint in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 0}, "dim=0"),
        ({"depth": -1}, "depth=-1"),
        ({"num_heads": 2.0}, "num_heads=2.0"),
        ({"sr_ratio": True}, "sr_ratio=True"),
        ({"sr_ratio": None}, "sr_ratio=None"),
        ({"patch_size": "4"}, "patch_size='4'"),
        ({"window_size": 0}, "window_size=0"),
        ({"mlp_ratio": 0}, "mlp_ratio=0"),
        ({"mlp_ratio": math.nan}, "mlp_ratio=nan"),
        ({"dim": 7}, "dim=7 is not a multiple of num_heads=3"),
    ],
)
def test_bad_stage(change: dict[str, Any], message: str) -> None:
    with pytest.raises(td.TwinsError) as caught:
        td.StageSpec(**{**STAGE, **change})
    assert message in str(caught.value)


def test_bad_specs() -> None:
    with pytest.raises(td.TwinsError, match="'own' has no stages: give at least one"):
        td.TwinsSpec("own", (), level_norm=True)
    lengths = r"'own': every sequence needs one entry per stage, but dims has 2, .* has 3"
    with pytest.raises(td.TwinsError, match=lengths):
        td.TwinsSpec.from_columns(
            "own",
            dims=(6, 10),
            num_heads=(2, 5, 7),
            mlp_ratios=(2, 2),
            depths=(1, 1),
            sr_ratios=(2, 1),
            patch_sizes=(4, 2),
            window_size=3,
        )
