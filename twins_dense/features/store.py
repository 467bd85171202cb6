"""Write a feature folder chunk by chunk, in any order, from one process or several."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from filelock import FileLock, Timeout
from zarr.codecs import BloscCodec
from zarr.storage import LocalStore

from ..atomic import atomic_path, write_atomically
from ..errors import TwinsError, one_line
from . import FORMAT, INDEX, MANIFEST, MAPS, PARTS
from .prepare import Chunk, Decoded, Geometry

# Lock file, held by the run that is writing and removed when it finishes.
_LOCK = ".lock"
# Minimum number of index rows that are read and written at a time, unless fewer are left.
_ROW_GROUP = 4096
# Bit shuffling stores bits of the same significance together: the low bits of float32 are noise, and those of bfloat16
# stored as float32 are zeros.
_COMPRESSOR = BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle")
_SIZES = tuple(field.name for field in dataclasses.fields(Geometry))
# Columns of the index, apart from the pooled vectors.
INDEX_COLUMNS = ("row", "image_id", "path", *_SIZES, "sha256", "error")


class FeatureStore:
    """Writer of the chunks of one extraction.

    A chunk is finished once its part of the index exists. The part is written atomically after the maps. If a
    process is killed, its unfinished chunks are written again. `finish` joins the parts.

    Attributes:
        folder: The feature folder.
        manifest: Content of its manifest.
        num_chunks: Number of chunks of the whole extraction.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self._num_rows = manifest["images"]["count"]
        self._chunk_size = manifest["chunk"]
        self.num_chunks = -(-self._num_rows // self._chunk_size)
        self._store = LocalStore(folder / MAPS)
        self._arrays: dict[str, Any] = {}
        self._lock = threading.Lock()

    def check(self) -> None:
        """Check that the folder is empty, or contains features of the same images, model and settings.

        Raises:
            TwinsError: If it contains anything else.
        """
        path = self.folder / MANIFEST
        if not path.exists():
            if self.folder.exists() and (not self.folder.is_dir() or any(self._foreign_entries())):
                raise TwinsError(f"{self.folder} is not empty and contains no features: choose another --out")
            return
        found, expected = read_manifest(self.folder), json.loads(json.dumps(self.manifest))
        if found.get("images") != expected["images"]:
            counts = [manifest.get("images", {}).get("count") for manifest in (found, expected)]
            raise TwinsError(
                f"{self.folder} contains features of other images ({counts[0]}, now {counts[1]}): choose another --out"
            )
        for key in expected:
            if key != "versions" and found.get(key) != expected[key]:
                name, old, new = _first_difference(key, found.get(key), expected[key])
                raise TwinsError(f"{self.folder} contains features with {name} {old}, not {new}: choose another --out")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder's lock in one process of a run; raise `TwinsError` if another run holds it."""
        lock = FileLock(self.folder / _LOCK)
        try:
            acquired = lock.acquire(blocking=False)
        except Timeout:
            raise TwinsError(f"another extraction is writing to {self.folder}: wait for it, or stop it") from None
        with acquired:
            yield

    def prepare(self) -> None:
        """Create the manifest and the arrays, in one process, before any process writes chunks."""
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
                # One file per chunk, in which each image can be read alone.
                shards=(self._chunk_size, *shape),
                chunks=(1, *shape),
                dtype=stored_dtype(self.manifest["dtype"]),
                compressors=_COMPRESSOR,
                dimension_names=("image", "channel", "row", "column"),
            )

    @property
    def is_complete(self) -> bool:
        return (self.folder / INDEX).exists()

    def finished_chunks(self) -> set[int]:
        """Return the indices of the chunks that are finished."""
        if self.is_complete:
            return set(range(self.num_chunks))
        return set(finished_parts(self.folder))

    def write_level(self, name: str, start: int, maps: np.ndarray) -> None:
        """Write the maps (B, C, H, W) of one level of a chunk of images of one size, from row `start` on."""
        self._array(name)[start : start + len(maps)] = maps

    def write_map(self, name: str, row: int, array: np.ndarray) -> None:
        """Write the map (C, H, W) of one level of one image, for images of different sizes."""
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
        """Write a chunk's part of the index, with its vectors (B, C) by column, after its maps have been written."""
        sink = pa.BufferOutputStream()
        pq.write_table(self._table(chunk, images, vectors), sink)
        write_atomically(part_path(self.folder, chunk.index), sink.getvalue().to_pybytes())

    def finish(self) -> None:
        """Join the parts of the index, in one process, after all chunks have been written."""
        if not self.is_complete:
            for leftover in (self.folder / MAPS).rglob("*.partial"):  # from a killed run
                leftover.unlink()
            schema = pq.read_schema(part_path(self.folder, 0))
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
        for index in range(self.num_chunks):
            tables.append(pq.read_table(part_path(self.folder, index)))
            if sum(map(len, tables)) >= _ROW_GROUP or index == self.num_chunks - 1:
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
            values = vectors.get(name, np.zeros((len(images), length), dtype))  # missing if no image can be read
            flat = pa.array(np.ascontiguousarray(values).reshape(-1))
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, length, mask=unreadable)
        return pa.table(columns)

    def _array(self, name: str) -> Any:
        with self._lock:
            if name not in self._arrays:
                self._arrays[name] = zarr.open_array(self._store, path=name, mode="r+")
            return self._arrays[name]

    def _foreign_entries(self) -> Iterator[Path]:
        expected = {self.folder / _LOCK, *self._leftovers()}
        return (path for path in self.folder.iterdir() if path not in expected)

    def _leftovers(self) -> Iterator[Path]:
        """Return the temporary files of killed runs."""
        return (path for name in (MANIFEST, INDEX) for path in self.folder.glob(f".{name}.*"))


def part_path(folder: Path, index: int) -> Path:
    """Return the path of a chunk's part of the index, which exists from the end of the chunk to that of the run."""
    return folder / PARTS / f"{index:08d}.parquet"


def finished_parts(folder: Path) -> list[int]:
    """Return the indices of the chunks whose part of the index exists, in ascending order."""
    return sorted(int(path.stem) for path in (folder / PARTS).glob("[0-9]*.parquet"))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a feature folder.

    Raises:
        TwinsError: If the folder is not a feature folder, or was written by a newer version.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise TwinsError(f"{folder} contains no features ({MANIFEST} is missing): check the path") from None
    except ValueError as error:
        raise TwinsError(f"{folder / MANIFEST} is damaged ({one_line(error)}): extract the features again") from None
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise TwinsError(f"{folder / MANIFEST} is not the manifest of an extraction: check the path")
    if manifest["format"] != FORMAT:
        raise TwinsError(f"{folder} has format {manifest['format']!r}, from a newer twins_dense: update twins_dense")
    return manifest


def digest_of_list(ids: Sequence[str], paths: Sequence[str]) -> str:
    """Return the SHA-256 of the ids and paths of images, in order."""
    digest = hashlib.sha256()
    for image_id, path in zip(ids, paths, strict=True):
        try:
            digest.update(f"{image_id}\0{path}\0".encode())
        except UnicodeEncodeError:
            raise TwinsError(f"the name of {path!r} is not UTF-8, which Parquet needs: rename the file") from None
    return digest.hexdigest()


def stored_dtype(dtype: str) -> str:
    """Return the type that values are stored in.

    bfloat16 values are stored as float32, which every reader supports; their zero bits compress to almost nothing.
    """
    return "float32" if dtype == "bfloat16" else dtype


def _first_difference(key: str, found: Any, expected: Any) -> tuple[str, Any, Any]:
    """Return the name of the innermost entry that differs, and its two values."""
    while isinstance(found, dict) and isinstance(expected, dict):
        inner = next(name for name in {**found, **expected} if found.get(name) != expected.get(name))
        key, found, expected = f"{key}.{inner}", found.get(inner), expected.get(inner)
    return key, found, expected
