"""Start the processes of a run, and set up devices, logging and seeds in each of them."""

from __future__ import annotations

import argparse
import io
import logging
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from typing import Any

import torch
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.engine import default_setup
from detectron2.engine import launch as launch_processes
from detectron2.utils import comm
from omegaconf import DictConfig
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from ...errors import TwinsError
from ...stopping import Stopped
from .. import console
from .backbone import logger
from .hooks import EarlyStop


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
    has_console = any(isinstance(handler, console.ConsoleHandler) for handler in console.logger.handlers)
    try:
        launch_processes(
            _run_in_process,
            options["num_gpus"],
            num_machines=options["num_machines"],
            machine_rank=options["machine_rank"],
            dist_url=options["dist_url"],
            args=(run, os.getpid(), has_console, *arguments),
        )
    except ProcessRaisedException as error:  # it contains the traceback of the process as text
        last = str(error).strip().splitlines()[-1]
        name = f"{TwinsError.__module__}.{TwinsError.__qualname__}: "
        if last.startswith(name):
            raise TwinsError(last.removeprefix(name)) from None
        raise
    except KeyboardInterrupt:  # Python would wait for the other processes at its end
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    except ProcessExitedException as error:
        how = error.signal_name or f"exit code {error.exit_code}"
        raise TwinsError(
            f"process {error.error_index} of {options['num_gpus']} has ended ({how}), so the run has stopped"
        ) from None


def _run_in_process(run: Callable[..., None], parent: int, has_console: bool, *arguments: Any) -> None:
    if has_console and os.getpid() != parent:  # a new process has to set up its logging
        console.show_on(sys.stdout)
    run(*arguments)


def set_up(config: DictConfig) -> None:
    """Adapt the config to the available devices, set up logging and seeds, and write config.yaml."""
    silence_torch()
    # Suppress the tracebacks of errors that are reported in one line afterwards.
    logging.getLogger("detectron2.engine.train_loop").addFilter(_is_no_report)
    notes = fit_device(config)
    # detectron2 logs the environment, the config and the model to stdout. Keep all this in the log file only.
    with redirect_stdout(io.StringIO()) as unseen:
        default_setup(config, argparse.Namespace(config_file="", eval_only=False))
    for name in ("detectron2", "fvcore"):
        log = logging.getLogger(name)
        for handler in list(log.handlers):
            if isinstance(handler, console.ForwardHandler) or getattr(handler, "stream", None) is unseen:
                log.removeHandler(handler)
        if comm.is_main_process():
            forward = console.ForwardHandler(logging.INFO)
            forward.addFilter(_is_for_console)
            log.addHandler(forward)
    for note in notes:
        logger.warning(note)


def silence_torch() -> None:
    """Hide warnings that PyTorch gives because of what detectron2 does, about which users can do nothing."""
    warnings.filterwarnings("ignore", "torch.meshgrid: in an upcoming release", UserWarning)
    for name in ("torch.fx._symbolic_trace", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _is_for_console(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or record.name == logger.name


def _is_no_report(record: logging.LogRecord) -> bool:
    reported = (TwinsError, EarlyStop, Stopped, FloatingPointError, SizeMismatchError)
    return not (record.exc_info and isinstance(record.exc_info[1], reported))


def fit_device(config: DictConfig) -> list[str]:
    """Make a config run on the CPU if there is no GPU, and return one line for each change.

    There are at most as many data loader workers as CPU cores, about which torch would warn; they change no result.
    """
    settings = config.train
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for loader in (config.dataloader.train, config.dataloader.test):
        if loader.get("num_workers", 0) > num_cores:
            loader.num_workers = num_cores
    notes = []
    if settings.device == "cuda" and not torch.cuda.is_available():
        settings.device = "cpu"
        notes.append("No GPU: running on the CPU")
    if settings.device == "cpu" and settings.amp.enabled:
        settings.amp.enabled = False
        notes.append("No GPU: training in float32 instead of mixed precision")
    return notes
