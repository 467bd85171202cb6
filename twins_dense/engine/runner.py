"""Train and evaluate a config with MMEngine's Runner."""

from __future__ import annotations

import copy
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from mmengine.utils import import_modules_from_strings
from torch import nn

from ..errors import TwinsError
from ..weights import read_checkpoint
from . import hooks  # noqa: F401  (registers them)

_SHOWN = 3


def train(config: Config, work_dir: str | Path, *, resume: bool = False) -> Runner:
    """Train a config; under torchrun, with one process a device.

    Leaves in `work_dir`: the resolved config, `epoch_N.pth` with `last_checkpoint`, `metrics.json`, and a folder
    named by the time with the log and the logged scalars.

    Args:
        config: from `load_config`; changed to what is run.
        work_dir: a new folder, or with `resume` that of an earlier run.
        resume: go on from the last checkpoint of `work_dir`.

    Returns:
        The Runner at the end of training.

    Raises:
        TwinsError: where the config, the data, the checkpoint or the folder can't be used.
    """
    work_dir = Path(work_dir)
    pointer = work_dir / "last_checkpoint"
    if resume:
        if not pointer.is_file():
            raise TwinsError(f"work directory {str(work_dir)!r} holds no run to resume: start it without --resume")
        # By its name, because the folder may have been moved since.
        last = work_dir / Path(pointer.read_text().strip()).name
        config.load_from, config.resume = str(last), True
    elif pointer.exists():
        raise TwinsError(
            f"work directory {str(work_dir)!r} already holds a run: add --resume to go on with it, "
            "or choose another --work-dir"
        )
    config.work_dir = str(work_dir)
    _prepare(config)
    if config.get("load_from"):
        read_checkpoint(config.load_from)  # refuses a broken or unsafe file before MMEngine reads it
    if resume:
        with _one_line(config):
            meta = _load_model_state(MODELS.build(config.model), config.load_from)  # refuses what doesn't fit
        config.randomness = {**config.get("randomness", {}), "seed": meta["seed"]}
    with _one_line(config):
        runner = Runner.from_cfg(config)
        # Built here, so that what is wrong with the data or a setting is said in one line and before training.
        loops = [runner.train_loop, runner.val_loop]
        _rehearse(runner)
    for loop in loops:
        if loop is not None:
            _check_dataset(runner, loop.dataloader.dataset)
    runner.train()
    return runner


def evaluate(config: Config, checkpoint: str | Path, work_dir: str | Path) -> dict[str, float]:
    """Evaluate a checkpoint of a training run on the config's test data.

    Returns:
        The metrics, which also stand in `work_dir/metrics.json`.

    Raises:
        TwinsError: where the config, the data or the checkpoint can't be used.
    """
    if (Path(work_dir) / "last_checkpoint").exists():
        raise TwinsError(f"work directory {str(work_dir)!r} holds a training run: choose another --work-dir")
    config.work_dir = str(work_dir)
    config.load_from, config.resume = None, False
    _prepare(config)
    with _one_line(config):
        runner = Runner.from_cfg(config)
        _load_model_state(_unwrapped(runner.model), checkpoint)
        dataset = runner.test_loop.dataloader.dataset
    _check_dataset(runner, dataset)
    return runner.test()


def load_model(config: Config, checkpoint: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The model of a config with a training run's weights, in eval mode on the GPU if there is one, else the CPU.

    Returns:
        The model and the metadata of its data set (`classes`, `category_ids`), which the checkpoint carries.
    """
    _prepare(config)
    with _one_line(config):
        model = MODELS.build(config.model)
        meta = _load_model_state(model, checkpoint)
    return model.to(get_device()).eval(), meta["dataset_meta"]


def _prepare(config: Config) -> None:
    """Register what the config names, and fit it to the devices and processes there are."""
    imports = config.get("custom_imports")
    if imports is not None:
        import_modules_from_strings(**imports)
    init_default_scope(config.get("default_scope", "mmengine"))
    # MMEngine names loggers by config and second, which two runs of one process may share.
    config.setdefault("experiment_name", f"{Path(config.filename or 'run').stem}_{time.time_ns()}")
    on_gpu = torch.cuda.is_available()
    if "RANK" in os.environ and "LOCAL_RANK" in os.environ:  # torchrun sets both
        config.launcher = "pytorch"
        if not on_gpu:
            # MMEngine's own set-up selects a CUDA device for the process and for DistributedDataParallel.
            if not torch.distributed.is_initialized():
                torch.distributed.init_process_group("gloo")
            config.model_wrapper_cfg = {
                "type": "MMDistributedDataParallel",
                "device_ids": None,
                "broadcast_buffers": False,
            }
    optim_wrapper = config.get("optim_wrapper")
    if optim_wrapper is not None and optim_wrapper.get("type") == "AmpOptimWrapper" and not on_gpu:
        print_log("No GPU: training in float32 instead of mixed precision", "current", logging.WARNING)
        optim_wrapper.type = "OptimWrapper"
        for key in ("dtype", "loss_scale"):
            optim_wrapper.pop(key, None)


def _load_model_state(model: nn.Module, path: str | Path) -> dict[str, Any]:
    """Load the checkpoint of a training run strictly; returns its metadata."""
    checkpoint = read_checkpoint(path)
    if not isinstance(checkpoint, dict) or not {"meta", "state_dict"} <= checkpoint.keys():
        raise TwinsError(
            f"checkpoint {str(path)!r} is none of a training run: give an epoch_N.pth of `twins-dense train`; "
            "backbone weights go into the config as model.backbone.weights"
        )
    state, target = checkpoint["state_dict"], model.state_dict()
    problems = [f"{key} is missing" for key in target if key not in state]
    problems += [f"{key} has no place" for key in state if key not in target]
    problems += [
        f"{key} is {tuple(state[key].shape)} where the model has {tuple(target[key].shape)}"
        for key in target
        if key in state and state[key].shape != target[key].shape
    ]
    if problems:
        raise TwinsError(
            f"checkpoint {str(path)!r} is of another model; entries that don't fit ({len(problems)}): "
            f"{'; '.join(problems[:_SHOWN])}{'; …' if len(problems) > _SHOWN else ''}. "
            "Give the config and overrides that it was trained with"
        )
    model.load_state_dict(state)
    return checkpoint["meta"]


def _rehearse(runner: Runner) -> None:
    """Build the optimiser and its schedules once for their errors; `Runner.train` builds them late, and anew."""
    configured = runner.optim_wrapper
    runner.optim_wrapper = runner.build_optim_wrapper(copy.deepcopy(configured))
    if runner.param_schedulers is not None:
        runner.build_param_scheduler(copy.deepcopy(runner.param_schedulers))
    runner.optim_wrapper = configured


def _check_dataset(runner: Runner, dataset: Any) -> None:
    """The classes of model and data agree; what was left out is listed."""
    num_classes = getattr(_unwrapped(runner.model), "num_classes", None)
    classes = getattr(dataset, "metainfo", {}).get("classes")
    if num_classes is not None and classes is not None and len(classes) != num_classes:
        raise TwinsError(
            f"the annotations have {len(classes)} categories and the model {num_classes} classes: "
            f"add model.num_classes={len(classes)}"
        )
    problems = getattr(dataset, "problems", ())
    if problems:
        # Formatted here: MMEngine's logger drops a warning whose format it has seen, and two data sets may warn.
        lines = "\n".join(problems)
        runner.logger.warning(f"Left out, {len(problems)} in all:\n{lines}")


def _unwrapped(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


@contextmanager
def _one_line(config: Config) -> Iterator[None]:
    """Turn what MMEngine raises for a setting that can't be built into a TwinsError of one line."""
    try:
        yield
    except TwinsError as error:
        raise TwinsError(_without_locations(error)) from None
    except Exception as error:  # what a wrong value raises depends on who builds with it
        name = type(error).__name__
        raise TwinsError(f"config {str(config.filename)!r}: {name}: {_without_locations(error)}") from error


def _without_locations(error: Exception) -> str:
    """The message without the class and file that MMEngine's registry puts before it."""
    text = str(error.args[0]) if error.args else type(error).__name__
    return " ".join(re.sub(r"class `\w+` in \S+\.py: ", "", text).split())
