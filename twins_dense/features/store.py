"""A folder of features while it is written: chunk by chunk, in any order, by one process or several."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from filelock import FileLock, Timeout
from zarr.codecs import BloscCodec
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from ..atomic import atomic_path, write_atomically
from ..errors import TwinsError
from . import FORMAT, INDEX, MANIFEST, MAPS, PARTS
from .prepare import Chunk, Decoded, Geometry

# Held by the run that writes; gone when it has finished.
_LOCK = ".lock"
# Rows of the index that are read and written at a time, at least.
_ROW_GROUP = 4096
# Bits of the same place lie together: the low ones of float32 are noise, those of bfloat16 in float32 are zeros.
_COMPRESSOR = BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle")
_SIZES = tuple(field.name for field in dataclasses.fields(Geometry))


class TimedStore(LocalStore):
    """A folder of Zarr that knows how long writing its files took, to tell that from compressing them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seconds = 0.0

    async def set(self, key: str, value: Buffer) -> None:
        start = time.perf_counter()
        await super().set(key, value)
        self.seconds += time.perf_counter() - start


class FeatureStore:
    """Writes the chunks of one extraction.

    A chunk is finished when its part of the index is there, which is written after its maps and appears whole; what a
    killed process left of other chunks is written again. `finish` joins the parts.

    Attributes:
        folder: of the features.
        seconds: spent by stage: "compress" (maps) and "write" (maps and index).
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self._num_rows = manifest["images"]["count"]
        self._shard = manifest["chunk"]
        self._num_chunks = -(-self._num_rows // self._shard)
        self._store = TimedStore(folder / MAPS)
        self._arrays: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._seconds = {"maps": 0.0, "index": 0.0}

    @property
    def seconds(self) -> dict[str, float]:
        return {
            "compress": max(0.0, self._seconds["maps"] - self._store.seconds),
            "write": self._store.seconds + self._seconds["index"],
        }

    def check(self) -> None:
        """Look whether the folder is empty, or holds features of the same images, model and settings.

        Raises:
            TwinsError: where it holds something else.
        """
        path = self.folder / MANIFEST
        if not path.exists():
            if self.folder.exists() and (not self.folder.is_dir() or any(self._foreign_entries())):
                raise TwinsError(f"{self.folder} is not empty and holds no features: choose another --out")
            return
        there, here = read_manifest(self.folder), json.loads(json.dumps(self.manifest))
        if there.get("images") != here["images"]:
            counts = [manifest.get("images", {}).get("count") for manifest in (there, here)]
            raise TwinsError(
                f"{self.folder} holds features of other images ({counts[0]}, now {counts[1]}): choose another --out"
            )
        for key in here:
            if key != "versions" and there.get(key) != here[key]:
                what, old, new = _first_difference(key, there.get(key), here[key])
                raise TwinsError(f"{self.folder} holds features with {what} {old}, not {new}: choose another --out")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """For one process of a run, while the run writes; `TwinsError` where another run does."""
        lock = FileLock(self.folder / _LOCK)
        try:
            acquired = lock.acquire(blocking=False)
        except Timeout:
            raise TwinsError(f"another extraction is writing to {self.folder}: let it end, or stop it") from None
        with acquired:
            yield

    def prepare(self) -> None:
        """Make what the chunks are written into; one process does so, before the others write."""
        path = self.folder / MANIFEST
        if not path.exists():
            write_atomically(path, json.dumps(self.manifest, indent=1).encode() + b"\n")
        (self.folder / PARTS).mkdir(exist_ok=True)
        if not self.manifest["maps"]:
            return
        group = zarr.open_group(self._store, mode="a", zarr_format=3)
        size = self.manifest["preparation"]["size"]
        for level in self.manifest["model"]["levels"]:
            name = level["name"]
            if name in group:
                continue
            if size is None:
                group.create_group(name)
                continue
            shape = (level["channels"], size // level["stride"], size // level["stride"])
            group.create_array(
                name,
                shape=(self._num_rows, *shape),
                # A file holds a chunk of images; each of them can be read alone.
                shards=(self._shard, *shape),
                chunks=(1, *shape),
                dtype=stored_dtype(self.manifest["dtype"]),
                compressors=_COMPRESSOR,
                dimension_names=("image", "channel", "row", "column"),
            )

    @property
    def is_complete(self) -> bool:
        return (self.folder / INDEX).exists()

    def finished_chunks(self) -> set[int]:
        """The indices of the chunks that need not be computed again."""
        if self.is_complete:
            return set(range(self._num_chunks))
        return {int(path.stem) for path in (self.folder / PARTS).glob("[0-9]*.parquet")}

    def write_level(self, name: str, start: int, maps: np.ndarray) -> None:
        """Write a chunk's maps (B, C, H, W) of one level, for images of one size; `start` is the first one's row."""
        with self._timed("maps"):
            self._array(name)[start : start + len(maps)] = maps

    def write_map(self, name: str, row: int, array: np.ndarray) -> None:
        """Write the map (C, H, W) of one level of one image, for images of many sizes."""
        with self._timed("maps"):
            zarr.create_array(
                self._store,
                name=f"{name}/{row}",
                data=array,
                chunks=array.shape,
                compressors=_COMPRESSOR,
                dimension_names=("channel", "row", "column"),
                overwrite=True,
            )

    def finish_chunk(self, chunk: Chunk, images: Sequence[Decoded], vectors: Mapping[str, np.ndarray]) -> None:
        """Write a chunk's part of the index, with vectors (B, C) by column, once its maps are written."""
        with self._timed("index"):
            sink = pa.BufferOutputStream()
            pq.write_table(self._table(chunk, images, vectors), sink)
            write_atomically(self._part(chunk.index), sink.getvalue().to_pybytes())

    def finish(self) -> None:
        """Join the parts of the index, once all chunks are written; one process does so."""
        if not self.is_complete:
            for leftover in (self.folder / MAPS).rglob("*.partial"):  # that zarr was writing when it was killed
                leftover.unlink()
            schema = pq.read_schema(self._part(0))
            with (
                atomic_path(self.folder / INDEX) as temporary,
                pq.ParquetWriter(temporary, schema, compression="zstd", use_dictionary=False) as writer,
            ):
                for table in self._joined_parts():
                    writer.write_table(table, row_group_size=len(table))
        for leftover in self._leftovers():
            leftover.unlink()
        shutil.rmtree(self.folder / PARTS, ignore_errors=True)
        (self.folder / _LOCK).unlink(missing_ok=True)

    def _joined_parts(self) -> Iterator[pa.Table]:
        tables: list[pa.Table] = []
        for index in range(self._num_chunks):
            tables.append(pq.read_table(self._part(index)))
            if sum(map(len, tables)) >= _ROW_GROUP or index == self._num_chunks - 1:
                yield pa.concat_tables(tables)
                tables.clear()

    def _table(self, chunk: Chunk, images: Sequence[Decoded], vectors: Mapping[str, np.ndarray]) -> pa.Table:
        columns: dict[str, pa.Array] = {
            "row": pa.array(range(chunk.start, chunk.start + len(images)), pa.int64()),
            "image_id": pa.array(list(chunk.ids), pa.string()),
            "path": pa.array(list(chunk.paths), pa.string()),
        }
        for name in _SIZES:
            sides = [None if image.geometry is None else getattr(image.geometry, name) for image in images]
            columns[name] = pa.array(sides, pa.int32())
        columns["sha256"] = pa.array([image.sha256 for image in images], pa.string())
        columns["error"] = pa.array([image.error for image in images], pa.string())
        unreadable = pa.array([image.error is not None for image in images])
        dtype = stored_dtype(self.manifest["dtype"])
        for level in self.manifest["model"]["levels"] if self.manifest["pool"] != "none" else ():
            name, length = f"{level['name']}_mean", level["channels"]
            values = vectors.get(name, np.zeros((len(images), length), dtype))  # none where no image can be read
            flat = pa.array(np.ascontiguousarray(values).reshape(-1))
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, length, mask=unreadable)
        return pa.table(columns)

    @contextlib.contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        with self._lock:
            self._seconds[what] += time.perf_counter() - start

    def _array(self, name: str) -> Any:
        with self._lock:
            if name not in self._arrays:
                self._arrays[name] = zarr.open_array(self._store, path=name, mode="r+")
            return self._arrays[name]

    def _part(self, index: int) -> Path:
        return self.folder / PARTS / f"{index:08d}.parquet"

    def _foreign_entries(self) -> Iterator[Path]:
        expected = {self.folder / _LOCK, *self._leftovers()}
        return (path for path in self.folder.iterdir() if path not in expected)

    def _leftovers(self) -> Iterator[Path]:
        """Temporary files of runs that were killed."""
        return (path for name in (MANIFEST, INDEX) for path in self.folder.glob(f".{name}.*"))


def read_manifest(folder: Path) -> dict[str, Any]:
    """What computed the features in a folder; `TwinsError` where it holds none."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise TwinsError(f"{folder} holds no features ({MANIFEST} is missing): check the path") from None
    except ValueError as error:
        raise TwinsError(f"{folder / MANIFEST} is damaged ({error}): extract the features again") from None
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise TwinsError(f"{folder / MANIFEST} is none of an extraction: check the path")
    if manifest["format"] != FORMAT:
        raise TwinsError(f"{folder} has the format {manifest['format']!r}: a newer twins_dense wrote it")
    return manifest


def digest_of_list(ids: Sequence[str], paths: Sequence[str]) -> str:
    """SHA-256 of which images there are, in their order."""
    digest = hashlib.sha256()
    for image_id, path in zip(ids, paths, strict=True):
        try:
            digest.update(f"{image_id}\0{path}\0".encode())
        except UnicodeEncodeError:
            raise TwinsError(f"the name of {path!r} is not UTF-8, which Parquet needs: rename the file") from None
    return digest.hexdigest()


def stored_dtype(dtype: str) -> str:
    """bfloat16 is stored as float32, which every reader knows; its zero bits compress to nothing."""
    return "float32" if dtype == "bfloat16" else dtype


def _first_difference(key: str, there: Any, here: Any) -> tuple[str, Any, Any]:
    """The innermost entry that differs, with both values."""
    while isinstance(there, dict) and isinstance(here, dict):
        inner = next(name for name in {**there, **here} if there.get(name) != here.get(name))
        key, there, here = f"{key}.{inner}", there.get(inner), here.get(inner)
    return key, there, here
