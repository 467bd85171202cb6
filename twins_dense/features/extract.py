"""Extract the features of images. Reading, computing and writing overlap, and memory use is constant."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pyarrow
import pyarrow.parquet as pq
import torch
import zarr
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..data.image_lists import ImageList
from ..distributed import joined_processes, wait_for_all
from ..errors import TwinsError, one_line
from ..models.backbone import TwinsBackbone, describe_backbone
from ..weights.preprocessing import OFFICIAL_PREPROCESSING
from . import FORMAT, INDEX
from .model import Batch, FeatureModel, Settings
from .prepare import STEP, ChunkDecoder, ChunkSampler, DecodedChunk
from .store import FeatureStore, digest_of_list

# Number of writer threads, and of computed chunks that may wait for them. More would only use memory.
_NUM_WRITERS, _MAX_PENDING = 2, 3


@dataclass(frozen=True)
class Report:
    """Result of an extraction.

    Attributes:
        num_images: Number of images in the folder.
        num_done: Number of images that this process computed in this run.
        unreadable: One line for each image that cannot be read.
        seconds: Wall-clock time of this run.
    """

    num_images: int
    num_done: int
    unreadable: tuple[str, ...]
    seconds: float


def extract(
    net: TwinsBackbone,
    images: ImageList,
    out: Path,
    settings: Settings,
    *,
    weights_sha256: str,
    device: torch.device,
    num_workers: int = 2,
    compiled: bool = False,
) -> Report:
    """Compute the features of images and write them to a folder, whose layout `twins_dense.features` describes.

    Processes started by torchrun share the chunks. An interrupted extraction resumes: finished chunks are not computed
    again, and the folder is the same, byte for byte, as after an uninterrupted run.

    Args:
        net: The backbone, in eval mode, on `device`.
        images: The images. Unreadable ones are recorded in the index.
        out: New folder, or folder of an extraction with the same images, model and settings.
        settings: Settings of the extraction.
        weights_sha256: SHA-256 of the weights of `net`.
        device: Device of the model.
        num_workers: Number of data loader workers; 0 reads the images in this process.
        compiled: Whether to compile the model with `torch.compile`.

    Raises:
        TwinsError: If `out` contains anything else, the features are not finite, or writing fails.
    """
    manifest = make_manifest(net, images, settings, weights_sha256)
    with joined_processes() as (rank, num_processes), _explain_errors(out):
        store = FeatureStore(out, manifest)
        store.check()
        wait_for_all()  # no process writes before all have checked the folder
        if rank == 0:
            out.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        finished = store.finished_chunks() if out.exists() else set()
        todo = [index for index in range(rank, store.num_chunks, num_processes) if index not in finished]
        chunks = ChunkSampler(images, manifest["chunk"], todo)
        num_workers = min(num_workers, len(chunks))
        # Creating the iterator forks the workers, before this process has threads.
        loader = iter(
            DataLoader(
                ChunkDecoder(settings.protocol),
                batch_size=None,
                sampler=chunks,
                num_workers=num_workers,
                multiprocessing_context="fork" if num_workers and sys.platform == "linux" else None,
                worker_init_fn=partial(_exit_if_orphaned, os.getpid()),
            )
        )
        # Lock after forking: the workers of a killed run would otherwise keep holding its lock.
        with store.locked() if rank == 0 else contextlib.nullcontext():
            if rank == 0:
                store.prepare()
            wait_for_all()
            model = FeatureModel(torch.compile(net) if compiled else net, net.pyramid.strides, settings, device)
            with tqdm(
                total=chunks.num_images, desc="extract", unit=" images", disable=None if rank == 0 else True
            ) as bar:
                _run(loader, model, store, bar)
            wait_for_all()
            if rank == 0:
                store.finish()
            wait_for_all()
        return Report(len(images.ids), chunks.num_images, _read_errors(out), time.perf_counter() - start)


def _run(loader: Iterable[DecodedChunk], model: FeatureModel, store: FeatureStore, bar: tqdm) -> None:
    """Compute every chunk, and write it in the background."""
    pending: deque[Future[None]] = deque()
    with ThreadPoolExecutor(_NUM_WRITERS) as writers:
        for decoded in loader:
            num_images = len(decoded.images)
            try:
                batches = model(decoded)
            except torch.OutOfMemoryError as error:
                raise TwinsError(f"{num_images} images do not fit in GPU memory: lower --chunk") from error
            pending.append(writers.submit(write_chunk, store, decoded, batches))
            while len(pending) > _MAX_PENDING:
                pending.popleft().result()
            bar.update(num_images)
        for future in pending:
            future.result()


def write_chunk(store: FeatureStore, decoded: DecodedChunk, batches: list[Batch]) -> None:
    """Copy the features of a chunk to the CPU, and write them."""
    chunk, num_images = decoded.chunk, len(decoded.images)
    names = [level["name"] for level in store.manifest["model"]["levels"]]
    vectors: dict[str, np.ndarray] = {}
    for batch in batches:
        levels, pooled = ([value.cpu().numpy() for value in values] for values in (batch.levels, batch.vectors))
        paths = [chunk.paths[place] for place in batch.places]
        for name, level in zip(names, levels, strict=False):
            _check_finite(level, name, paths, store.manifest["dtype"])
            if isinstance(decoded.pixels, Tensor):
                store.write_level(name, chunk.start, level)
            else:
                for place, array in zip(batch.places, level, strict=True):
                    store.write_map(name, chunk.start + place, array)
        for name, values in zip(names, pooled, strict=False):
            _check_finite(values, name, paths, store.manifest["dtype"])
            column = vectors.setdefault(f"{name}_mean", np.zeros((num_images, values.shape[1]), values.dtype))
            column[batch.places] = values
    store.finish_chunk(chunk, decoded.images, vectors)


def _check_finite(values: np.ndarray, name: str, paths: list[str], dtype: str) -> None:
    finite = np.isfinite(values)
    if finite.all():
        return
    path = paths[int(np.argmin(finite.reshape(len(values), -1).all(1)))]
    remedy = "choose --dtype bfloat16 or float32" if dtype == "float16" else "check the weights"
    raise TwinsError(f"{name} of {path} has values that are not finite in {dtype}: {remedy}")


def make_manifest(net: TwinsBackbone, images: ImageList, settings: Settings, weights_sha256: str) -> dict[str, Any]:
    """Return the content of `manifest.json`: everything that determines the features, and package versions."""
    from .. import __version__

    protocol = settings.protocol
    return {
        "format": FORMAT,
        "model": {**describe_backbone(net), "weights_sha256": weights_sha256, "amp": settings.amp},
        "preparation": {
            "protocol": protocol.name,
            "size": protocol.size,
            "short_side": protocol.short_side,
            "interpolation": "bicubic" if protocol.size else None,
            "colour": "RGB",
            "mean": OFFICIAL_PREPROCESSING.mean,
            "std": OFFICIAL_PREPROCESSING.std,
            "upright": protocol.upright,
            "padded_to": STEP,
        },
        "maps": settings.maps,
        "pool": "mean" if settings.pool else "none",
        "dtype": settings.dtype,
        "chunk": min(settings.chunk, len(images.ids)),
        "images": {"count": len(images.ids), "sha256": digest_of_list(images.ids, images.paths)},
        "versions": {
            "twins_dense": __version__,
            "torch": str(torch.__version__),
            "pillow": PIL.__version__,
            "zarr": zarr.__version__,
            "pyarrow": pyarrow.__version__,
        },
    }


def _read_errors(out: Path) -> tuple[str, ...]:
    table = pq.read_table(out / INDEX, columns=["path", "error"], filters=[("error", "!=", "")])
    return tuple(f"{row['path']} ({row['error']})" for row in table.to_pylist())


@contextlib.contextmanager
def _explain_errors(out: Path) -> Iterator[None]:
    """Turn errors of the disk and of data loader workers into a `TwinsError` with a remedy."""
    try:
        yield
    except OSError as error:
        raise TwinsError(
            f"cannot write to {out} ({error.strerror or one_line(error)}): finished chunks are kept; "
            "fix the problem and run the same command again to resume"
        ) from error
    except RuntimeError as error:
        # torch reports a dead worker from a signal handler, so the error can appear anywhere.
        if not re.search(r"DataLoader worker \(pid|shared memory", str(error)):
            raise
        raise TwinsError(
            f"a data loader worker died ({str(error).splitlines()[0]}); finished chunks are kept. If memory is short, "
            "use fewer --workers, a smaller --chunk, or more shared memory (docker run --shm-size)"
        ) from error


def _exit_if_orphaned(parent: int, worker: int) -> None:
    """Exit a worker whose parent process has already ended.

    torch's own check compares the current parent with the one when the worker started, so it misses a parent that was
    killed before that.
    """
    if os.getppid() != parent:
        sys.exit()
