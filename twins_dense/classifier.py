"""TwinsClassifier: the backbone, the mean of its last map and a linear head."""

from __future__ import annotations

import logging
from os import PathLike

from torch import Tensor, nn

from .backbone import TwinsBackbone, init_weights
from .errors import TwinsError
from .layers import WindowPadding
from .spec import TwinsSpec, get_spec
from .weights import load_weights

_logger = logging.getLogger(__name__)


class TwinsClassifier(TwinsBackbone):
    """Image classifier of the paper: head(mean over tokens of norm(c5)); `create_classifier` builds one.

    A subclass, so that its parameters keep the official flat names (`norm`, `head` beside the backbone's).
    """

    def __init__(
        self, spec: TwinsSpec, *, num_classes: int, window_padding: WindowPadding, drop_path_rate: float
    ) -> None:
        if num_classes < 1:
            raise TwinsError(f"num_classes={num_classes}: give at least 1")
        super().__init__(
            spec,
            out_indices=(len(spec.stages) - 1,),
            window_padding=window_padding,
            level_norm=False,
            drop_path_rate=drop_path_rate,
            checkpointing=False,
        )
        dim = spec.stages[-1].dim
        self.norm = nn.LayerNorm(dim, eps=spec.norm_eps)
        self.head = nn.Linear(dim, num_classes)
        init_weights(self.head)

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        """(B, 3, H, W) RGB images, as `TwinsBackbone.forward` takes them, to (B, num_classes) logits."""
        (level,) = super().forward(images)
        return self.head(self.norm(level.permute(0, 2, 3, 1)).mean((1, 2)))


def create_classifier(
    variant: str | TwinsSpec,
    *,
    num_classes: int = 1000,
    window_padding: WindowPadding = "zeros",
    drop_path_rate: float = 0.1,
    weights: str | PathLike[str] | None = None,
) -> TwinsClassifier:
    """Build a Twins image classifier.

    Args:
        variant: one of `list_variants()`, or a custom `TwinsSpec`.
        num_classes: outputs of the head. The published weights have 1000; with another number the head stays freshly
            initialised and the rest is loaded.
        window_padding: see `create_backbone`; at 224x224, the published size, the three are equal.
        drop_path_rate: stochastic depth of the last block; 0.1 is the default of the official training script.
        weights: a file or a name of the catalog, as `load_weights` takes them; `None` leaves the official random
            initialisation.

    Raises:
        TwinsError: for unknown names, values out of range or weights that don't fit.
    """
    net = TwinsClassifier(
        get_spec(variant), num_classes=num_classes, window_padding=window_padding, drop_path_rate=drop_path_rate
    )
    if weights is not None:
        _logger.info("%s", load_weights(net, weights))
    return net
