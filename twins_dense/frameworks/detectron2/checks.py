"""Check the data sets, the classes and the checkpoints of a run before it starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from omegaconf import DictConfig
from torch import nn

from ...errors import TwinsError
from ...weights.read import read_checkpoint
from .. import checks
from ..checks import config_errors
from .data import check_masks

_WEIGHTS_HINT = (
    "backbone weights go into a Python config as model.backbone.bottom_up.net.weights, into YAML as MODEL.TWINS.WEIGHTS"
)


def building() -> AbstractContextManager[None]:
    """Return a context manager that turns errors raised while a part of a config is built into one line."""
    return config_errors("config")


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


def check_classes(config: DictConfig, model: nn.Module, name: str) -> dict[str, Any]:
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


def categories_of(meta: Mapping[str, Any]) -> list[str]:
    """Return the id and the name of each category as one string, in the order of the labels."""
    return [f"{i} {name}" for i, name in zip(meta["category_ids"], meta["classes"], strict=True)]


def read_detector(path: str | Path) -> dict[str, Any]:
    """Return the content of a detectron2 checkpoint.

    Raises:
        TwinsError: if the file is not a detectron2 checkpoint.
    """
    content = read_checkpoint(path)
    if not isinstance(content, dict) or not isinstance(content.get("model"), Mapping):
        raise TwinsError(
            f"checkpoint {str(path)!r} is not a detectron2 checkpoint (it has no 'model'): use a model_*.pth from a "
            f"training run; {_WEIGHTS_HINT}"
        )
    meta = content.get("dataset_meta")
    if meta is not None:
        checks.check_dataset_meta(meta, path)
    return content


def check_resumable(path: Path, model: nn.Module, config: DictConfig) -> Any:
    """Return the state of the optimiser in a checkpoint from which a run with this model and config is resumed.

    Raises:
        TwinsError: if the run cannot continue from the checkpoint.
    """
    content = read_detector(path)
    checks.check_checkpoint(content["model"], model.state_dict(), path)
    trainer, done = content.get("trainer"), content.get("iteration")
    if type(done) is not int or not isinstance(trainer, Mapping) or type(trainer.get("iteration")) is not int:
        raise TwinsError(f"checkpoint {str(path)!r} does not name its iteration: it cannot be resumed")
    hooks = trainer.get("hooks", {})
    if not isinstance(hooks, Mapping) or not all(isinstance(state, Mapping) for state in hooks.values()):
        raise TwinsError(f"checkpoint {str(path)!r} has no usable state of its hooks: it cannot be resumed")
    is_averaged, averages = "WeightAverage" in hooks, config.train.monitoring.ema
    if is_averaged != averages:
        raise TwinsError(
            "the run has averaged its weights so far: add --ema"
            if is_averaged
            else "--ema: the run has not averaged its weights so far; resume it without, or start a new run"
        )
    checks.check_resumable(done=done + 1, limit=config.train.max_iter, limit_key="train.max_iter")
    checks.check_batch_size(
        config.dataloader.train.get("total_batch_size"),
        content.get("total_batch_size"),
        key="dataloader.train.total_batch_size",
    )
    return trainer.get("optimizer")


def check_overlap(path: str, model: nn.Module) -> None:
    """Raise `TwinsError` if a checkpoint has no entry of the model, about which detectron2 would only warn.

    URLs are not checked.
    """
    if "://" not in path and not read_detector(path)["model"].keys() & model.state_dict():
        raise TwinsError(f"train.init_checkpoint={path!r} has no weights for this model: {_WEIGHTS_HINT}")
