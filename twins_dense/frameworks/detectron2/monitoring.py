"""The settings of what a run watches and keeps, and the hook that evaluates, logs, keeps the best and stops early."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from detectron2.engine import hooks
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter
from omegaconf import DictConfig
from torch import nn

from ...errors import TwinsError, did_you_mean
from ...evaluation import metrics_file
from ...stopping import Stopped
from ..console import duration, evaluation_table
from ..console import logger as console
from ..options import MonitoringOptions
from .backbone import logger
from .detection_evaluator import METRICS, DetectionEvaluator, tasks_of
from .guards import guarded
from .hooks import BEST, EarlyStop, RunCheckpointer, as_fractions
from .validation import Validation

_METRICS = {
    "bbox": METRICS,
    "segm": METRICS,
    "keypoints": ("AP", "AP50", "AP75", "APm", "APl"),
}
_LOSS = "val/loss"  # the only metric that is better if it is smaller


@guarded
def set_monitoring(config: DictConfig, options: MonitoringOptions) -> None:
    """Set what a run watches and keeps, as `train.monitoring`. Options at their defaults keep the config's setting."""
    for field in fields(options):
        value = getattr(options, field.name)
        if value != field.default:
            config.train.monitoring[field.name] = value


@guarded
def monitoring_of(config: DictConfig) -> MonitoringOptions:
    """Return the settings of a config.

    Raises:
        TwinsError: if one has the wrong type, is out of range, or needs evaluations that the config does not make.
    """
    options = MonitoringOptions(**config.train.monitoring)

    def check(name: str, is_valid: bool, choices: str) -> None:
        if not is_valid:
            option = name.replace("_", "-")
            raise TwinsError(f"train.monitoring.{name}={getattr(options, name)!r} (--{option}): choose {choices}")

    check("best", options.best is None or isinstance(options.best, str), "the name of a metric, or null")
    for name in ("ema", "tensorboard", "val_loss"):
        check(name, isinstance(getattr(options, name), bool), "true or false")
    patience, samples = options.patience, options.samples
    check("patience", patience is None or (type(patience) is int and patience > 0), "1 or more evaluations, or null")
    check("samples", type(samples) is int and samples >= 0, "a whole number, 0 or more")
    if config.train.eval_period == 0:
        for name in ("best", "patience", "val_loss"):
            if getattr(options, name):
                raise TwinsError(
                    f"--{name.replace('_', '-')} needs evaluations, but train.eval_period (in a YAML file "
                    "TEST.EVAL_PERIOD) is 0: set it to a number of iterations"
                )
    return options


def choose_best(options: MonitoringOptions, model: nn.Module, evaluator: Any, classes: Sequence[str]) -> str | None:
    """Return the name of the metric by which the best checkpoint is chosen: by default mask AP, or else box AP.

    Args:
        options: The settings of the run.
        model: The model.
        evaluator: The evaluator of the config. Only the metrics of COCO's evaluators, ours and detectron2's, are known
            beforehand.
        classes: Names of the classes of the data set.

    Returns:
        The name, or `None` if no metric is named and those of the evaluator are not known.

    Raises:
        TwinsError: if the evaluator does not compute the metric.
    """
    if not isinstance(evaluator, (DetectionEvaluator, COCOEvaluator)):
        if options.patience and not options.best:
            raise TwinsError(f"--patience with {type(evaluator).__name__}: name one of its metrics with --best")
        return options.best
    tasks = tasks_of(model)
    if options.best is None:
        return "coco/segm_AP" if "segm" in tasks else "coco/bbox_AP"
    names = [f"coco/{task}_{name}" for task in tasks for name in _METRICS[task]]
    if options.val_loss:
        names.append(_LOSS)
    of_classes = [f"coco/{task}_AP-{name}" for task in tasks for name in classes] if len(classes) > 1 else []
    if options.best not in (*names, *of_classes):
        for_classes = f", or {of_classes[0]} and the like for single classes" if of_classes else ""
        raise TwinsError(
            f"--best {options.best!r} is not a metric of this run{did_you_mean(options.best, (*names, *of_classes))}; "
            f"choose one of {', '.join(names)}{for_classes}"
        )
    return options.best


class Monitor(hooks.PeriodicWriter):
    """Evaluate, keep the best checkpoint, log, write `metrics.json`, and stop early. Register this hook last.

    `metrics.json` is written after each evaluation, or at each checkpoint if the run has no evaluations, so that all
    its numbers belong to the weights after the iteration that it names. It also tells a resumed run whether the
    evaluation of the checkpoint was completed; if not, the run starts with that evaluation. `metrics.jsonl` is cut
    back to the iterations before the checkpoint.

    Args:
        settings: `config.train`.
        validation: The evaluation on the test data; `None` for a run without evaluations.
        checkpointer: The checkpointer of the run.
        best: Metric by which the best checkpoint is chosen.
        options: The settings of the run.
    """

    def __init__(
        self,
        settings: DictConfig,
        validation: Validation | None,
        checkpointer: RunCheckpointer,
        best: str | None,
        options: MonitoringOptions,
    ) -> None:
        super().__init__([], settings.log_period)
        self.folder = Path(settings.output_dir)
        self.checkpoint_period = settings.checkpointer.period
        self.evaluation_period = settings.eval_period
        self.validation = validation
        self.checkpointer = checkpointer
        self.best = best
        self._sign = -1 if best == _LOSS else 1
        self.options = options
        self.best_value: float | None = None
        self.best_iteration: int | None = None  # number of iterations done before
        self.num_without_better = 0  # evaluations since then
        self.last_evaluation: int | None = None  # number of iterations done before

    def before_train(self) -> None:
        done = self.trainer.start_iter
        # Only the first process needs to have the file.
        iteration, recorded = comm.all_gather(_read_record(self.folder))[0]
        if not done:
            self.last_evaluation = 0
        # The checkpoint was saved before its evaluation.
        is_recorded = bool(recorded) and iteration == done and self.last_evaluation not in (None, done)
        is_missing = self._is_due(done) and self.last_evaluation != done and not is_recorded
        if comm.is_main_process():
            if not done:  # a run that was killed before its first checkpoint may have left one
                (self.folder / metrics_file.NAME).unlink(missing_ok=True)
            self._open_writers(done - 1 if is_missing else done)
        if is_recorded or is_missing:
            self.trainer.iter = self.trainer.storage.iter = done - 1  # as at the end of that iteration
            if is_missing:
                self._evaluate()
            else:
                self._judge(recorded, done)
            self._stop_early()
            self.trainer.iter = self.trainer.storage.iter = done
        elif self._is_over(done):
            raise EarlyStop

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._is_due(done):
            self._evaluate()
            self._stop_early()
            return
        super().after_step()
        if self.validation is None and (done % self.checkpoint_period == 0 or done == self.trainer.max_iter):
            self._write_metrics({})

    def after_train(self) -> None:
        if sys.exc_info()[0] not in (None, EarlyStop, Stopped):
            super().after_train()  # write the values since the last line
        for writer in self._writers:
            writer.close()

    def state_dict(self) -> dict[str, Any]:
        return {
            "metric": self.best,
            "best_value": self.best_value,
            "best_iteration": self.best_iteration,
            "num_without_better": self.num_without_better,
            "last_evaluation": self.last_evaluation,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.last_evaluation = state["last_evaluation"]
        if state["metric"] != self.best:
            logger.warning(f"The best checkpoint was chosen by {state['metric']} before, and now by {self.best}")
            return
        self.best_value, self.best_iteration = state["best_value"], state["best_iteration"]
        self.num_without_better = state["num_without_better"]

    def _is_due(self, done: int) -> bool:
        is_period = self.evaluation_period > 0 and done % self.evaluation_period == 0
        return self.validation is not None and done > 0 and (is_period or done == self.trainer.max_iter)

    def _is_over(self, done: int) -> bool:
        patience = self.options.patience
        return patience is not None and self.num_without_better >= patience and done < self.trainer.max_iter

    def _stop_early(self) -> None:
        if self._is_over(self.trainer.iter + 1):
            self.checkpointer.save("model_final", iteration=self.trainer.iter)
            raise EarlyStop

    def _evaluate(self) -> None:
        assert self.validation is not None
        done, start = self.trainer.iter + 1, time.monotonic()
        results, losses = self.validation(done)
        seconds = time.monotonic() - start
        self.trainer.storage.put_scalars(**flatten_results_dict(results), **losses, smoothing_hint=False)
        metrics = comm.all_gather({**as_fractions(results), **losses})[0]
        is_better = self._judge(metrics, done)
        if is_better:
            self.checkpointer.save(BEST, iteration=self.trainer.iter)
        for writer in self._writers:
            writer.write()
        self._write_metrics(metrics)
        if comm.is_main_process():
            best = f", best {self.best} so far" if is_better else ""
            logger.info(
                f"evaluation after iteration {done}: {self.validation.size} images in {duration(seconds)}{best}"
            )
            shown = {name: value for name, value in metrics.items() if not name.startswith("val/loss_")}
            console.info(evaluation_table(shown))
        comm.synchronize()

    def _judge(self, metrics: Mapping[str, float], done: int) -> bool:
        """Count an evaluation, and return whether it is the best one so far."""
        self.last_evaluation = done
        if self.best is None:
            return False
        if self.best not in metrics:
            logger.warning(f"The evaluation after iteration {done} has no {self.best}, so it counts as not better")
        value = metrics.get(self.best, math.nan)
        is_better = math.isfinite(value) and (self.best_value is None or self._sign * (value - self.best_value) > 0)
        if is_better:
            self.best_value, self.best_iteration, self.num_without_better = value, done, 0
        else:
            self.num_without_better += 1
        return is_better

    def _write_metrics(self, metrics: Mapping[str, float]) -> None:
        if comm.is_main_process():
            latest = self.trainer.storage.latest()
            losses = {name: value for name, (value, _) in latest.items() if "loss" in name and "/" not in name}
            metrics_file.write_metrics(self.folder, metrics, iteration=self.trainer.iter + 1, losses=losses)

    def _open_writers(self, done: int) -> None:
        """Open detectron2's writers for a run that continues after `done` iterations."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "metrics.jsonl"
        last = _cut_back(path, done)
        writers: list[EventWriter] = [CommonMetricPrinter(self.trainer.max_iter), JSONWriter(str(path))]
        if self.options.tensorboard:
            # TensorBoard hides what an earlier process has logged from this iteration on.
            writers.append(TensorboardXWriter(str(self.folder), purge_step=done))
        for writer in writers[1:]:
            writer._last_write = last  # detectron2 has no public name for it
        self._writers = writers


def _read_record(folder: Path) -> tuple[int | None, dict[str, float]]:
    path = folder / metrics_file.NAME
    iteration = json.loads(path.read_bytes()).get("iter") if path.is_file() else None
    return iteration, metrics_file.read_metrics(folder)


def _cut_back(path: Path, done: int) -> int:
    """Remove the lines of all iterations from the `done`-th on, and return the last iteration that is left, or -1."""
    last, size = -1, 0
    if not path.exists():
        return last
    for line in path.read_bytes().splitlines(keepends=True):
        iteration = json.loads(line)["iteration"] if line.endswith(b"}\n") else done
        if iteration >= done:
            break
        last, size = iteration, size + len(line)
    os.truncate(path, size)
    return last
