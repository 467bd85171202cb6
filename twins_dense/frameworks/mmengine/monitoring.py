"""Settings for monitoring MMEngine runs: best checkpoint, averaged weights, early stopping, TensorBoard, samples."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from ...errors import TwinsError, did_you_mean
from ...evaluation.coco import metric_names
from ..options import MonitoringOptions
from .config import guarded, set_max_dets_of_metric
from .resuming import ResumableEarlyStoppingHook
from .validation_hooks import SamplePicturesHook, ValidationLossHook

_DEFAULTS = ("coco/segm_AP", "coco/bbox_AP", "mIoU")  # the first that a run evaluates chooses the best checkpoint
_IOU_METRICS = {
    "mIoU": ("mIoU", "mAcc"),
    "mDice": ("mDice", "mAcc"),
    "mFscore": ("mFscore", "mPrecision", "mRecall"),
}
# The weight of the newest model in the average is 10 / (10 + iterations), so that the average covers about the last
# tenth of the run so far, but at least 0.0002: then it covers about 5,000 iterations.
_AVERAGE = {"ema_type": "MomentumAnnealingEMA", "momentum": 0.0002, "gamma": 10, "strict_load": True}
_AVERAGING = "EMAHook"
_TRAINING_HOOKS = (_AVERAGING, ResumableEarlyStoppingHook.__name__)


@guarded
def set_monitoring(config: Config, options: MonitoringOptions) -> None:
    """Make a config watch and keep what the options say.

    Raises:
        TwinsError: for an unknown metric or a number that is out of range, if the config has no validation data for an
            option that needs some, or if a package is missing.
    """
    if options.patience is not None and options.patience < 1:
        raise TwinsError(f"--patience {options.patience}: choose a whole number, 1 or more")
    if options.samples < 0:
        raise TwinsError(f"--samples {options.samples}: choose 0 or more")
    if options.tensorboard:
        _log_to_tensorboard(config)
    if options.ema:
        _set_hook(config, _AVERAGING, **_AVERAGE)
    if config.get("val_dataloader") is None:
        needed = {"best": options.best, "patience": options.patience, "val-loss": options.val_loss}
        for name, value in needed.items():
            if value:
                raise TwinsError(f"--{name} needs validation data, but config {str(config.filename)!r} has none")
        return
    best = _set_best(config, options)
    if options.patience is not None:
        if best is None:
            raise TwinsError("--patience needs a metric: add --best with the name of one that the run evaluates")
        rule = _rule(best)
        _set_hook(config, ResumableEarlyStoppingHook.__name__, monitor=best, rule=rule, patience=options.patience)
    if options.val_loss:
        _set_hook(config, ValidationLossHook.__name__)
    if options.samples:
        _set_hook(config, SamplePicturesHook.__name__, num_images=options.samples)


def check_average(config: Config, checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Raise `TwinsError` if a checkpoint to resume from holds averaged weights, but the config does not average them.

    Training would continue from the average.
    """
    if "ema_state_dict" in checkpoint and not any(h["type"] == _AVERAGING for h in config.get("custom_hooks") or []):
        raise TwinsError(f"checkpoint {str(path)!r} is from a run that averages its weights: add --ema to resume it")


def without_training_hooks(config: Config) -> list[Any]:
    """Return the custom hooks of a config without those that make no sense in an evaluation."""
    return [hook for hook in config.get("custom_hooks") or [] if hook["type"] not in _TRAINING_HOOKS]


def _set_best(config: Config, options: MonitoringOptions) -> str | None:
    """Make a config keep the best checkpoint, and return the metric that decides."""
    known = _known_metrics(config) + (["val/loss"] if options.val_loss else [])
    hook = config.setdefault("default_hooks", ConfigDict()).setdefault("checkpoint", {"type": "CheckpointHook"})
    before = (hook or {}).get("save_best")  # of the config
    if options.best is None and before is not None:
        return before if isinstance(before, str) else before[0]
    best = options.best or next((name for name in _DEFAULTS if name in known), None)
    if options.best is not None and known and best not in known:
        raise TwinsError(
            f"--best {best!r}: this run does not evaluate it{did_you_mean(options.best, known)}; "
            f"choose one of {', '.join(known)}"
        )
    if best is not None and hook is not None:
        hook.update(save_best=best, rule=_rule(best))
    return best


def _known_metrics(config: Config) -> list[str]:
    """Return the metrics of the evaluators of a config; an empty list if one of them is of an unknown type."""
    set_max_dets_of_metric(config)  # a metric has the number in its name
    evaluators = config.get("val_evaluator") or []
    names: list[str] = []
    for evaluator in evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]:
        kind = evaluator["type"].rpartition(".")[2]
        if kind == "CocoMetric":
            prefix = evaluator.get("prefix", "coco")
            of_types = metric_names(evaluator.get("iou_types", ("bbox",)), evaluator["max_dets"])
            names += [f"{prefix}/{name}" for name in of_types]
        elif kind == "IoUMetric":
            prefix = f"{evaluator['prefix']}/" if evaluator.get("prefix") else ""
            kinds = evaluator.get("iou_metrics", ["mIoU"])
            of_kinds = [name for kind in kinds for name in _IOU_METRICS.get(kind, ())]
            names += [f"{prefix}{name}" for name in dict.fromkeys([*of_kinds, "aAcc"])]
        else:
            return []
    return names


def _rule(metric: str) -> str:
    return "less" if "loss" in metric else "greater"


def _set_hook(config: Config, kind: str, **arguments: Any) -> None:
    """Add a hook to a config, or replace the one of the same type."""
    others = [hook for hook in config.get("custom_hooks") or [] if hook["type"] != kind]
    config.custom_hooks = [*others, ConfigDict(type=kind, **arguments)]


def _log_to_tensorboard(config: Config) -> None:
    if importlib.util.find_spec("tensorboard") is None:
        raise TwinsError("--tensorboard needs the package tensorboard: pip install tensorboard")
    visualizer = config.get("visualizer") or ConfigDict(type="Visualizer", vis_backends=[{"type": "LocalVisBackend"}])
    backends = list(visualizer.get("vis_backends") or [])
    if not any(backend["type"] == "TensorboardVisBackend" for backend in backends):
        backends.append({"type": "TensorboardVisBackend"})
    visualizer["vis_backends"] = backends
    config.visualizer = visualizer
