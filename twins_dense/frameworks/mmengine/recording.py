"""Recording an evaluation under MMEngine: one entry per image, from which the evaluation can be resumed.

See `twins_dense.evaluation.record` for the files.
"""

from __future__ import annotations

import os
import shutil
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...errors import one_line
from ...evaluation.record import About, RecordWriter, Task, device_name, identity_of, named_if_broken, package_versions
from ...weights.download import fetch_weights
from ..console import logger
from .stored import to_data

_INDEX = "record_index"  # key of the position in the data set, in the meta information of a sample
_PACKAGES = ("torchvision", "mmengine", "mmsegmentation", "hotcoco")


class RecordedMetric(BaseMetric):
    """Base class of metrics whose results can be restored from the entries of a record.

    `compute_metrics` of a subclass starts by passing its argument through `with_finished`.
    """

    task: Task
    _finished: Sequence[Mapping[str, Any]] = ()

    @abstractmethod
    def obstacle(self, dataset: Any) -> str:
        """Return why evaluations on a data set cannot be recorded, or an empty string."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return the settings of the task (see `About`)."""

    @abstractmethod
    def entry_of(self, sample: Any, result: Any, index: int, writer: RecordWriter) -> dict[str, Any]:
        """Return the entry of an image, without `index`.

        Args:
            sample: Output of the model.
            result: Result of the metric for the same image.
            index: Position of the image in the data set.
            writer: Writer of the record, which also writes maps.
        """

    @abstractmethod
    def result_of(self, entry: Mapping[str, Any], folder: Path) -> Any:
        """Return the result of the metric for the image of an entry in the record `folder`."""

    def resume(self, finished: Sequence[Mapping[str, Any]], remaining: Sequence[int], folder: Path) -> None:
        """Continue an evaluation.

        Args:
            finished: Entries of the images that have been evaluated.
            remaining: Positions of the other images in the data set, in ascending order.
            folder: Folder of the record.
        """
        self._finished, self._remaining, self._folder = finished, remaining, folder

    def with_finished(self, results: Sequence[Any]) -> list[Any]:
        """Return the results of all images in the order of the data set, on which the rounding of sums depends.

        Args:
            results: Results of the images that remained.
        """
        if not self._finished:
            return list(results)
        found = dict(zip(self._remaining, results, strict=True))
        with named_if_broken(self._folder):
            found.update((entry["index"], self.result_of(entry, self._folder)) for entry in self._finished)
        return [found[index] for index in sorted(found)]


class Recording:
    """The record of an evaluation that is about to start or to be resumed. Use it as a context manager.

    Args:
        config: The config, complete and with the settings of the test.
        checkpoint: Path or catalog name of the checkpoint.
        dataset: The whole data set.
        evaluator: An evaluator for which `obstacle` has found no obstacle.
        work_dir: Folder of the evaluation.

    Attributes:
        images: The images that remain.
        hook: Hook that writes the entries.

    Raises:
        TwinsError: If the folder has a record of another evaluation.
    """

    def __init__(
        self, config: Config, checkpoint: str | Path, dataset: Any, evaluator: Evaluator, work_dir: Path
    ) -> None:
        (self.metric,) = evaluator.metrics
        evaluator.dataset_meta = dataset.metainfo
        about = About(
            task=self.metric.task,
            classes=list(dataset.metainfo["classes"]),
            num_images=len(dataset),
            identity=_identity(config, checkpoint),
            checkpoint=str(checkpoint),
            dataset=dataset.source,
            settings=self.metric.settings(),
            config=_plain(config),
            engine="mmengine",
            versions=package_versions(*_PACKAGES),
            device=device_name("cuda" if torch.cuda.is_available() else "cpu"),
        )
        rank = int(os.environ["RANK"]) if config.launcher == "pytorch" else 0  # the processes have not joined yet
        self.writer = RecordWriter(work_dir, about, rank=rank)
        self.images = _Images(dataset, range(len(dataset)))
        self.hook = _RecordHook(self)

    @property
    def is_complete(self) -> bool:
        """Whether no image remains."""
        return len(self.writer.finished) == len(self.images.dataset)

    def agree(self) -> None:
        """Make all processes, which have joined by now, leave out the images that the first one found finished."""
        finished = self.writer.finished
        message = [[entry["index"] for entry in finished]]
        broadcast_object_list(message)
        done = set(message[0])
        self.images.indices = [index for index in self.images.indices if index not in done]
        if is_main_process():
            self.metric.resume(finished, self.images.indices, self.writer.folder)
            if done:
                logger.info(f"resuming: {len(done)} of {len(self.images.dataset)} images are finished")
        self.writer.finished = ()  # the metric has them

    def metrics(self) -> dict[str, Any]:
        """Return the metrics if no image remains."""
        self.metric.resume(self.writer.finished, (), self.writer.folder)
        prefix = f"{self.metric.prefix}/" if self.metric.prefix else ""
        with named_if_broken(self.writer.folder):
            found = self.metric.compute_metrics([])
        return {f"{prefix}{name}": value for name, value in found.items()}

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        self.writer.__exit__()


class _RecordHook(Hook):
    """Write the entries of a batch after its evaluation.

    If the output of the model lacks what the entries need, the record is removed and the evaluation continues.
    """

    def __init__(self, recording: Recording) -> None:
        self.recording: Recording | None = recording

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if self.recording is None:
            return
        metric, writer = self.recording.metric, self.recording.writer
        results = metric.results[len(metric.results) - len(outputs) :]
        try:
            for sample, result in zip(outputs, results, strict=True):
                index = sample.metainfo[_INDEX]
                writer.add({"index": index, **metric.entry_of(sample, result, index, writer)})
        except (AttributeError, KeyError) as error:  # a model of the user's own returns something else
            self.recording = None
            if is_main_process():
                shutil.rmtree(writer.folder)
                warn_of_obstacle(f"the output of the model is incomplete ({one_line(error)})")


class _Images(torch.utils.data.Dataset):
    """Some images of a data set, whose samples carry their positions in it."""

    def __init__(self, dataset: Any, indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = indices
        self.metainfo, self.problems = dataset.metainfo, dataset.problems

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Any:
        index = self.indices[position]
        sample = self.dataset[index]
        views = sample.get("data_samples", ())
        for view in views if isinstance(views, (list, tuple)) else [views]:  # several with test-time augmentation
            view.set_metainfo({_INDEX: index})
        return sample


def obstacle(evaluator: Evaluator, dataset: Any) -> str:
    """Return why an evaluation cannot be recorded, or an empty string."""
    metric = evaluator.metrics[0]
    if len(evaluator.metrics) > 1 or not isinstance(metric, RecordedMetric):
        names = ", ".join(type(metric).__name__ for metric in evaluator.metrics)
        return f"test_evaluator={names}: use either CocoMetric or twins_dense.IoUMetric"
    return metric.obstacle(dataset)


def warn_of_obstacle(reason: str) -> None:
    """Log that an evaluation is not recorded."""
    logger.warning(f"This evaluation cannot be resumed, and there will be no report of it: {reason}")


def _identity(config: Config, checkpoint: str | Path) -> str:
    """Return a hash of the checkpoint and of the settings that affect the results."""
    content = config.to_dict()
    loader = content["test_dataloader"]
    settings = {name: content.get(name) for name in ("model", "test_evaluator", "test_cfg")}
    settings |= {name: loader.get(name) for name in ("dataset", "batch_size")}
    return identity_of(fetch_weights(checkpoint), settings)


def _plain(config: Config) -> dict[str, Any]:
    try:
        return to_data(config)
    except Exception:  # the config can contain anything
        return {}
