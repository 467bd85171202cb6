"""Images to features: reading, the model and writing overlap, and memory does not grow with the number of images."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
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
from ..errors import TwinsError
from ..models.backbone import TwinsBackbone, describe_backbone
from ..weights.preprocessing import OFFICIAL_PREPROCESSING
from . import FORMAT, INDEX
from .model import Batch, FeatureModel, Settings
from .prepare import STEP, Chunk, ChunkDecoder, DecodedChunk
from .store import FeatureStore, digest_of_list

# Chunks that wait to be written, those that are being written included. More would only use memory.
_NUM_WRITERS, _MAX_PENDING = 2, 3


@dataclass
class Report:
    """What an extraction did.

    Attributes:
        num_images: in the folder now.
        num_done: of them in this run, on this process.
        unreadable: a line for each that can't be read.
        seconds: of this process: "total", and by stage "read" (all workers together), "wait" (of the model for images),
            "model", "compress", "write" (all writers together).
    """

    num_images: int
    num_done: int
    unreadable: tuple[str, ...]
    seconds: Mapping[str, float]


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
    """Compute the features of images and write them to a folder, see `twins_dense.features`.

    Processes that torchrun started share the chunks. What was finished before is not computed again, and the folder is
    the same in the end, byte for byte, as if nothing had happened.

    Args:
        net: in eval mode, on `device`.
        images: which; those that can't be read are noted in the index.
        out: a new folder, or one of an extraction of the same images, model and settings.
        settings: what to extract.
        weights_sha256: of the file that `net` was loaded from.
        device: where the model is.
        num_workers: processes that read images; 0 reads them in this one.
        compiled: run the model through `torch.compile`.

    Raises:
        TwinsError: where `out` holds something else, features are not finite, or writing fails.
    """
    manifest = _manifest(net, images, settings, weights_sha256)
    with joined_processes() as (rank, num_processes), _clear_errors(out):
        store = FeatureStore(out, manifest)
        store.check()
        wait_for_all()  # all have looked before one writes
        if rank == 0:
            out.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        todo = _Todo(images, manifest["chunk"], rank, num_processes, store.finished_chunks() if out.exists() else set())
        num_workers = min(num_workers, len(todo))
        # The workers are forked before anything here has threads.
        loader = iter(
            DataLoader(
                ChunkDecoder(settings.protocol),
                batch_size=None,
                sampler=todo,
                num_workers=num_workers,
                multiprocessing_context="fork" if num_workers and sys.platform == "linux" else None,
                collate_fn=_as_it_is,
                worker_init_fn=partial(_leave_without, os.getpid()),
            )
        )
        # Locked after the workers are forked, which would go on holding the lock of a killed run.
        with store.locked() if rank == 0 else contextlib.nullcontext():
            if rank == 0:
                store.prepare()
            wait_for_all()
            model = FeatureModel(torch.compile(net) if compiled else net, net.pyramid.strides, settings, device)
            # float32 is float32, and the same again, on a GPU too.
            with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
                seconds = _run(loader, model, store, todo, quiet=rank != 0)
            wait_for_all()
            if rank == 0:
                store.finish()
            wait_for_all()
        seconds |= store.seconds | {"total": time.perf_counter() - start}
        return Report(len(images.ids), todo.num_images, _unreadable(out), seconds)


class _Todo:
    """The chunks that this process has to do, made as they are asked for."""

    def __init__(self, images: ImageList, size: int, rank: int, num_processes: int, finished: set[int]) -> None:
        self._images, self._size = images, size
        self._indices = [i for i in range(rank, -(-len(images.ids) // size), num_processes) if i not in finished]

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[Chunk]:
        for index in self._indices:
            rows = slice(index * self._size, (index + 1) * self._size)
            yield Chunk(index, rows.start, self._images.ids[rows], self._images.paths[rows])

    @property
    def num_images(self) -> int:
        return sum(min(self._size, len(self._images.ids) - index * self._size) for index in self._indices)


def _run(
    loader: Iterator[DecodedChunk], model: FeatureModel, store: FeatureStore, todo: _Todo, *, quiet: bool
) -> dict[str, float]:
    """Compute and write every chunk; returns the seconds of reading, waiting and the model."""
    seconds = dict.fromkeys(("read", "wait", "model"), 0.0)
    pending: deque[Future[float]] = deque()
    bar = tqdm(total=todo.num_images, desc="extract", unit=" images", disable=True if quiet else None)
    with ThreadPoolExecutor(_NUM_WRITERS) as writers, bar:
        while True:
            start = time.perf_counter()
            decoded = next(loader, None)
            seconds["wait"] += time.perf_counter() - start
            if decoded is None:
                break
            start = time.perf_counter()
            try:
                batches = model(decoded)
            except torch.OutOfMemoryError as error:
                raise TwinsError(f"{len(decoded.images)} images don't fit the GPU's memory: lower --chunk") from error
            seconds["model"] += time.perf_counter() - start
            seconds["read"] += decoded.seconds
            pending.append(writers.submit(_write, store, decoded, batches))
            while len(pending) > _MAX_PENDING:
                seconds["model"] += pending.popleft().result()
            bar.update(len(decoded.images))
        for future in pending:
            seconds["model"] += future.result()
    return seconds


def _write(store: FeatureStore, decoded: DecodedChunk, batches: list[Batch]) -> float:
    """Take a chunk's features from the device and write them; returns the seconds of waiting for the device."""
    chunk, num_images = decoded.chunk, len(decoded.images)
    names = [level["name"] for level in store.manifest["model"]["levels"]]
    vectors: dict[str, np.ndarray] = {}
    waited = 0.0
    for batch in batches:
        start = time.perf_counter()
        levels, pooled = ([_on_cpu(value) for value in values] for values in (batch.levels, batch.vectors))
        waited += time.perf_counter() - start
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
    return waited


def _on_cpu(values: Tensor) -> np.ndarray:
    return values.cpu().numpy()


def _check_finite(values: np.ndarray, name: str, paths: list[str], dtype: str) -> None:
    finite = np.isfinite(values)
    if finite.all():
        return
    path = paths[int(np.argmin(finite.reshape(len(values), -1).all(1)))]
    remedy = "choose --dtype bfloat16 or float32" if dtype == "float16" else "check the weights"
    raise TwinsError(f"{name} of {path} has values that are not finite in {dtype}: {remedy}")


def _manifest(net: TwinsBackbone, images: ImageList, settings: Settings, weights_sha256: str) -> dict[str, Any]:
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


def _unreadable(out: Path) -> tuple[str, ...]:
    table = pq.read_table(out / INDEX, columns=["path", "error"], filters=[("error", "!=", "")])
    return tuple(f"{row['path']} ({row['error']})" for row in table.to_pylist())


@contextlib.contextmanager
def _clear_errors(out: Path) -> Iterator[None]:
    """A line for what happens to the disk and to the processes that read images."""
    try:
        yield
    except OSError as error:
        raise TwinsError(
            f"can't write to {out} ({error.strerror or ' '.join(str(error).split())}): what is finished is kept; "
            "mend that and run the same command again to go on"
        ) from error
    except RuntimeError as error:
        # torch tells of a dead worker by a signal, and so at any moment.
        if not re.search(r"DataLoader worker \(pid|shared memory", str(error)):
            raise
        raise TwinsError(
            f"a process that reads images has ended ({str(error).splitlines()[0]}); what is finished is kept. If "
            "memory is short: fewer --workers, a smaller --chunk, or more of the shared (docker run --shm-size)"
        ) from error


def _leave_without(parent: int, worker: int) -> None:
    """torch's workers end when their parent is gone, but for one that was killed before they have looked who it is."""
    if os.getppid() != parent:
        sys.exit()


def _as_it_is(item: Any) -> Any:
    return item
