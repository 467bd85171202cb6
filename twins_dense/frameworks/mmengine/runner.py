"""Train and evaluate a config with MMEngine's Runner."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import Runner
from mmengine.utils import import_modules_from_strings
from torch import nn

from ...atomic import write_atomically
from ...errors import TwinsError
from ...weights import describe_misfit, find_weights, fit_segmentor, read_checkpoint
from ..work_dir import for_evaluation, for_training, last_checkpoint
from .config import check_settings, test_part
from .hooks import FiniteLossHook, InitialStateHook, ProgressBarHook, SyncBuffersHook, json_numbers, plain_numbers


def train(
    config: Config, work_dir: str | Path, *, resume: bool = False, launch: Mapping[str, Any] | None = None
) -> Runner:
    """Train a config; under torchrun, with one process a device.

    Leaves in `work_dir`: the resolved config, `epoch_N.pth` or `iter_N.pth` with `last_checkpoint`, `metrics.json`, and
    a folder named by the time with the log and the logged scalars.

    Args:
        config: from `load_config`; changed to what is run.
        work_dir: a new folder, or with `resume` that of an earlier run.
        resume: go on from the last checkpoint of `work_dir`.
        launch: options of detectron2's launcher, which are refused here.

    Returns:
        The Runner at the end of training.

    Raises:
        TwinsError: where the config, the data, a checkpoint or the folder can't be used.
    """
    _refuse(launch)
    work_dir = for_training(work_dir, resume)
    config.work_dir = str(work_dir)
    config.resume = resume
    check_settings(config)
    _prepare(config)
    initial = None
    if resume:
        last = last_checkpoint(work_dir)
        meta = _fitting_checkpoint(config, last)["meta"]
        _check_resumable(config, meta)
        config.randomness = {**config.get("randomness", {}), "seed": meta["seed"]}
        if is_main_process():  # MMEngine goes by the whole path, and the folder may have been moved
            write_atomically(work_dir / "last_checkpoint", str(last).encode())
    elif config.get("load_from"):
        initial = _fitting_checkpoint(config, config.load_from)["state_dict"]
    with _one_line(config), _silence():
        MODELS.build(copy.deepcopy(config.model))
    datasets = _build_datasets(config, "train", "val")
    train_set = datasets["train"]
    _check_num_classes(config, train_set)
    for dataset in datasets.values():
        _check_classes(dataset, train_set.metainfo, "the training data")
    with _one_line(config):
        runner = _build_runner(config, datasets)
        if initial is not None:
            runner.register_hook(InitialStateHook(initial))
        _rehearse(runner)
    runner.train()
    return runner


def evaluate(
    config: Config, checkpoint: str | Path, work_dir: str | Path, *, launch: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """Evaluate a checkpoint of a training run on the config's test data, or validation data where it names none.

    Returns:
        The metrics, which also stand in `work_dir/metrics.json`.

    Raises:
        TwinsError: where the config, the data or the checkpoint can't be used.
    """
    _refuse(launch)
    work_dir = for_evaluation(work_dir)
    config.work_dir = str(work_dir)
    config.resume = False
    for part in ("dataloader", "evaluator", "cfg"):
        config[f"test_{part}"] = test_part(config, part)
    check_settings(config)
    _prepare(config)
    _drop_initial_weights(config)
    state = _fitting_checkpoint(config, checkpoint)
    meta = state["meta"]
    datasets = _build_datasets(config, "test")
    _check_classes(datasets["test"], _dataset_meta(meta), f"checkpoint {str(checkpoint)!r}")
    with _one_line(config):
        runner = _build_runner(config, datasets)
    _unwrapped(runner.model).load_state_dict(state["state_dict"])
    metrics = plain_numbers(runner.test())
    if is_main_process():
        position = {key: meta[key] for key in ("epoch", "iter") if key in meta}
        content = {"checkpoint": str(checkpoint), **position, "metrics": json_numbers(metrics)}
        write_atomically(work_dir / "metrics.json", json.dumps(content, indent=2).encode() + b"\n")
    return metrics


def load_model(config: Config, checkpoint: str | Path) -> tuple[nn.Module, Mapping[str, Any]]:
    """The model of a config with a training run's weights, in eval mode on the GPU if there is one, else the CPU.

    Returns:
        The model and the metadata of its data set that the checkpoint carries (`classes`, `category_ids`, …).
    """
    _prepare(config)
    _drop_initial_weights(config)
    with _one_line(config):
        model = MODELS.build(config.model)
        state = _read_fitting(model, checkpoint)
    model.load_state_dict(state["state_dict"])
    return model.to(get_device()).eval(), _dataset_meta(state["meta"])


def check_data(config: Config) -> Iterator[str]:
    """Build the data sets of a config one by one, which checks their files, and tell what each holds.

    Raises:
        TwinsError: at the first that can't be used.
    """
    _prepare(config)
    for split in ("train", "val", "test"):
        loader = config.get(f"{split}_dataloader")
        if loader is not None and not (split == "test" and loader == config.get("val_dataloader")):
            dataset = _build_datasets(config, split)[split]
            left_out = f", left out {len(dataset.problems)}" if dataset.problems else ""
            num_classes = len(dataset.metainfo["classes"])
            yield f"{split}: {dataset.source}: {len(dataset)} images, {num_classes} classes{left_out}"
            yield from dataset.problems


def _refuse(launch: Mapping[str, Any] | None) -> None:
    if launch:
        option = f"--{next(iter(launch)).replace('_', '-')}"
        raise TwinsError(
            f"{option} is for detectron2's configs: start this one as torchrun --nproc_per_node=N -m twins_dense …"
        )


def _prepare(config: Config) -> None:
    """Register what the config names, and fit it to the devices and processes there are."""
    if config.get("model") is None:
        raise TwinsError(f"config {str(config.filename)!r} has no model: give a config of a whole experiment")
    imports = config.get("custom_imports")
    if imports is not None:
        import_modules_from_strings(**imports)
    init_default_scope(config.get("default_scope", "mmengine"))
    # MMEngine names loggers by config and second, which two runs of one process may share.
    config.experiment_name = f"{Path(config.filename or 'run').stem}_{time.time_ns()}"
    for split in ("train", "val", "test"):
        loader = config.get(f"{split}_dataloader")
        if loader is not None and not loader.get("num_workers"):
            loader.pop("persistent_workers", None)  # there are none, and torch would refuse
    on_gpu = torch.cuda.is_available()
    in_torchrun = "RANK" in os.environ and "LOCAL_RANK" in os.environ
    config.launcher = "pytorch" if in_torchrun else "none"
    if not on_gpu:
        config.pop("sync_bn", None)  # torch's SyncBatchNorm is for GPUs
    if in_torchrun and not on_gpu:
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


def _drop_initial_weights(config: Config) -> None:
    """Don't ask for the backbone's ImageNet file where a checkpoint of the whole model follows."""
    model = config.model.get("module", config.model)
    if model.get("backbone", {}).get("weights") is not None:
        model.backbone.weights = None


def _fitting_checkpoint(config: Config, path: str | Path) -> dict[str, Any]:
    """The checkpoint of a training run of this config's model, checked before MMEngine reads it, which is lenient."""
    rehearsal = copy.deepcopy(config)
    _drop_initial_weights(rehearsal)
    with _one_line(config):
        with _silence():
            model = _unwrapped(MODELS.build(rehearsal.model))
        return _read_fitting(model, path)


def _check_resumable(config: Config, meta: Mapping[str, Any]) -> None:
    """A run goes on with the batches it has had, and isn't over."""
    key, done = ("max_epochs", "epoch") if config.train_cfg.get("max_epochs") else ("max_iters", "iter")
    if meta[done] > config.train_cfg[key]:
        raise TwinsError(f"train_cfg.{key}={config.train_cfg[key]}: the run has done {meta[done]} already; give more")
    num_processes = int(os.environ.get("WORLD_SIZE", 1)) if config.launcher == "pytorch" else 1
    each = config.train_dataloader.get("batch_size")
    before = meta.get("total_batch_size")
    if before is not None and each is not None and before != num_processes * each:
        raise TwinsError(
            f"train_dataloader.batch_size={each} in {num_processes} processes: the run has had {before} images at a "
            "time, and goes on with its learning rate and order of the data: give as many"
        )


def _read_fitting(model: nn.Module, path: str | Path) -> dict[str, Any]:
    checkpoint = read_checkpoint(find_weights(path))
    if not isinstance(checkpoint, dict) or not {"meta", "state_dict"} <= checkpoint.keys():
        raise TwinsError(
            f"checkpoint {str(path)!r} is none of a training run: give an epoch_N.pth or iter_N.pth of "
            "`twins-dense train`; backbone weights go into the config as model.backbone.weights"
        )
    misfit = describe_misfit(checkpoint["state_dict"], model.state_dict())
    if misfit and hasattr(model, "decode_head"):  # a published segmentor has other names
        checkpoint["state_dict"], report = fit_segmentor(model, checkpoint, str(path))
        print_log(f"Checkpoint {report}", "current")
    elif misfit:
        raise TwinsError(
            f"checkpoint {str(path)!r} is of another model; {misfit}. "
            "Give the config and overrides that it was trained with"
        )
    return checkpoint


def _dataset_meta(meta: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a checkpoint says of its data set; mmsegmentation's before 1.0 have it under other names, or not at all."""
    old = {"classes": meta.get("CLASSES"), "palette": meta.get("PALETTE")}
    return meta.get("dataset_meta") or {name: value for name, value in old.items() if value is not None}


def _build_datasets(config: Config, *splits: str) -> dict[str, Any]:
    """The data sets of the splits that the config has, the first at least, built before the Runner, for errors."""
    if config.get(f"{splits[0]}_dataloader") is None:
        raise TwinsError(f"config {str(config.filename)!r} has no {splits[0]}_dataloader: it can't be run without data")
    with _one_line(config):
        datasets = {
            split: DATASETS.build(copy.deepcopy(config[f"{split}_dataloader"].dataset))
            for split in splits
            if config.get(f"{split}_dataloader") is not None
        }
        for split, dataset in datasets.items():
            if not hasattr(dataset, "problems"):
                raise TwinsError(
                    f"{split}_dataloader.dataset.type={config[f'{split}_dataloader'].dataset.type!r} doesn't check its "
                    "files: use CocoDetectionDataset, twins_dense.SegmentationDataset or a subclass of one"
                )
    return datasets


def _build_runner(config: Config, datasets: Mapping[str, Any]) -> Runner:
    """What `Runner.from_cfg` makes, around data sets that are there already; what they left out is logged."""
    arguments = {name: config[name] for name in inspect.signature(Runner).parameters if name in config}
    arguments.pop("load_from", None)  # `train` loads it, strictly; MMEngine would even resume it
    for split, dataset in datasets.items():
        arguments[f"{split}_dataloader"] = {**config[f"{split}_dataloader"], "dataset": dataset}
    runner = Runner(**arguments, cfg=config)
    for dataset in datasets.values():
        if dataset.problems:
            # Formatted here: MMEngine's logger drops a warning whose format it has seen, and two data sets may warn.
            lines = "\n".join(dataset.problems)
            runner.logger.warning(f"Left out, {len(dataset.problems)} in all:\n{lines}")
    runner.register_hook(ProgressBarHook())
    runner.register_hook(FiniteLossHook())
    if runner.distributed:
        runner.register_hook(SyncBuffersHook())
    return runner


def _rehearse(runner: Runner) -> None:
    """Build once, for its errors, what `Runner.train` builds late: loops, and, to be built anew, the optimiser."""
    runner.train_loop, runner.val_loop  # noqa: B018  (properties that build)
    configured = runner.optim_wrapper
    runner.optim_wrapper = runner.build_optim_wrapper(copy.deepcopy(configured))
    if runner.param_schedulers is not None:
        runner.build_param_scheduler(copy.deepcopy(runner.param_schedulers))
    runner.optim_wrapper = configured


def _check_num_classes(config: Config, dataset: Any) -> None:
    """Every `num_classes` of the model has to be that of the data set."""
    found = len(dataset.metainfo["classes"])
    paths = dict(_settings_called("num_classes", config.model, "model"))
    wrong = [path for path, value in paths.items() if value != found]
    if wrong:
        raise TwinsError(
            f"{dataset.source} has {found} categories and the model {paths[wrong[0]]} classes: "
            f"add {' '.join(f'{path}={found}' for path in wrong)}"
        )


def _settings_called(name: str, node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Dotted path and value of every setting of that name within a part of a config."""
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    for key, value in items:
        if key == name:
            yield f"{path}.{key}", value
        else:
            yield from _settings_called(name, value, f"{path}.{key}")


def _check_classes(dataset: Any, expected: Mapping[str, Any], source: str) -> None:
    if "classes" not in expected:
        return
    found = _categories(dataset.metainfo)
    wanted = _categories({"reduce_zero_label": dataset.metainfo.get("reduce_zero_label"), **expected})
    if found != wanted:
        raise TwinsError(
            f"{dataset.source} has other categories than {source}: "
            f"{_shortened(found)} instead of {_shortened(wanted)}; give both the same list"
        )


def _categories(metainfo: Mapping[str, Any]) -> list[str]:
    """The classes, each with the number that files give it."""
    first = 1 if metainfo.get("reduce_zero_label") else 0
    ids = metainfo.get("category_ids") or range(first, first + len(metainfo["classes"]))
    return [f"{i} {name}" for i, name in zip(ids, metainfo["classes"], strict=True)]


def _shortened(categories: list[str]) -> str:
    return f"{len(categories)} ({', '.join(categories[:4])}{', …' if len(categories) > 4 else ''})"


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model that was trained, within DistributedDataParallel and what averages its predictions."""
    while isinstance(model, (nn.parallel.DistributedDataParallel, BaseTTAModel)):
        model = model.module
    return model


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


@contextmanager
def _silence() -> Iterator[None]:
    """No log lines of a model that is built only to be looked at."""
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _without_locations(error: Exception) -> str:
    """The message without the class and file that MMEngine's registry puts before it."""
    text = str(error.args[0]) if isinstance(error, KeyError) else str(error)
    return " ".join(re.sub(r"class `\w+` in \S+\.py: ", "", text).split())
