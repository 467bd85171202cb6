"""Trained detectors in the form that can be exported."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from ...deploy.exportable import Exportable
from ...errors import TwinsError


def exportable(config: DictConfig, checkpoint: str | Path) -> Exportable:
    """Load a trained model in the form that can be exported.

    Args:
        config: From `load_config` or `from_data`.
        checkpoint: A detectron2 checkpoint for the model of the config.

    Raises:
        TwinsError: if the config or the checkpoint cannot be used, or the model has a part that cannot be exported.
    """
    raise TwinsError(f"checkpoint {str(checkpoint)!r}: this kind of model cannot be exported")
