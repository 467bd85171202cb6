"""Checkpoints of MMEngine's Runner: written whole, free of pickled objects, and checked before they are loaded."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import get_world_size
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer, print_log
from mmengine.model import BaseTTAModel
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import Runner
from torch import nn

from ...atomic import write_atomically
from ...errors import TwinsError
from ...weights.download import fetch_weights
from ...weights.load import describe_misfit, fit_segmentor
from ...weights.read import read_checkpoint
from ..checks import check_checkpoint
from .config import building, without_initial_weights


@register_backend("atomic")
class AtomicLocalBackend(LocalBackend):
    """Local files that appear whole or not at all; the runner chooses it for MMEngine's checkpoints."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        write_atomically(Path(filepath), obj)


@HOOKS.register_module()
class PlainCheckpointHook(Hook):
    """Restrict checkpoints to tensors and plain Python, so that `torch.load` reads them with `weights_only=True`.

    MMEngine stores the history of logged values as objects of its own, and some values as NumPy scalars; pickle refers
    to both by code. Here a history is stored as a pair of tensors, and becomes that object again when it is loaded.

    `meta` also gets `total_batch_size`, the number of images per iteration, which a resumed run has to keep.
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


class InitialStateHook(Hook):
    """Start training from a state dict that fits the model, after MMEngine has initialised it.

    MMEngine itself would load the entries whose name and shape match, and silently leave out the rest.
    """

    priority = "VERY_HIGH"

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def before_train(self, runner: Runner) -> None:
        unwrapped(runner.model).load_state_dict(self.state)


def read_for_model(model: nn.Module, path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of a training run and check that it fits a model.

    For a segmentor, a checkpoint published by mmsegmentation or the official repository is accepted, too.

    Args:
        model: The model, with or without DistributedDataParallel or test-time augmentation around it.
        path: A file, or a catalog name.

    Returns:
        The checkpoint; its `state_dict` has the names of the model.

    Raises:
        TwinsError: if the file cannot be read, is not a checkpoint of a training run, or does not fit.
    """
    model = unwrapped(model)
    checkpoint = read_checkpoint(fetch_weights(path))
    if not isinstance(checkpoint, dict) or not {"meta", "state_dict"} <= checkpoint.keys():
        raise TwinsError(
            f"checkpoint {str(path)!r} is not one of a training run: give an epoch_N.pth or iter_N.pth of "
            "`twins-dense train`; backbone weights go into the config as model.backbone.weights"
        )
    if hasattr(model, "decode_head") and describe_misfit(checkpoint["state_dict"], model.state_dict()):
        # Published segmentors have other names.
        checkpoint["state_dict"], report = fit_segmentor(model, checkpoint, str(path))
        print_log(f"Checkpoint {report}", "current")
    else:
        check_checkpoint(checkpoint["state_dict"], model.state_dict(), path)
    return checkpoint


def read_for_config(config: Config, path: str | Path) -> dict[str, Any]:
    """Read a checkpoint as `read_for_model` does, for the model of a config; the config is not changed."""
    with building(config), silent_log():
        model = MODELS.build(without_initial_weights(config).model)
    return read_for_model(model, path)


def dataset_meta(meta: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what the `meta` of a checkpoint says about its data set: `classes`, `category_ids`, …

    Checkpoints of mmsegmentation before 1.0 have other names for it, or nothing.
    """
    old = {"classes": meta.get("CLASSES"), "palette": meta.get("PALETTE")}
    return meta.get("dataset_meta") or {name: value for name, value in old.items() if value is not None}


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the trained model inside DistributedDataParallel and test-time augmentation."""
    while isinstance(model, (nn.parallel.DistributedDataParallel, BaseTTAModel)):
        model = model.module
    return model


@contextmanager
def silent_log() -> Iterator[None]:
    """Suppress log lines while a model is built only to be checked."""
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
