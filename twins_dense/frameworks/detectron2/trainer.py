"""Train and evaluate a config with detectron2's trainer, on one process or several."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.engine import AMPTrainer, SimpleTrainer, default_setup, default_writers, hooks
from detectron2.engine import launch as launch_processes
from detectron2.engine.defaults import create_ddp_model
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn
from torch.multiprocessing import ProcessRaisedException

from ...atomic import write_atomically
from ...errors import TwinsError
from ...weights import describe_misfit, read_checkpoint
from ..divergence import diverged
from ..work_dir import for_evaluation, for_training, last_checkpoint
from .backbone import logger
from .config import check_settings
from .data import PositionSampler, check_masks
from .hooks import LEARNING_RATE, Evaluation, ExactResume, FiniteLosses, RunCheckpointer

_WEIGHTS_HINT = (
    "backbone weights go into the config as model.backbone.bottom_up.net.weights, of a YAML file as MODEL.TWINS.WEIGHTS"
)


def train(
    config: DictConfig, work_dir: str | Path, *, resume: bool = False, launch: Mapping[str, Any] | None = None
) -> None:
    """Train a config, in one process or as many as `launch` says.

    Leaves in `work_dir`: config.yaml, log.txt, `model_*.pth` with `last_checkpoint`, and detectron2's metrics.json (a
    line of JSON each logging period) and TensorBoard events.

    Args:
        config: from `load_config`; changed to what is run.
        work_dir: a new folder, or with `resume` that of an earlier run.
        resume: go on from the last checkpoint of `work_dir`.
        launch: `num_gpus` (1), `num_machines` (1), `machine_rank` (0), `dist_url` ("auto"), as detectron2's `launch`
            takes them; without a GPU, `num_gpus` is the number of processes.

    Raises:
        TwinsError: where the config, the data, a checkpoint or the folder can't be used, or a loss is not finite.
    """
    work_dir = for_training(work_dir, resume)
    config.train.output_dir = str(work_dir)
    _launch(_train, launch, config, resume)


def evaluate(
    config: DictConfig, checkpoint: str | Path, work_dir: str | Path, *, launch: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """Evaluate a detectron2 checkpoint of a config's model on the config's test data.

    Returns:
        The metrics, in percent as detectron2 has them, by names such as `bbox/AP50`; also in `work_dir/metrics.json`.
        On the first of several machines; on the others nothing.

    Raises:
        TwinsError: where the config, the data or the checkpoint can't be used.
    """
    work_dir = for_evaluation(work_dir)
    config.train.output_dir = str(work_dir)
    _launch(_evaluate, launch, config, str(checkpoint))
    if launch and launch.get("machine_rank"):  # the first machine has them
        return {}
    metrics = json.loads((work_dir / "metrics.json").read_text())["metrics"]
    # Those of single classes ("bbox/AP-person") stand in the file and the log; null is for those without a detection.
    return {name: math.nan if value is None else value for name, value in metrics.items() if "/AP-" not in name}


def check_data(config: DictConfig) -> Iterator[str]:
    """Build the data sets of a config one by one, which checks their files, and tell what each holds.

    Raises:
        TwinsError: at the first that can't be used.
    """
    for split in ("train", "test"):
        loader = config.dataloader[split]
        with _one_line():
            records = instantiate(loader.dataset)
            if split == "train":
                check_masks(records, instantiate(loader.mapper))
        name = dataset_name_of(loader)
        yield f"{split}: {name}: {len(records)} images, {len(dataset_meta_of(name)['classes'])} classes"


def load_model(config: DictConfig, checkpoint: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The model of a config with the weights of a detectron2 checkpoint, in eval mode on the config's device.

    Returns:
        The model and what else the checkpoint holds.

    Raises:
        TwinsError: where the checkpoint is not of this model.
    """
    _fit_device(config)
    _drop_initial_weights(config)
    content = _read_checkpoint(checkpoint)
    with _one_line():
        model = instantiate(config.model)
    misfit = describe_misfit(content["model"], model.state_dict())
    if misfit:
        raise TwinsError(
            f"checkpoint {str(checkpoint)!r} is of another model; {misfit}. "
            "Give the config and overrides that it was trained with"
        )
    DetectionCheckpointer(model).load(str(checkpoint))
    return model.to(config.train.device).eval(), content


def _train(config: DictConfig, resume: bool) -> None:
    """What each process runs."""
    check_settings(config)
    _set_up(config)
    settings = config.train
    with _one_line():
        loader = instantiate(config.dataloader.train)
        model = instantiate(config.model).to(settings.device)
    dataset_meta = _check_classes(config, model, dataset_name_of(config.dataloader.train))
    sampler = getattr(loader.dataset, "sampler", None)
    if not isinstance(sampler, PositionSampler):
        sampler = None
        logger.warning("The training loader is not from build_train_loader: after a resume its order starts anew")
    _scale_learning_rate(config, len(sampler.is_wide) if sampler else None)
    if resume:
        _check_resumable(last_checkpoint(Path(settings.output_dir)), model, config)
    elif settings.init_checkpoint:
        _check_overlap(settings.init_checkpoint, model)

    with _one_line():
        config.optimizer.params.model = model
        optimizer = instantiate(config.optimizer)
        scheduler = instantiate(config.lr_multiplier)
        test = _build_test(config) if settings.eval_period > 0 else None
    ddp = {} if settings.device != "cpu" else {"device_ids": None}
    model = create_ddp_model(model, **settings.ddp, **ddp)
    if settings.amp.enabled:
        # bfloat16 has the range of float32, so that nothing needs to be scaled.
        dtype = getattr(torch, settings.amp.dtype)
        scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
        trainer: SimpleTrainer = AMPTrainer(model, loader, optimizer, grad_scaler=scaler, precision=dtype)
    else:
        trainer = SimpleTrainer(model, loader, optimizer)
    facts = {"dataset_meta": dataset_meta, "total_batch_size": config.dataloader.train.total_batch_size}
    checkpointer = RunCheckpointer(model, settings.output_dir, facts, trainer=trainer)
    periodic = hooks.PeriodicCheckpointer(checkpointer, **settings.checkpointer)
    if resume:  # those that it is to remove in time
        earlier = Path(settings.output_dir).glob(f"model_{'[0-9]' * 7}.pth")
        periodic.recent_checkpoints = [str(path) for path in sorted(earlier)]
    is_main = comm.is_main_process()
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=scheduler),
            FiniteLosses(),
            ExactResume(sampler, settings.seed, settings.checkpointer.period),
            periodic if is_main else None,
            Evaluation(settings.eval_period, lambda: _score(model, *test)) if test is not None else None,
            hooks.PeriodicWriter(default_writers(settings.output_dir, settings.max_iter), settings.log_period)
            if is_main
            else None,
        ]
    )
    checkpointer.resume_or_load(settings.init_checkpoint, resume=resume)
    start = trainer.iter + 1 if resume else 0
    try:
        trainer.train(start, settings.max_iter)
    except FloatingPointError:  # the proposals of Mask R-CNN, which detectron2 looks at before it hands out the losses
        what = "loss_rpn_cls or loss_rpn_loc (scores or boxes of proposals)"
        raise diverged(trainer.iter, what, LEARNING_RATE) from None
    except SizeMismatchError as error:
        raise TwinsError(" ".join(str(error).split())) from None


def _evaluate(config: DictConfig, checkpoint: str) -> None:
    _set_up(config)
    with _one_line():
        test = _build_test(config)
    model, content = load_model(config, checkpoint)
    name = dataset_name_of(config.dataloader.test)
    found, trained = dataset_meta_of(name), content.get("dataset_meta")
    if trained is not None and trained != found:
        raise TwinsError(f"data set {name!r} has other categories than checkpoint {checkpoint!r}: {found}, {trained}")
    _check_classes(config, model, name)
    metrics = flatten_results_dict(_score(model, *test))
    if comm.is_main_process():
        metrics = {name: None if math.isnan(value) else value for name, value in metrics.items()}
        content = {"checkpoint": checkpoint, "dataset": name, "unit": "percent", "metrics": metrics}
        path = Path(config.train.output_dir) / "metrics.json"
        write_atomically(path, json.dumps(content, indent=2).encode() + b"\n")


def _build_test(config: DictConfig) -> tuple[Any, Any]:
    # In this order: the evaluator looks up the ground truth that building the data set enters into the catalog.
    loader = instantiate(config.dataloader.test)
    return loader, instantiate(config.dataloader.evaluator)


def _score(model: nn.Module, loader: Any, evaluator: Any) -> dict[str, Any]:
    results = inference_on_dataset(model, loader, evaluator)
    if comm.is_main_process():
        print_csv_format(results)
    return results or {}


def _launch(run: Callable[..., None], launch: Mapping[str, Any] | None, *arguments: Any) -> None:
    """Run a function in as many processes as asked for; their TwinsErrors arrive here."""
    options: dict[str, Any] = {
        "num_gpus": 1,
        "num_machines": 1,
        "machine_rank": 0,
        "dist_url": "auto",
    }
    options.update(launch or {})
    if "RANK" in os.environ:
        raise TwinsError("detectron2 starts its processes itself: give --num-gpus instead of torchrun")
    if torch.cuda.is_available() and options["num_gpus"] > torch.cuda.device_count():
        raise TwinsError(f"--num-gpus {options['num_gpus']}: this machine has {torch.cuda.device_count()}")
    if options["machine_rank"] >= options["num_machines"]:
        raise TwinsError(
            f"--machine-rank {options['machine_rank']}: the ranks of {options['num_machines']} machines start at 0"
        )
    if options["num_machines"] > 1 and options["dist_url"] == "auto":
        raise TwinsError("--num-machines needs a --dist-url that all machines reach, for example tcp://HOST:29500")
    try:
        launch_processes(
            run,
            options["num_gpus"],
            num_machines=options["num_machines"],
            machine_rank=options["machine_rank"],
            dist_url=options["dist_url"],
            args=arguments,
        )
    except ProcessRaisedException as error:
        last = str(error).strip().splitlines()[-1]
        name = f"{TwinsError.__module__}.{TwinsError.__qualname__}: "
        if last.startswith(name):
            raise TwinsError(last.removeprefix(name)) from None
        raise


def _set_up(config: DictConfig) -> None:
    """Log, seed and write config.yaml as detectron2's own tools do, and fit the config to the devices there are."""
    # The traceback of what is then reported in one line.
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
    """Scale the rate with the batch, and say so and how long the run is."""
    scaling, batch_size = config.train.auto_scale_lr, config.dataloader.train.total_batch_size
    base = scaling.base_batch_size
    if scaling.enabled and batch_size != base:
        before, config.optimizer.lr = config.optimizer.lr, config.optimizer.lr * batch_size / base
        logger.info(
            f"Learning rate scaled with the batch: {before:g} x {batch_size} / {base} = {config.optimizer.lr:g} "
            "(train.auto_scale_lr.enabled=False keeps it)"
        )
    if num_images:
        iterations = config.train.max_iter
        logger.info(
            f"{iterations} iterations of {batch_size} images are {iterations * batch_size / num_images:.2f} epochs "
            f"of {num_images} images"
        )


def _drop_initial_weights(config: DictConfig) -> None:
    """Don't ask for the backbone's ImageNet file where a checkpoint of the whole model follows."""
    net = config.model.get("backbone", {}).get("bottom_up", {}).get("net", {})
    for node in (config.model, net):  # of a YAML file, of a LazyConfig
        if node.get("weights"):
            node.weights = None


def _read_checkpoint(path: str | Path) -> dict[str, Any]:
    content = read_checkpoint(path)
    if not isinstance(content, dict) or not isinstance(content.get("model"), Mapping):
        raise TwinsError(
            f"checkpoint {str(path)!r} is none of detectron2 (it has no 'model'): give a model_*.pth of a training "
            f"run; {_WEIGHTS_HINT}"
        )
    return content


def _check_resumable(path: Path, model: nn.Module, config: DictConfig) -> None:
    max_iter, batch_size = config.train.max_iter, config.dataloader.train.get("total_batch_size")
    content = _read_checkpoint(path)
    misfit = describe_misfit(content["model"], model.state_dict())
    if misfit:
        raise TwinsError(f"checkpoint {str(path)!r} is of another model; {misfit}. Give the config of that run")
    done = content.get("iteration", -1) + 1
    if done > max_iter:
        raise TwinsError(f"train.max_iter={max_iter}: the run has done {done} iterations already; give more")
    before = content.get("total_batch_size", batch_size)
    if batch_size != before:
        raise TwinsError(
            f"dataloader.train.total_batch_size={batch_size}: the run has had {before}, and goes on with its learning "
            "rate and order of the data: give as many"
        )


def _check_overlap(path: str, model: nn.Module) -> None:
    """detectron2's checkpointer takes what fits and warns; refuse where nothing does. URLs are its own business."""
    if "://" not in path and not _read_checkpoint(path)["model"].keys() & model.state_dict():
        raise TwinsError(f"train.init_checkpoint={path!r} has nothing for this model: {_WEIGHTS_HINT}")


def dataset_name_of(loader: DictConfig) -> str:
    """The (first) name under which a loader's data set stands in detectron2's catalog; "__unused" for one without."""
    dataset = loader.get("dataset", {})
    names = dataset.get("name", dataset.get("names", "__unused"))
    return names if isinstance(names, str) else names[0]


def dataset_meta_of(name: str) -> dict[str, Any]:
    """Class names and category ids of a data set in detectron2's catalog, in the order of the labels."""
    metadata = MetadataCatalog.get(name)
    classes = list(metadata.get("thing_classes", []))
    contiguous = metadata.get("thing_dataset_id_to_contiguous_id", {label: label for label in range(len(classes))})
    return {"classes": classes, "category_ids": sorted(contiguous, key=contiguous.__getitem__)}


def _check_classes(config: DictConfig, model: nn.Module, name: str) -> dict[str, Any]:
    meta = dataset_meta_of(name)
    num_classes = getattr(getattr(model, "roi_heads", model), "num_classes", None)
    if meta["classes"] and num_classes not in (None, len(meta["classes"])):
        from_yaml, with_regions = "cfg" in config.model, hasattr(model, "roi_heads")
        key = {
            (False, False): "model.num_classes",
            (False, True): "model.roi_heads.num_classes",
            (True, False): "MODEL.RETINANET.NUM_CLASSES",
            (True, True): "MODEL.ROI_HEADS.NUM_CLASSES",
        }[from_yaml, with_regions]
        raise TwinsError(
            f"data set {name!r} has {len(meta['classes'])} categories and the model {num_classes} classes: "
            f"add {key}={len(meta['classes'])}"
        )
    return meta


@contextmanager
def _one_line() -> Iterator[None]:
    """Turn what building a part of the config raises into a TwinsError of one line."""
    try:
        yield
    except TwinsError:
        raise
    except Exception as error:  # what a wrong value raises depends on who builds with it
        raise TwinsError(f"config: {type(error).__name__}: {' '.join(str(error).split())}") from error
