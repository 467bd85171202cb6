"""Train and evaluate a config with detectron2's trainer, in one or several processes."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.engine import AMPTrainer, SimpleTrainer, default_setup, hooks
from detectron2.engine import launch as launch_processes
from detectron2.engine.defaults import create_ddp_model
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter
from omegaconf import DictConfig
from torch import nn
from torch.multiprocessing import ProcessRaisedException

from ...errors import TwinsError, one_line
from ...weights.read import read_checkpoint
from .. import checks, metrics_file
from ..checks import config_errors
from ..divergence import diverged
from ..work_dir import for_evaluation, for_training, last_checkpoint
from .backbone import logger
from .config import check_settings
from .data import PositionSampler, check_masks
from .hooks import LEARNING_RATE, Evaluation, ExactResume, FiniteLosses, MetricsFile, RunCheckpointer, as_fractions
from .stored import stored_record

_WEIGHTS_HINT = (
    "backbone weights go into a Python config as model.backbone.bottom_up.net.weights, into YAML as MODEL.TWINS.WEIGHTS"
)


def train(
    config: DictConfig, work_dir: str | Path, *, resume: bool = False, launch: Mapping[str, Any] | None = None
) -> None:
    """Train a config, in one process or in the processes that `launch` specifies.

    `work_dir` receives `config.yaml`, `log.txt`, checkpoints (`model_*.pth` and `last_checkpoint`), `metrics.json`,
    `metrics.jsonl` (one line per logging period) and TensorBoard events.

    Args:
        config: Config from `load_config`; it is changed in place to the config that is run.
        work_dir: A new folder, or the folder of an earlier run if `resume` is true.
        resume: Whether to continue from the last checkpoint in `work_dir`.
        launch: Arguments of detectron2's `launch`, with these defaults: `num_gpus` 1, `num_machines` 1, `machine_rank`
            0 and `dist_url` "auto". Without a GPU, `num_gpus` is the number of processes.

    Raises:
        TwinsError: if the config, the data, a checkpoint or the folder cannot be used, or a loss is not finite.
    """
    work_dir = for_training(work_dir, resume)
    config.train.output_dir = str(work_dir)
    _launch(_train, launch, config, resume)


def evaluate(
    config: DictConfig, checkpoint: str | Path, work_dir: str | Path, *, launch: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """Evaluate a detectron2 checkpoint on the test data of a config.

    Returns:
        The metrics by name (such as `coco/bbox_AP50`), with scores as fractions and without those of single classes,
        which are only in `work_dir/metrics.json`. If there are several machines, only the first returns any metrics.

    Raises:
        TwinsError: if the config, the data or the checkpoint cannot be used.
    """
    work_dir = for_evaluation(work_dir)
    config.train.output_dir = str(work_dir)
    _launch(_evaluate, launch, config, str(checkpoint))
    if launch and launch.get("machine_rank"):  # only the first machine has the metrics
        return {}
    # The scores of single classes have names such as "coco/bbox_AP-person".
    return {name: value for name, value in metrics_file.read_metrics(work_dir).items() if "_AP-" not in name}


def check_data(config: DictConfig) -> Iterator[str]:
    """Check the data sets of a config by building them one by one, and yield lines that describe them.

    Raises:
        TwinsError: for the first data set that cannot be used.
    """
    for split in ("train", "test"):
        loader = config.dataloader[split]
        with building():
            records = instantiate(loader.dataset)
            if split == "train":
                check_masks(records, instantiate(loader.mapper))
        name = dataset_name_of(loader)
        # Images and annotations that are left out are logged when the data set is built, so pass no problems here.
        yield from checks.describe_data(split, name, len(records), len(dataset_meta_of(name)["classes"]), [])


def load_model(config: DictConfig, checkpoint: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Load the model of a config with the weights of a detectron2 checkpoint, in eval mode, on the config's device.

    Returns:
        The model, and the content of the checkpoint.

    Raises:
        TwinsError: if the checkpoint belongs to another model.
    """
    _fit_device(config)
    _drop_initial_weights(config)
    content = _read_checkpoint(checkpoint)
    with building():
        model = instantiate(config.model)
    checks.check_checkpoint(content["model"], model.state_dict(), checkpoint)
    DetectionCheckpointer(model).load(str(checkpoint))
    return model.to(config.train.device).eval(), content


def _train(config: DictConfig, resume: bool) -> None:
    """Run training in one of the processes."""
    check_settings(config)
    _set_up(config)
    settings = config.train
    with building():
        loader = instantiate(config.dataloader.train)
        model = instantiate(config.model).to(settings.device)
    dataset_meta = _check_classes(config, model, dataset_name_of(config.dataloader.train))
    stored = stored_record(config)
    sampler = getattr(loader.dataset, "sampler", None)
    if not isinstance(sampler, PositionSampler):
        sampler = None
        logger.warning("The training loader is not from build_train_loader: its order restarts after a resume")
    _scale_learning_rate(config, len(sampler.is_wide) if sampler else None)
    if resume:
        _check_resumable(last_checkpoint(Path(settings.output_dir)), model, config)
    elif settings.init_checkpoint:
        _check_overlap(settings.init_checkpoint, model)

    with building():
        config.optimizer.params.model = model
        optimizer = instantiate(config.optimizer)
        scheduler = instantiate(config.lr_multiplier)
        test = _build_test(config) if settings.eval_period > 0 else None
    ddp = {} if settings.device != "cpu" else {"device_ids": None}
    model = create_ddp_model(model, **settings.ddp, **ddp)
    if settings.amp.enabled:
        # bfloat16 has the same range as float32, so only float16 needs loss scaling.
        dtype = getattr(torch, settings.amp.dtype)
        scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
        trainer: SimpleTrainer = AMPTrainer(model, loader, optimizer, grad_scaler=scaler, precision=dtype)
    else:
        trainer = SimpleTrainer(model, loader, optimizer)
    facts = {"dataset_meta": dataset_meta, "total_batch_size": config.dataloader.train.total_batch_size, **stored}
    checkpointer = RunCheckpointer(model, settings.output_dir, facts, trainer=trainer)
    periodic = hooks.PeriodicCheckpointer(checkpointer, **settings.checkpointer)
    if resume:  # tell it about the earlier checkpoints, which it has to remove later
        earlier = Path(settings.output_dir).glob(f"model_{'[0-9]' * 7}.pth")
        periodic.recent_checkpoints = [str(path) for path in sorted(earlier)]
    is_main = comm.is_main_process()
    metrics = MetricsFile(Path(settings.output_dir), settings.checkpointer.period)
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=scheduler),
            FiniteLosses(),
            ExactResume(sampler, settings.seed, settings.checkpointer.period),
            periodic if is_main else None,
            Evaluation(settings.eval_period, lambda: metrics.record(_score(model, *test)))
            if test is not None
            else None,
            hooks.PeriodicWriter(_writers(settings), settings.log_period) if is_main else None,
            metrics,
        ]
    )
    checkpointer.resume_or_load(settings.init_checkpoint, resume=resume)
    start = trainer.iter + 1 if resume else 0
    try:
        trainer.train(start, settings.max_iter)
    except FloatingPointError:  # from Mask R-CNN's proposals, which detectron2 checks before it returns the losses
        what = "loss_rpn_cls or loss_rpn_loc (scores or boxes of proposals)"
        raise diverged(trainer.iter, what, LEARNING_RATE) from None
    except SizeMismatchError as error:
        raise TwinsError(one_line(error)) from None


def _evaluate(config: DictConfig, checkpoint: str) -> None:
    _set_up(config)
    with building():
        test = _build_test(config)
    model, content = load_model(config, checkpoint)
    name = dataset_name_of(config.dataloader.test)
    found, trained = _check_classes(config, model, name), content.get("dataset_meta")
    if trained is not None:
        categories = [_categories(meta) for meta in (found, trained)]
        checks.check_categories(f"data set {name!r}", categories[0], f"checkpoint {checkpoint!r}", categories[1])
    results = _score(model, *test)
    if comm.is_main_process():
        last = content.get("iteration")
        metrics_file.write_metrics(
            Path(config.train.output_dir),
            as_fractions(results),
            iteration=None if last is None else last + 1,
            checkpoint=checkpoint,
            dataset=name,
        )


def _build_test(config: DictConfig) -> tuple[Any, Any]:
    # The loader comes first: building its data set registers the ground truth that the evaluator reads.
    loader = instantiate(config.dataloader.test)
    return loader, instantiate(config.dataloader.evaluator)


def _score(model: nn.Module, loader: Any, evaluator: Any) -> dict[str, Any]:
    results = inference_on_dataset(model, loader, evaluator)
    if comm.is_main_process():
        print_csv_format(results)
    return results or {}


def _writers(settings: DictConfig) -> list[EventWriter]:
    """Return detectron2's default writers, but write the JSON lines to `metrics.jsonl` instead of `metrics.json`."""
    folder = Path(settings.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    lines = JSONWriter(str(folder / "metrics.jsonl"))
    return [CommonMetricPrinter(settings.max_iter), lines, TensorboardXWriter(str(folder))]


def _launch(run: Callable[..., None], launch: Mapping[str, Any] | None, *arguments: Any) -> None:
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


def _set_up(config: DictConfig) -> None:
    """Adapt the config to the available devices, set up logging and seeds, and write config.yaml."""
    # Suppress the tracebacks of errors that are reported in one line afterwards.
    logging.getLogger("detectron2.engine.train_loop").addFilter(_is_no_report)
    notes = _fit_device(config)
    default_setup(config, argparse.Namespace(config_file="", eval_only=False))
    for note in notes:
        logger.warning(note)


def _is_no_report(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], (TwinsError, FloatingPointError, SizeMismatchError)))


def _fit_device(config: DictConfig) -> list[str]:
    settings = config.train
    notes = []
    if settings.device == "cuda" and not torch.cuda.is_available():
        settings.device = "cpu"
        notes.append("No GPU: running on the CPU")
    if settings.device == "cpu" and settings.amp.enabled:
        settings.amp.enabled = False
        notes.append("No GPU: training in float32 instead of mixed precision")
    return notes


def _scale_learning_rate(config: DictConfig, num_images: int | None) -> None:
    """Scale the learning rate with the batch size, and log the change and the length of the run in epochs."""
    scaling, batch_size = config.train.auto_scale_lr, config.dataloader.train.total_batch_size
    base = scaling.base_batch_size
    if scaling.enabled and batch_size != base:
        before, config.optimizer.lr = config.optimizer.lr, config.optimizer.lr * batch_size / base
        logger.info(
            f"Learning rate scaled with the batch size: {before:g} x {batch_size} / {base} = {config.optimizer.lr:g} "
            "(train.auto_scale_lr.enabled=False keeps it)"
        )
    if num_images:
        iterations = config.train.max_iter
        logger.info(
            f"{iterations} iterations of {batch_size} images are {iterations * batch_size / num_images:.2f} epochs "
            f"of {num_images} images"
        )


def _drop_initial_weights(config: DictConfig) -> None:
    """Remove the ImageNet weights from a config, because a checkpoint of the whole model will be loaded instead."""
    net = config.model.get("backbone", {}).get("bottom_up", {}).get("net", {})
    for node in (config.model, net):  # the first for a YAML file, the second for a LazyConfig
        if node.get("weights"):
            node.weights = None


def _read_checkpoint(path: str | Path) -> dict[str, Any]:
    content = read_checkpoint(path)
    if not isinstance(content, dict) or not isinstance(content.get("model"), Mapping):
        raise TwinsError(
            f"checkpoint {str(path)!r} is not a detectron2 checkpoint (it has no 'model'): use a model_*.pth from a "
            f"training run; {_WEIGHTS_HINT}"
        )
    return content


def _check_resumable(path: Path, model: nn.Module, config: DictConfig) -> None:
    content = _read_checkpoint(path)
    checks.check_checkpoint(content["model"], model.state_dict(), path)
    done = content.get("iteration", -1) + 1
    checks.check_resumable(done=done, limit=config.train.max_iter, limit_key="train.max_iter")
    checks.check_batch_size(
        config.dataloader.train.get("total_batch_size"),
        content.get("total_batch_size"),
        key="dataloader.train.total_batch_size",
    )


def _check_overlap(path: str, model: nn.Module) -> None:
    """Raise `TwinsError` if a checkpoint has no entry of the model, about which detectron2 would only warn.

    URLs are not checked.
    """
    if "://" not in path and not _read_checkpoint(path)["model"].keys() & model.state_dict():
        raise TwinsError(f"train.init_checkpoint={path!r} has no weights for this model: {_WEIGHTS_HINT}")


def dataset_name_of(loader: DictConfig) -> str:
    """Return the catalog name of the (first) data set of a loader, or "__unused" if it has none."""
    dataset = loader.get("dataset", {})
    names = dataset.get("name", dataset.get("names", "__unused"))
    return names if isinstance(names, str) else names[0]


def dataset_meta_of(name: str) -> dict[str, Any]:
    """Return the class names and category ids of a data set in detectron2's catalog, in the order of the labels."""
    metadata = MetadataCatalog.get(name)
    classes = list(metadata.get("thing_classes", []))
    contiguous = metadata.get("thing_dataset_id_to_contiguous_id", {label: label for label in range(len(classes))})
    return {"classes": classes, "category_ids": sorted(contiguous, key=contiguous.__getitem__)}


def _check_classes(config: DictConfig, model: nn.Module, name: str) -> dict[str, Any]:
    """Check that a model has as many classes as a data set, and return the data set's class names and category ids."""
    meta = dataset_meta_of(name)
    num_classes = getattr(getattr(model, "roi_heads", model), "num_classes", None)
    if meta["classes"] and num_classes is not None:
        from_yaml, with_regions = "cfg" in config.model, hasattr(model, "roi_heads")
        key = {
            (False, False): "model.num_classes",
            (False, True): "model.roi_heads.num_classes",
            (True, False): "MODEL.RETINANET.NUM_CLASSES",
            (True, True): "MODEL.ROI_HEADS.NUM_CLASSES",
        }[from_yaml, with_regions]
        checks.check_num_classes(f"data set {name!r}", len(meta["classes"]), {key: num_classes})
    return meta


def _categories(meta: Mapping[str, Any]) -> list[str]:
    return [f"{i} {name}" for i, name in zip(meta["category_ids"], meta["classes"], strict=True)]


def building() -> AbstractContextManager[None]:
    """Return a context manager that turns errors raised while a part of a config is built into one line."""
    return config_errors("config")
