"""The Twins image classifier: the backbone, the mean of its last map, and a linear head."""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import TwinsError
from .backbone import TwinsBackbone, init_weights
from .layers import WindowPadding
from .spec import TwinsSpec


class TwinsClassifier(TwinsBackbone):
    """Image classifier of the paper: head(mean over tokens of norm(c5)). `create_classifier` builds it.

    It is a subclass of the backbone, so that all parameters have the official names, without a prefix.
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
            partial_patches="drop",
            level_norm=False,
            drop_path_rate=drop_path_rate,
            checkpointing=False,
        )
        dim = spec.stages[-1].dim
        self.norm = nn.LayerNorm(dim, eps=spec.norm_eps)
        self.head = nn.Linear(dim, num_classes)
        init_weights(self.head)

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        """Compute logits (B, num_classes) of images (B, 3, H, W), which are as in `TwinsBackbone.forward`."""
        (level,) = super().forward(images)
        return self.head(self.norm(level.permute(0, 2, 3, 1)).mean((1, 2)))
