"""Validate classifiers on ImageNet, and write their scores to a folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..atomic import write_atomically
from ..errors import TwinsError
from ..weights.catalog import CATALOG
from ..weights.download import fetch_weights, sha256_of
from .folders import Sample
from .scoring import score, write_classes
from .transforms import VALIDATION_PROTOCOLS


def published_classifiers(protocol: str) -> dict[str, str]:
    """Return the catalog name of each variant's weights whose published scores were measured with a protocol.

    These are timm's weights for "timm", and mmpretrain's, which have published top-5 scores, for "official".
    """
    source = "timm" if protocol == "timm" else "mmpretrain"
    return {spec.variant: name for name, spec in CATALOG.items() if name.endswith(f".in1k-{source}")}


class Validation:
    """Validation that scores classifiers with one protocol, and writes `metrics.json` and one CSV file per classifier.

    Inside `joined_processes`, the processes share the images, and the first one writes the files.

    Args:
        samples: All samples, in the same order in every process.
        protocol: Name of the protocol, one of `VALIDATION_PROTOCOLS`.
        folder: New or empty folder for the results. `run` creates it.
        device: Device of the classifiers.
        batch_size: Batch size of each process.
        num_workers: Number of data loader workers of each process.
        amp: "bf16" for autocast in bfloat16; `None` computes in float32.
        compiled: Whether the classifiers are compiled, as recorded in `metrics.json`.

    Raises:
        TwinsError: If the folder is not empty.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        protocol: str,
        folder: Path,
        *,
        device: torch.device,
        batch_size: int,
        num_workers: int,
        amp: str | None = None,
        compiled: bool = False,
    ) -> None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise TwinsError(f"--out {str(folder)!r} is not empty: choose another folder")
        self.samples, self.protocol, self.folder = samples, protocol, folder
        self._device, self._batch_size, self._num_workers = device, batch_size, num_workers
        self._amp, self._compiled = amp, compiled
        self._metrics: list[dict[str, Any]] = []

    def run(
        self,
        net: Callable[[Tensor], Tensor],
        variant: str,
        weights: str,
        report: str,
        *,
        on_image: Callable[[Mapping[str, Any]], object] | None = None,
    ) -> dict[str, Any]:
        """Score a classifier, and add it to the files in the folder.

        Args:
            net: The classifier, in eval mode, on the device.
            variant: Name of the variant, also used for the CSV file.
            weights: Path or catalog name that the classifier was loaded from.
            report: One-line report of the loading.
            on_image: As for `score`.

        Returns:
            The classifier's entry in `metrics.json`; `top1` and `top5` are in percent.

        Raises:
            TwinsError: If no image can be read, or the outputs of the classifier are not finite.
        """
        is_first = not dist.is_initialized() or dist.get_rank() == 0
        if is_first:
            self.folder.mkdir(parents=True, exist_ok=True)  # a bad path fails before the images are scored
        preprocessing = VALIDATION_PROTOCOLS[self.protocol]
        result = score(
            net,
            self.samples,
            preprocessing,
            device=self._device,
            batch_size=self._batch_size,
            num_workers=self._num_workers,
            amp=torch.bfloat16 if self._amp else None,
            on_image=on_image,
        )
        spec = CATALOG.get(weights)
        metrics = {
            "variant": variant,
            "weights": weights,
            "sha256": sha256_of(fetch_weights(weights)),
            "report": report,
            "protocol": self.protocol,
            "images": result.num_images,
            "classes": int(result.counts[:, 0].count_nonzero()),
            "top1": result.top1,
            "top5": result.top5,
            "loss": result.loss,
            "published": dict(spec.scores) if spec and spec.preprocessing == preprocessing else {},
            "images_per_second": result.num_images / result.seconds,
            "device": str(self._device),
            "amp": self._amp,
            "compiled": self._compiled,
            "unreadable": result.unreadable,
        }
        self._metrics.append(metrics)
        if is_first:
            write_classes(result, self.folder / f"{variant}.csv")
            write_atomically(self.folder / "metrics.json", json.dumps(self._metrics, indent=1).encode() + b"\n")
        return metrics
