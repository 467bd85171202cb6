"""Images to features: reading, the model and writing overlap, and memory does not grow with the number of images."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pyarrow
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
import zarr
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..backbone import TwinsBackbone
from ..data.images import ImageList
from ..errors import TwinsError
from ..export import describe_backbone
from ..processes import joined_processes, wait_for_all
from ..weights.catalog import OFFICIAL_PREPROCESSING
from . import DTYPES, FORMAT, INDEX
from .prepare import STEP, Chunk, ChunkDecoder, DecodedChunk, Protocol
from .store import FeatureStore, digest_of_list

# Chunks that wait to be written, those that are being written included. More would only use memory.
_NUM_WRITERS, _MAX_PENDING = 2, 3


@dataclass(frozen=True)
class Settings:
    """What is extracted, beside the model and the images.

    Attributes:
        protocol: how images are prepared.
        maps: write the levels as they are.
        pool: write the mean of each level over the cells that show the image, as vectors.
        dtype: of what is written: "float32", "float16" or "bfloat16".
        amp: compute under autocast in bfloat16.
        chunk: images that are computed, written and finished together.
    """

    protocol: Protocol
    maps: bool = True
    pool: bool = False
    dtype: str = "float32"
    amp: bool = False
    chunk: int = 16

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise TwinsError(f"dtype={self.dtype!r}: choose one of {', '.join(DTYPES)}")
        if self.chunk < 1:
            raise TwinsError(f"chunk={self.chunk}: give the number of images, 1 or more")
        if not self.maps and not self.pool:
            raise TwinsError("neither maps nor pooled vectors are to be written: choose one of them, or both")


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
    with joined_processes() as (rank, num_processes), _clear_write_errors(out):
        store = FeatureStore(out, manifest)
        store.check()
        wait_for_all()  # all have looked before one writes
        if rank == 0:
            out.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        todo = _Todo(images, manifest["chunk"], rank, num_processes, store.finished_chunks() if out.exists() else set())
        # The workers are forked before anything here has threads.
        loader = iter(
            DataLoader(
                ChunkDecoder(settings.protocol),
                batch_size=None,
                sampler=todo,
                num_workers=min(num_workers, len(todo)),
                collate_fn=_as_it_is,
            )
        )
        if rank == 0:
            store.prepare()
        wait_for_all()
        model = _Model(torch.compile(net) if compiled else net, net.pyramid.strides, settings, device)
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


class _Model:
    """A chunk's pixels to its features, in the type that is stored; they stay on the device."""

    def __init__(
        self, net: Callable[[Tensor], tuple[Tensor, ...]], strides: tuple[int, ...], settings: Settings, device: torch.device
    ) -> None:
        self._net, self._strides, self._settings, self._device = net, strides, settings, device
        self._mean = torch.tensor(OFFICIAL_PREPROCESSING.mean, device=device)[:, None, None]
        self._std = torch.tensor(OFFICIAL_PREPROCESSING.std, device=device)[:, None, None]

    @torch.inference_mode()
    def __call__(self, decoded: DecodedChunk) -> list[tuple[list[int], list[Tensor], list[Tensor]]]:
        """For images of each size: their places in the chunk, their levels (B, C, H, W), their vectors (B, C)."""
        pixels = decoded.pixels
        if isinstance(pixels, Tensor):
            readable = torch.tensor([image.error is None for image in decoded.images], device=self._device)
            levels = self._levels(self._normalised(pixels))
            vectors = self._vectors([level.mean((2, 3)) for level in levels])
            levels = self._stored([level * readable[:, None, None, None] for level in levels] if not readable.all() else levels)
            return [(list(range(len(pixels))), levels, vectors)]
        # Padding a batch to a common size would change its features, so only images of one padded size go together.
        places_by_size: dict[tuple[int, int], list[int]] = {}
        for place, (image, array) in enumerate(zip(decoded.images, pixels, strict=True)):
            if image.error is None:
                size = (array.shape[0] + -array.shape[0] % STEP, array.shape[1] + -array.shape[1] % STEP)
                places_by_size.setdefault(size, []).append(place)
        batches = []
        for (height, width), places in places_by_size.items():
            batch = torch.stack(
                [
                    F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1]))
                    for image in (self._normalised(pixels[place][None])[0] for place in places)
                ]
            )
            levels = self._levels(batch)
            vectors = [
                torch.stack(
                    [
                        cells[:, : -(-pixels[place].shape[0] // stride), : -(-pixels[place].shape[1] // stride)].mean((1, 2))
                        for cells, place in zip(level, places, strict=True)
                    ]
                )
                for level, stride in zip(levels, self._strides, strict=True)
            ]
            batches.append((places, self._stored(levels), self._vectors(vectors)))
        return batches

    def _normalised(self, pixels: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) to float32 (B, 3, H, W), as torchvision does it."""
        images = pixels.to(self._device).permute(0, 3, 1, 2).float().div(255)
        return images.sub_(self._mean).div_(self._std)

    def _levels(self, images: Tensor) -> list[Tensor]:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._settings.amp):
            levels = self._net(images)
        return [level.float() for level in levels]

    def _stored(self, levels: list[Tensor]) -> list[Tensor]:
        return [self._rounded(level) for level in levels] if self._settings.maps else []

    def _vectors(self, vectors: list[Tensor]) -> list[Tensor]:
        return [self._rounded(vector) for vector in vectors] if self._settings.pool else []

    def _rounded(self, values: Tensor) -> Tensor:
        dtype = self._settings.dtype
        return values.bfloat16().float() if dtype == "bfloat16" else values.to(getattr(torch, dtype))


def _run(
    loader: Iterator[DecodedChunk], model: _Model, store: FeatureStore, todo: _Todo, *, quiet: bool
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
            batches = model(decoded)
            seconds["model"] += time.perf_counter() - start
            seconds["read"] += decoded.seconds
            pending.append(writers.submit(_write, store, decoded, batches))
            while len(pending) > _MAX_PENDING:
                seconds["model"] += pending.popleft().result()
            bar.update(len(decoded.images))
        for future in pending:
            seconds["model"] += future.result()
    return seconds


def _write(store: FeatureStore, decoded: DecodedChunk, batches: list[tuple[list[int], list[Tensor], list[Tensor]]]) -> float:
    """Take a chunk's features from the device and write them; returns the seconds of waiting for the device."""
    start = time.perf_counter()
    arrays = [
        (places, *([_on_cpu(value) for value in values] for values in (levels, vectors)))
        for places, levels, vectors in batches
    ]
    waited = time.perf_counter() - start
    model = store.manifest["model"]
    names = [level["name"] for level in model["levels"]]
    maps: dict[str, Any] = {}
    vectors: dict[str, np.ndarray] = {}
    one_size = isinstance(decoded.pixels, Tensor)
    if store.manifest["maps"] and not one_size:
        maps = {name: {} for name in names}
    if store.manifest["pool"] != "none":
        dtype = np.float16 if store.manifest["dtype"] == "float16" else np.float32
        for level in model["levels"]:
            vectors[f"{level['name']}_mean"] = np.zeros((len(decoded.images), level["channels"]), dtype)
    for places, levels, pooled in arrays:
        for name, level in zip(names, levels, strict=False):
            _check_finite(level, name, store, decoded, places)
            if one_size:
                maps[name] = level
            else:
                maps[name].update(zip(places, level, strict=True))
        for name, values in zip(names, pooled, strict=False):
            _check_finite(values, name, store, decoded, places)
            vectors[f"{name}_mean"][places] = values
    store.write(decoded.chunk, decoded.images, maps, vectors)
    return waited


def _on_cpu(values: Tensor) -> np.ndarray:
    return values.cpu().contiguous().numpy()


def _check_finite(
    values: np.ndarray, name: str, store: FeatureStore, decoded: DecodedChunk, places: list[int]
) -> None:
    finite = np.isfinite(values)
    if finite.all():
        return
    path = decoded.chunk.paths[places[int(np.argmin(finite.reshape(len(values), -1).all(1)))]]
    dtype = store.manifest["dtype"]
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
def _clear_write_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TwinsError(
            f"can't write to {out} ({error.strerror or ' '.join(str(error).split())}): what is finished is kept; "
            "mend that and run the same command again to go on"
        ) from error


def _as_it_is(item: Any) -> Any:
    return item
