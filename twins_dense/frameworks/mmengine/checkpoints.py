"""Checkpoints that appear whole or not at all, and that hold tensors and plain Python only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_world_size
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...atomic import write_atomically


@HOOKS.register_module()
class PlainCheckpointHook(Hook):
    """Keep checkpoints to tensors and plain Python, so that `torch.load` reads them with `weights_only=True`.

    `meta` also gets `total_batch_size`, the images of an iteration, for a run that goes on.

    MMEngine stores the history of logged values as objects of its own, and some values as numpy scalars; pickle refers
    to both by code. Here histories travel as pairs of tensors and are made into those objects again on loading.
    """

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        checkpoint["meta"]["total_batch_size"] = runner.train_dataloader.batch_size * get_world_size()
        hub = checkpoint["message_hub"]
        hub["log_scalars"] = {
            name: tuple(torch.from_numpy(np.array(values)) for values in history.data)
            for name, history in hub["log_scalars"].items()
        }
        hub["runtime_info"] = {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in hub["runtime_info"].items()
        }

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        histories = checkpoint.get("message_hub", {}).get("log_scalars", {})
        for name, history in histories.items():
            if isinstance(history, tuple):
                histories[name] = HistoryBuffer(*(values.cpu().numpy() for values in history))


@register_backend("atomic")
class AtomicLocalBackend(LocalBackend):
    """Local files that appear whole or not at all: `backend_args=dict(backend="atomic")` for MMEngine's checkpoints."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        write_atomically(Path(filepath), obj)
