"""Start the processes of a run, and set up devices, logging and seeds in each of them."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.engine import default_setup
from detectron2.engine import launch as launch_processes
from omegaconf import DictConfig
from torch.multiprocessing import ProcessRaisedException

from ...errors import TwinsError
from .backbone import logger


def launch_run(run: Callable[..., None], launch: Mapping[str, Any] | None, *arguments: Any) -> None:
    """Run a function in the requested number of processes, and re-raise a `TwinsError` from any of them."""
    options: dict[str, Any] = {
        "num_gpus": 1,
        "num_machines": 1,
        "machine_rank": 0,
        "dist_url": "auto",
    }
    options.update(launch or {})
    if "RANK" in os.environ:
        raise TwinsError("detectron2 starts its processes itself: use --num-gpus instead of torchrun")
    if torch.cuda.is_available() and options["num_gpus"] > torch.cuda.device_count():
        raise TwinsError(
            f"--num-gpus {options['num_gpus']}: the number of GPUs on this machine is {torch.cuda.device_count()}"
        )
    if options["machine_rank"] >= options["num_machines"]:
        raise TwinsError(
            f"--machine-rank {options['machine_rank']}: ranks start at 0, so --num-machines {options['num_machines']} "
            f"allows at most {options['num_machines'] - 1}"
        )
    if options["num_machines"] > 1 and options["dist_url"] == "auto":
        raise TwinsError("--num-machines needs a --dist-url that all machines can reach, for example tcp://HOST:29500")
    try:
        launch_processes(
            run,
            options["num_gpus"],
            num_machines=options["num_machines"],
            machine_rank=options["machine_rank"],
            dist_url=options["dist_url"],
            args=arguments,
        )
    except ProcessRaisedException as error:  # it contains the traceback of the process as text
        last = str(error).strip().splitlines()[-1]
        name = f"{TwinsError.__module__}.{TwinsError.__qualname__}: "
        if last.startswith(name):
            raise TwinsError(last.removeprefix(name)) from None
        raise


def set_up(config: DictConfig) -> None:
    """Adapt the config to the available devices, set up logging and seeds, and write config.yaml."""
    # Suppress the tracebacks of errors that are reported in one line afterwards.
    logging.getLogger("detectron2.engine.train_loop").addFilter(_is_no_report)
    notes = fit_device(config)
    default_setup(config, argparse.Namespace(config_file="", eval_only=False))
    for note in notes:
        logger.warning(note)


def _is_no_report(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], (TwinsError, FloatingPointError, SizeMismatchError)))


def fit_device(config: DictConfig) -> list[str]:
    """Make a config run on the CPU if there is no GPU, and return one line for each change."""
    settings = config.train
    notes = []
    if settings.device == "cuda" and not torch.cuda.is_available():
        settings.device = "cpu"
        notes.append("No GPU: running on the CPU")
    if settings.device == "cpu" and settings.amp.enabled:
        settings.amp.enabled = False
        notes.append("No GPU: training in float32 instead of mixed precision")
    return notes
