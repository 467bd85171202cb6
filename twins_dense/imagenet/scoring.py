"""Score a classifier on ImageNet: exact top-1, top-5 and loss, with one or several processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.models import ResNet50_Weights
from tqdm import tqdm

from ..atomic import write_atomically
from ..data.image_files import UNREADABLE, check_proportions, open_image
from ..errors import TwinsError, one_line
from ..weights.preprocessing import Preprocessing
from .classes import WNIDS
from .folders import Sample
from .transforms import image_transform


@dataclass(frozen=True)
class Score:
    """Score of a classifier on a set of images.

    Attributes:
        counts: int64 (1000, 3): for each class, the number of images, of correct top-1 and correct top-5 predictions.
        loss: Mean cross-entropy.
        unreadable: One line for each image that was left out because it cannot be read.
        seconds: Total time, including reading the images.
    """

    counts: Tensor
    loss: float
    unreadable: tuple[str, ...]
    seconds: float

    @property
    def num_images(self) -> int:
        return int(self.counts[:, 0].sum())

    @property
    def top1(self) -> float:
        """Top-1 accuracy in percent."""
        return 100 * int(self.counts[:, 1].sum()) / self.num_images

    @property
    def top5(self) -> float:
        """Top-5 accuracy in percent."""
        return 100 * int(self.counts[:, 2].sum()) / self.num_images


class LabelledImages(Dataset):
    """Data set of transformed images and their labels. An item is a one-line error if the image is unreadable.

    As in the published protocols, the EXIF orientation is not applied. Gray and CMYK images are converted to RGB.
    """

    def __init__(self, samples: Sequence[Sample], preprocessing: Preprocessing) -> None:
        self.samples = samples
        self.short_side = preprocessing.short_side
        self.transform = image_transform(preprocessing)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | str:
        path, label = self.samples[index]
        try:
            with open_image(path) as file:
                check_proportions(file, self.short_side)
                return self.transform(file.convert("RGB")), label
        except UNREADABLE as error:
            return f"{path} cannot be read ({one_line(error)})"


@torch.inference_mode()
def score(
    net: Callable[[Tensor], Tensor],
    samples: Sequence[Sample],
    preprocessing: Preprocessing,
    *,
    device: torch.device,
    batch_size: int,
    num_workers: int,
    amp: torch.dtype | None = None,
    on_image: Callable[[Mapping[str, Any]], object] | None = None,
) -> Score:
    """Score a classifier of the 1000 ImageNet classes.

    Inside `joined_processes`, the processes share the images, and each image is scored exactly once.

    Args:
        net: The classifier, in eval mode, on `device`.
        samples: All samples, in the same order in every process.
        preprocessing: Preprocessing of the images.
        device: Device of the classifier.
        batch_size: Batch size of each process.
        num_workers: Number of data loader workers of each process.
        amp: Data type for autocast; `None` computes in float32.
        on_image: Function that is called with the result of each image of this process: `index` in `samples`, `file`,
            `label`, the five most probable labels `top` with their `probabilities`, and `loss`; for an unreadable image
            `error` instead of the last three.

    Returns:
        The score over all processes, the same in each of them.

    Raises:
        TwinsError: If no image can be read, or the outputs of the classifier are not finite.
    """
    rank, num_processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    start = time.perf_counter()
    images = LabelledImages(samples[rank::num_processes], preprocessing)
    loader = DataLoader(images, batch_size, num_workers=num_workers, collate_fn=_collate)
    counts = torch.zeros(len(WNIDS), 3, dtype=torch.int64)
    loss = torch.zeros((), dtype=torch.float64)
    unreadable: list[str] = []
    indices = iter(range(rank, len(samples), num_processes))
    for batch, labels, errors in tqdm(loader, desc="validate", unit="batch", disable=None if rank == 0 else True):
        entries = [_entry(index, samples[index], error) for error, index in zip(errors, indices, strict=False)]
        unreadable += [error for error in errors if error]
        if len(labels):
            with torch.autocast(device.type, amp, enabled=amp is not None):
                logits = net(batch.to(device, non_blocking=True))
            logits = logits.float().cpu()
            losses = F.cross_entropy(logits, labels, reduction="none")
            loss += losses.double().sum()
            top = logits.topk(5).indices  # (B, 5)
            hits = top == labels[:, None]
            rows = torch.stack([torch.ones_like(labels), hits[:, 0].long(), hits.any(1).long()], dim=1)
            counts.index_add_(0, labels, rows)
            values = zip(top.tolist(), logits.softmax(1).gather(1, top).tolist(), losses.tolist(), strict=True)
            for entry in entries:
                if "error" not in entry:
                    entry["top"], entry["probabilities"], entry["loss"] = next(values)
        if on_image is not None:
            for entry in entries:
                on_image(entry)
    seconds = torch.tensor(time.perf_counter() - start)
    if num_processes > 1:
        lists: list[list[str]] = [[] for _ in range(num_processes)]
        dist.all_gather_object(lists, unreadable)
        unreadable = sorted(line for lines in lists for line in lines)
        dist.all_reduce(counts)
        dist.all_reduce(loss)
        dist.all_reduce(seconds, dist.ReduceOp.MAX)
    num_images = int(counts[:, 0].sum())
    if not num_images:
        raise TwinsError(f"none of the {len(samples)} images can be read; the first: {unreadable[0]}")
    if not loss.isfinite():
        raise TwinsError("the outputs of the classifier are not finite: its weights are broken")
    return Score(counts, loss.item() / num_images, tuple(unreadable), seconds.item())


def write_classes(score: Score, path: Path) -> None:
    """Write a CSV file with one line per class that has images: wnid, name, number of images, top-1 and top-5 (%)."""
    names = ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    lines = ["wnid,name,images,top1,top5"]
    for wnid, name, (count, top1, top5) in zip(WNIDS, names, score.counts.tolist(), strict=True):
        if count:
            lines.append(f'{wnid},"{name}",{count},{100 * top1 / count:.2f},{100 * top5 / count:.2f}')
    write_atomically(path, ("\n".join(lines) + "\n").encode())


def _entry(index: int, sample: Sample, error: str | None) -> dict[str, Any]:
    entry = {"index": index, "file": str(sample[0].absolute()), "label": sample[1]}
    return {**entry, "error": error} if error else entry


def _collate(items: list[tuple[Tensor, int] | str]) -> tuple[Tensor, Tensor, list[str | None]]:
    """Return the batch of readable images, their labels, and the error of each image, `None` if it is readable."""
    readable = [item for item in items if not isinstance(item, str)]
    errors = [item if isinstance(item, str) else None for item in items]
    batch = torch.stack([image for image, _ in readable]) if readable else torch.empty(0)
    return batch, torch.tensor([label for _, label in readable], dtype=torch.int64), errors
