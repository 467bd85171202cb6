"""The ImageNet protocol: images as the published classifiers saw them, and exact totals of a model's answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.models import ResNet50_Weights
from tqdm import tqdm

from ..atomic import write_atomically
from ..data.image_files import UNREADABLE, check_proportions
from ..errors import TwinsError
from ..weights.preprocessing import OFFICIAL_PREPROCESSING, TIMM_PREPROCESSING, Preprocessing
from .classes import WNIDS
from .folders import Sample

PROTOCOLS = {"official": OFFICIAL_PREPROCESSING, "timm": TIMM_PREPROCESSING}


@dataclass(frozen=True)
class Score:
    """What a classifier makes of a set of images.

    Attributes:
        counts: (1000, 3) images, hits of the first guess, hits among the first five, by class.
        loss: mean cross-entropy.
        unreadable: a line for each image that was left out because it can't be read.
        seconds: for all of it, reading included.
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
        """In percent."""
        return 100 * int(self.counts[:, 1].sum()) / self.num_images

    @property
    def top5(self) -> float:
        """In percent."""
        return 100 * int(self.counts[:, 2].sum()) / self.num_images


def image_transform(preprocessing: Preprocessing) -> Callable[[Image.Image], Tensor]:
    """From an RGB image to what a classifier takes: (3, crop, crop), normalised."""
    assert preprocessing.crop is not None, "classifiers take a crop"
    return transforms.Compose(
        [
            transforms.Resize(
                preprocessing.short_side,
                transforms.InterpolationMode(preprocessing.interpolation),
                preprocessing.long_side,
            ),
            transforms.CenterCrop(preprocessing.crop),
            transforms.ToTensor(),
            transforms.Normalize(preprocessing.mean, preprocessing.std),
        ]
    )


class LabelledImages(Dataset):
    """Images with labels; an image that can't be read comes as a line that says why.

    EXIF orientation is not applied, as the published protocols don't; gray and CMYK become RGB.
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
            with Image.open(path) as file:
                check_proportions(file, self.short_side)
                return self.transform(file.convert("RGB")), label
        except UNREADABLE as error:
            return f"{path} can't be read ({' '.join(str(error).split())})"


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
) -> Score:
    """Score a classifier of ImageNet's 1000 classes; `joined_processes` share the images, and none counts twice.

    Args:
        net: a classifier in eval mode, on `device`.
        samples: all of them, in the same order in each process.
        preprocessing: what to do with the images.
        device: where the model is.
        batch_size: images at a time in each process.
        num_workers: processes that read images, for each process.
        amp: run under autocast with this type.

    Returns:
        The totals, the same in every process.

    Raises:
        TwinsError: where none of the images can be read, or the classifier's outputs are not finite.
    """
    rank, num_processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    start = time.perf_counter()
    images = LabelledImages(samples[rank::num_processes], preprocessing)
    loader = DataLoader(images, batch_size, num_workers=num_workers, collate_fn=_collated)
    counts = torch.zeros(len(WNIDS), 3, dtype=torch.int64)
    loss = torch.zeros((), dtype=torch.float64)
    unreadable: list[str] = []
    for batch, labels, lines in tqdm(loader, desc="validate", unit="batch", disable=None if rank == 0 else True):
        unreadable += lines
        if not len(labels):
            continue
        with torch.autocast(device.type, amp, enabled=amp is not None):
            logits = net(batch.to(device, non_blocking=True))
        logits = logits.float().cpu()
        loss += F.cross_entropy(logits, labels, reduction="none").double().sum()
        hits = logits.topk(5).indices == labels[:, None]  # (B, 5)
        rows = torch.stack([torch.ones_like(labels), hits[:, 0].long(), hits.any(1).long()], dim=1)
        counts.index_add_(0, labels, rows)
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
        raise TwinsError("the classifier's outputs are not finite: its weights are broken")
    return Score(counts, loss.item() / num_images, tuple(unreadable), seconds.item())


def write_classes(score: Score, path: Path) -> None:
    """Write a CSV file with a line a class that has images: wnid, name, images, top-1 and top-5 in percent."""
    names = ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    lines = ["wnid,name,images,top1,top5"]
    for wnid, name, (count, top1, top5) in zip(WNIDS, names, score.counts.tolist(), strict=True):
        if count:
            lines.append(f'{wnid},"{name}",{count},{100 * top1 / count:.2f},{100 * top5 / count:.2f}')
    write_atomically(path, ("\n".join(lines) + "\n").encode())


def _collated(items: list[tuple[Tensor, int] | str]) -> tuple[Tensor, Tensor, list[str]]:
    """A batch of the images that can be read, their labels, and the lines of those that can't."""
    good = [item for item in items if not isinstance(item, str)]
    lines = [item for item in items if isinstance(item, str)]
    batch = torch.stack([image for image, _ in good]) if good else torch.empty(0)
    return batch, torch.tensor([label for _, label in good], dtype=torch.int64), lines
