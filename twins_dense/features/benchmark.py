"""Measure the speed of an extraction, of the model alone, and of each stage alone."""

from __future__ import annotations

import itertools
import os
import resource
import tempfile
import time
from pathlib import Path

import torch

from ..data.image_lists import ImageList
from ..errors import TwinsError
from ..models.backbone import TwinsBackbone
from .extract import extract, make_manifest, write_chunk
from .model import FeatureModel, Settings
from .prepare import ChunkDecoder, ChunkSampler
from .store import FeatureStore


def num_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def bare_rate(net: TwinsBackbone, settings: Settings, num_images: int) -> float:
    """Measure the model alone, on full chunks of random images in memory, and return its images per second."""
    device, size = next(net.parameters()).device, settings.protocol.size
    assert size is not None, "the images have one size"
    images = torch.randn(settings.chunk, 3, size, size, device=device)
    num_chunks = -(-num_images // settings.chunk)
    start = time.perf_counter()
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=settings.amp):
        for _ in range(num_chunks):
            levels = net(images)
    levels[-1].sum().item()  # waits for a GPU
    return num_chunks * settings.chunk / (time.perf_counter() - start)


def extraction_rate(
    net: TwinsBackbone, images: ImageList, settings: Settings, *, num_workers: int, scratch: str | None
) -> tuple[float, float]:
    """Measure an extraction into a temporary folder, which is then removed.

    Args:
        net: The backbone, in eval mode.
        images: The images, all of them readable.
        settings: Settings of the extraction.
        num_workers: Number of data loader workers.
        scratch: Parent of the temporary folder; `None` for the system's default.

    Returns:
        The images per second, and the fraction of the available processor time that was used.

    Raises:
        TwinsError: If an image cannot be read.
    """
    device = next(net.parameters()).device
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        start = _processor_seconds()
        report = extract(
            net,
            images,
            Path(folder) / "features",
            settings,
            weights_sha256="",
            device=device,
            num_workers=num_workers,
        )
        busy = (_processor_seconds() - start) / report.seconds / num_cores()
    if report.unreadable:
        raise TwinsError(f"{report.unreadable[0]}: cannot be read; give readable images")
    return report.num_done / report.seconds, busy


def stage_rates(
    net: TwinsBackbone, images: ImageList, settings: Settings, *, max_chunks: int, scratch: str | None
) -> dict[str, float]:
    """Measure the stages of an extraction one after the other, without overlap, on the first chunks.

    Returns:
        The images per second of "read" (in one process), "model" (with normalisation and pooling) and "write"
        (compression and writing, in one thread).
    """
    device = next(net.parameters()).device
    manifest = make_manifest(net, images, settings, weights_sha256="")
    decoder, model = ChunkDecoder(settings.protocol), FeatureModel(net, net.pyramid.strides, settings, device)
    seconds = dict.fromkeys(("read", "model", "write"), 0.0)
    num_images = 0
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        store = FeatureStore(Path(folder), manifest)
        store.prepare()
        for chunk in itertools.islice(ChunkSampler(images, manifest["chunk"], range(store.num_chunks)), max_chunks):
            times = [time.perf_counter()]
            decoded = decoder[chunk]
            times.append(time.perf_counter())
            batches = model(decoded)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter())
            write_chunk(store, decoded, batches)
            times.append(time.perf_counter())
            for stage, (begin, end) in zip(seconds, itertools.pairwise(times), strict=True):
                seconds[stage] += end - begin
            num_images += len(chunk.ids)
    return {stage: num_images / elapsed for stage, elapsed in seconds.items()}


def peak_memory() -> tuple[int, int]:
    """Return the peak memory, in MiB, of this process and of its largest finished child process."""
    own, child = (resource.getrusage(who).ru_maxrss // 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own, child


def _processor_seconds() -> float:
    """Return the processor seconds used by this process and its finished child processes."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
