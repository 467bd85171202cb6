"""Load a trained detector and evaluate it, in one or several processes."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack, redirect_stdout
from itertools import count
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import instantiate
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn

from ...evaluation import metrics_file
from ...evaluation.record import check_unrecorded
from .. import checks
from ..console import Progress, duration, is_of_class, logger
from ..work_dir import for_evaluation
from .backbone import logger as twins_logger
from .checks import categories_of, check_classes, dataset_name_of, read_detector
from .detection_evaluator import DetectionEvaluator
from .guards import building
from .hooks import as_fractions
from .launch import fit_device, launch_run, set_up, silence_torch
from .recording import evaluation_identity, finished_record, recorded_results, start_recording

_log = logging.getLogger("detectron2.evaluation")  # for the log file, not for the console


def evaluate(
    config: DictConfig, checkpoint: str | Path, work_dir: str | Path, *, launch: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """Evaluate a detectron2 checkpoint on the test data of a config.

    The evaluation is recorded image by image in `work_dir/record`, see `twins_dense.evaluation.record`. If the folder
    contains an unfinished evaluation of the same checkpoint and config, only the remaining images are evaluated; if it
    is finished, only the metrics are computed again.

    Returns:
        The metrics by name (such as `coco/bbox_AP50`), with scores as fractions and without those of single classes,
        which are only in `work_dir/metrics.json`. If there are several machines, only the first returns any metrics.

    Raises:
        TwinsError: if the config, the data or the checkpoint cannot be used, or if the folder contains the record of
            another evaluation.
    """
    work_dir = for_evaluation(work_dir)
    config.train.output_dir = str(work_dir)
    launch_run(_evaluate, launch, config, str(checkpoint))
    if launch and launch.get("machine_rank"):  # only the first machine has the metrics
        return {}
    return {name: value for name, value in metrics_file.read_metrics(work_dir).items() if not is_of_class(name)}


def load_model(config: DictConfig, checkpoint: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Load the model of a config with the weights of a detectron2 checkpoint, in eval mode, on the config's device.

    Returns:
        The model, and the content of the checkpoint.

    Raises:
        TwinsError: if the checkpoint belongs to another model.
    """
    silence_torch()
    fit_device(config)
    _drop_initial_weights(config)
    content = read_detector(checkpoint)
    with building(config):
        model = instantiate(config.model)
    checks.check_checkpoint(content["model"], model.state_dict(), checkpoint)
    DetectionCheckpointer(model).load(str(checkpoint))
    return model.to(config.train.device).eval(), content


def _evaluate(config: DictConfig, checkpoint: str) -> None:
    set_up(config)
    content, folder = read_detector(checkpoint), Path(config.train.output_dir)
    _drop_initial_weights(config)
    with building(config):
        identity = evaluation_identity(config, checkpoint)
    record = finished_record(folder, identity)
    if comm.all_gather(record is not None)[0]:  # only the first process needs to have it
        results = {} if record is None else recorded_results(record, config)
    else:
        results = _results(config, checkpoint, identity)
    if comm.is_main_process():
        last = content.get("iteration")
        metrics_file.write_metrics(
            folder,
            as_fractions(results),
            iteration=None if last is None else last + 1,
            checkpoint=checkpoint,
            dataset=dataset_name_of(config.dataloader.test),
        )


def _results(config: DictConfig, checkpoint: str, identity: str) -> dict[str, Any]:
    """Evaluate a checkpoint, record the evaluation if that is possible, and return the results of the evaluator."""
    name = dataset_name_of(config.dataloader.test)
    with building(config):
        # The data set comes first, as in `build_test`.
        records = instantiate(config.dataloader.test.get("dataset"))
        evaluator = instantiate(config.dataloader.evaluator)
    model, content = load_model(config, checkpoint)
    found, trained = check_classes(config, model, name), content.get("dataset_meta")
    if trained is not None:
        categories = [categories_of(meta) for meta in (found, trained)]
        checks.check_categories(f"data set {name!r}", categories[0], f"checkpoint {checkpoint!r}", categories[1])
    with ExitStack() as stack:
        if isinstance(evaluator, DetectionEvaluator) and isinstance(records, list):
            writer = stack.enter_context(
                start_recording(config, checkpoint, model, evaluator, identity=identity, num_images=len(records))
            )
            # Only the first process needs to have the record.
            finished = set(comm.all_gather([entry["image"]["id"] for entry in writer.finished])[0])
            if finished:
                twins_logger.info(f"resuming: {len(finished)} of {len(records)} images are finished")
            records = [record for record in records if record["image_id"] not in finished]
        else:
            check_unrecorded(Path(config.train.output_dir))
            twins_logger.warning(
                "This evaluation cannot be resumed, and there will be no report of it: dataloader.evaluator is a "
                f"{type(evaluator).__name__}; use our DetectionEvaluator, and a list as dataloader.test.dataset"
            )
        with building(config):
            loader = instantiate({**config.dataloader.test, **({} if records is None else {"dataset": records})})
        start = time.monotonic()
        results = score(model, loader, [evaluator])
    if comm.is_main_process():
        logger.info(f"evaluation: {len(loader.dataset)} images in {duration(time.monotonic() - start)}")
    return results


def build_test(config: DictConfig) -> tuple[Any, Any]:
    """Return the test loader and the evaluator of a config."""
    # The loader comes first: building its data set registers the ground truth that the evaluator reads.
    loader = instantiate(config.dataloader.test)
    return loader, instantiate(config.dataloader.evaluator)


def score(model: nn.Module, loader: Any, evaluators: list[Any]) -> dict[str, Any]:
    """Return the results of evaluators by task, or an empty dictionary in all processes but the first."""
    callbacks = {}
    if comm.is_main_process():
        progress, batches = Progress(len(loader), last_line=False), count(1)

        def show_progress() -> None:
            done = next(batches)
            progress.update(done, f"evaluation  batch {done}/{len(loader)}")

        callbacks["after_inference"] = show_progress
    with redirect_stdout(io.StringIO()) as printed:  # by pycocotools
        results = inference_on_dataset(model, loader, evaluators, callbacks)
    if comm.is_main_process():
        _log.info(printed.getvalue())
        print_csv_format(results)
    return results or {}


def _drop_initial_weights(config: DictConfig) -> None:
    """Remove the ImageNet weights from a config, because a checkpoint of the whole model will be loaded instead."""
    net = config.model.get("backbone", {}).get("bottom_up", {}).get("net", {})
    for node in (config.model, net):  # the first for a YAML file, the second for a LazyConfig
        if node.get("weights"):
            node.weights = None
