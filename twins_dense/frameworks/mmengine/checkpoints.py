"""Checkpoints of MMEngine's Runner: written atomically, without pickled objects, and checked before they are loaded."""

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
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseTTAModel
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import Runner
from torch import nn

from ...atomic import write_atomically
from ...errors import TwinsError, one_line
from ...weights.download import fetch_weights
from ...weights.load import describe_misfit, fit_segmentor
from ...weights.read import read_checkpoint
from ..checks import check_checkpoint, check_dataset_meta
from ..console import logger
from ..stored_config import KEY, make_record
from .config import building, without_initial_weights
from .stored import to_data


@register_backend("atomic")
class AtomicLocalBackend(LocalBackend):
    """Storage backend for local files that appear whole or not at all; our runs use it for checkpoints."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        write_atomically(Path(filepath), obj)


@HOOKS.register_module()
class PlainCheckpointHook(Hook):
    """Restrict checkpoints to tensors and plain Python, so that `torch.load` reads them with `weights_only=True`.

    MMEngine stores the history of logged values in objects of its own, and some values as NumPy scalars, both of which
    need pickle. This hook stores each history as a pair of tensors, and restores the object when it is loaded.

    It also adds `total_batch_size` to `meta`, the number of images per iteration, which a resumed run has to keep, and
    the config as data (see `stored_config`), so that the checkpoint can be loaded on its own.
    """

    def __init__(self) -> None:
        self.record: dict[str, Any] | None = None

    def before_train(self, runner: Runner) -> None:
        try:
            self.record = make_record("mmengine", to_data(runner.cfg))
        except Exception as error:  # training goes on, whatever the config contains
            logger.warning(f"Checkpoints will not contain the config ({one_line(error)}): keep the config file")

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if self.record is not None:
            checkpoint[KEY] = self.record
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
    """Load a state dict before training, after MMEngine has initialised the model.

    Every entry must fit; parameters that it lacks keep their initialisation, so check first which may be missing.
    MMEngine itself would load the entries with matching names and shapes, and silently skip the rest.
    """

    priority = "VERY_HIGH"

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def before_train(self, runner: Runner) -> None:
        model = unwrapped(runner.model)
        model.load_state_dict({**model.state_dict(), **self.state})


def read_for_model(model: nn.Module, path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of a training run, and check that it fits a model.

    For a segmentor, checkpoints published by mmsegmentation or the official repository are accepted as well.

    Args:
        model: The model, with or without DistributedDataParallel or test-time augmentation around it.
        path: Path of the file, or a catalog name.

    Returns:
        The checkpoint; the entries of its `state_dict` are named as in the model.

    Raises:
        TwinsError: if the file cannot be read, is not a checkpoint of a training run, or does not fit.
    """
    model = unwrapped(model)
    checkpoint = read_checkpoint(fetch_weights(path))
    parts = [checkpoint.get(key) if isinstance(checkpoint, dict) else None for key in ("meta", "state_dict")]
    if not all(isinstance(part, dict) and all(isinstance(key, str) for key in part) for part in parts):
        raise TwinsError(
            f"checkpoint {str(path)!r} is not from a training run: use an epoch_N.pth or iter_N.pth written by "
            "`twins-dense train`; backbone weights go into the config as model.backbone.weights"
        )
    if hasattr(model, "decode_head") and describe_misfit(checkpoint["state_dict"], model.state_dict()):
        # Published segmentors use other names for the parameters.
        checkpoint["state_dict"], report = fit_segmentor(model, checkpoint, str(path))
        logger.info(f"checkpoint {report}")
    else:
        check_checkpoint(checkpoint["state_dict"], model.state_dict(), path)
    check_dataset_meta(dataset_meta(checkpoint["meta"]), path, getattr(model, "num_classes", None))
    return checkpoint


def read_for_config(config: Config, path: str | Path) -> dict[str, Any]:
    """Read a checkpoint as `read_for_model` does, for the model that a config describes."""
    with building(config), silent_log():
        model = MODELS.build(without_initial_weights(config).model)
    return read_for_model(model, path)


def dataset_meta(meta: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the metadata of the data set from the `meta` of a checkpoint: `classes`, `category_ids`, …

    Checkpoints written by mmsegmentation before 1.0 use other keys for it, or lack it; then the result may be empty.
    """
    old = {"classes": meta.get("CLASSES"), "palette": meta.get("PALETTE")}
    found = meta.get("dataset_meta")
    return {name: value for name, value in old.items() if value is not None} if found in (None, {}) else found


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside DistributedDataParallel and test-time augmentation wrappers."""
    while isinstance(model, (nn.parallel.DistributedDataParallel, BaseTTAModel)):
        model = model.module
    return model


@contextmanager
def silent_log() -> Iterator[None]:
    """Suppress log messages up to level INFO, for models that are only built to check something."""
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
