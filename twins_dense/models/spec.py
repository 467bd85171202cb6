"""Architectures of Twins transformers: stages, specs and the six published variants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from ..errors import TwinsError, did_you_mean


@dataclass(frozen=True)
class StageSpec:
    """A stage: a patch embedding, `depth` blocks, and a positional encoding after the first block.

    Attributes:
        dim: Number of channels of the tokens.
        depth: Number of blocks.
        num_heads: Number of attention heads. It divides `dim`.
        mlp_ratio: Ratio of the MLP's hidden channels to `dim`.
        sr_ratio: Factor by which each side of the map is reduced for the keys and values of global attention; 1 keeps
            every token.
        patch_size: Kernel size and stride of the patch embedding.
        window_size: Side of the windows of local attention, in tokens. Even blocks (0, 2, …) use local attention.
            `None` means that every block uses global attention (PCPVT).
    """

    dim: int
    depth: int
    num_heads: int
    mlp_ratio: float
    sr_ratio: int
    patch_size: int
    window_size: int | None

    def __post_init__(self) -> None:
        for name in ("dim", "depth", "num_heads", "sr_ratio", "patch_size", "window_size"):
            value = getattr(self, name)
            if name == "window_size" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise TwinsError(f"{name}={value!r} in a stage: give a whole number of at least 1")
        if not self.mlp_ratio > 0:
            raise TwinsError(f"mlp_ratio={self.mlp_ratio!r} in a stage: give a number above 0")
        if self.dim % self.num_heads:
            raise TwinsError(f"dim={self.dim} is not a multiple of num_heads={self.num_heads}: change one of them")

    def is_local(self, block: int) -> bool:
        """Return whether a block of the stage uses local attention, as even blocks of SVT do, instead of global."""
        return self.window_size is not None and block % 2 == 0


@dataclass(frozen=True)
class TwinsSpec:
    """A Twins architecture. `create_backbone` and `create_classifier` accept it instead of a variant name.

    Attributes:
        name: Name for reports and errors.
        stages: Stages, finest first.
        level_norm: Whether dense models of this family normalise each output level. In the official detection and
            segmentation code, SVT does and PCPVT does not.
        norm_eps: LayerNorm epsilon in blocks, on output levels and before the classifier's head.
        reduction_norm_eps: LayerNorm epsilon in patch embeddings and on the reduced map of global attention.
    """

    name: str
    stages: tuple[StageSpec, ...]
    level_norm: bool
    norm_eps: float = 1e-6
    reduction_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if not self.stages:
            raise TwinsError(f"spec {self.name!r} has no stages: give at least one StageSpec")

    @classmethod
    def from_columns(
        cls,
        name: str,
        *,
        dims: Sequence[int],
        num_heads: Sequence[int],
        mlp_ratios: Sequence[float],
        depths: Sequence[int],
        sr_ratios: Sequence[int],
        window_size: int | None,
        patch_sizes: Sequence[int] = (4, 2, 2, 2),
    ) -> TwinsSpec:
        """Build a spec from one sequence per property, as in the papers and the official code.

        Sequences have one entry per stage, the finest first. `window_size=None` gives a spec of the PCPVT family, and a
        number one of the SVT family, which has level norms in dense models.
        """
        columns = {
            "dims": dims,
            "num_heads": num_heads,
            "mlp_ratios": mlp_ratios,
            "depths": depths,
            "sr_ratios": sr_ratios,
            "patch_sizes": patch_sizes,
        }
        if len({len(column) for column in columns.values()}) != 1:
            lengths = ", ".join(f"{key} has {len(column)}" for key, column in columns.items())
            raise TwinsError(f"spec {name!r}: every sequence needs one entry per stage, but {lengths}")
        stages = tuple(
            StageSpec(dim, depth, heads, mlp_ratio, sr_ratio, patch_size, window_size)
            for dim, heads, mlp_ratio, depth, sr_ratio, patch_size in zip(*columns.values(), strict=True)
        )
        return cls(name, stages, level_norm=window_size is not None)

    @property
    def strides(self) -> tuple[int, ...]:
        """Input pixels per cell of each stage's map."""
        sizes = [stage.patch_size for stage in self.stages]
        return tuple(prod(sizes[: i + 1]) for i in range(len(sizes)))

    @property
    def min_size(self) -> int:
        """Smallest input height and width, in pixels, for which every stage has keys and values."""
        return max(stride * stage.sr_ratio for stride, stage in zip(self.strides, self.stages, strict=True))


@dataclass(frozen=True)
class PyramidSpec:
    """Levels of a feature pyramid, finest first.

    Attributes:
        names: Names `c2`, `c3`, … as in detection papers. Level `cN` of a published variant has stride 2**N.
        channels: Number of channels of each level.
        strides: Input pixels per cell of each level.
    """

    names: tuple[str, ...]
    channels: tuple[int, ...]
    strides: tuple[int, ...]


def _pcpvt(size: str, depths: tuple[int, ...]) -> TwinsSpec:
    return TwinsSpec.from_columns(
        f"pcpvt_{size}",
        dims=(64, 128, 320, 512),
        num_heads=(1, 2, 5, 8),
        mlp_ratios=(8, 8, 4, 4),
        depths=depths,
        sr_ratios=(8, 4, 2, 1),
        window_size=None,
    )


def _svt(size: str, dims: tuple[int, ...], depths: tuple[int, ...]) -> TwinsSpec:
    return TwinsSpec.from_columns(
        f"svt_{size}",
        dims=dims,
        num_heads=tuple(dim // 32 for dim in dims),
        mlp_ratios=(4, 4, 4, 4),
        depths=depths,
        sr_ratios=(8, 4, 2, 1),
        window_size=7,
    )


# The six variants, from the functions `pcpvt_*_v0` and `alt_gvt_*` of the official gvt.py.
_VARIANTS = {
    spec.name: spec
    for spec in (
        _pcpvt("small", (3, 4, 6, 3)),
        _pcpvt("base", (3, 4, 18, 3)),
        _pcpvt("large", (3, 8, 27, 3)),
        _svt("small", (64, 128, 256, 512), (2, 2, 10, 4)),
        _svt("base", (96, 192, 384, 768), (2, 2, 18, 2)),
        _svt("large", (128, 256, 512, 1024), (2, 2, 18, 2)),
    )
}


def list_variants() -> tuple[str, ...]:
    """Return the names of the six published variants: PCPVT before SVT, small to large."""
    return tuple(_VARIANTS)


def get_spec(variant: str | TwinsSpec) -> TwinsSpec:
    """Return the spec of a variant name, or a given `TwinsSpec` unchanged. Unknown names raise `TwinsError`."""
    if isinstance(variant, TwinsSpec):
        return variant
    if variant in _VARIANTS:
        return _VARIANTS[variant]
    raise TwinsError(f"unknown variant {variant!r}{did_you_mean(str(variant), _VARIANTS)}")
