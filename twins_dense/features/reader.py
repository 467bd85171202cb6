"""Read a feature folder, also while it is being written."""

from __future__ import annotations

import copy
import difflib
import fnmatch
import importlib.util
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import zarr
from torch.utils.data import Dataset

from ..errors import TwinsError
from . import INDEX, MAPS
from .store import INDEX_COLUMNS, finished_parts, part_path, read_manifest

_NUM_COMPARED = 10_000  # ids that an unknown id is compared with to suggest the one that was meant


class Features(Dataset):
    """Data set of features by position or image id, as returned by `open_features`.

    `features[3]` and `features["photos/a.jpg"]` are dicts with `row`, `image_id` and `path`. If they were extracted,
    the map (C, H, W) of each level is stored under its name (`c4`), and the pooled vector (C,) under its column
    (`c4_mean`). Negative positions count from the end. An unreadable image raises `TwinsError`; `features.readable()`
    leaves such images out.

    `readable` and `select` return `Features` of some of the images. In those, positions differ from the rows of the
    folder. If the extraction is still running, the features are those of the chunks that were finished when the folder
    was opened. Pickles leave out open files and tables.

    Attributes:
        folder: The feature folder.
        manifest: Content of `manifest.json`: how the features were computed.
        levels: Names of the levels, finest first.
        rows: Row in the folder of each image, (N,) int64.
        complete: Whether the extraction was finished when the folder was opened.
    """

    def __init__(self, folder: str | PathLike[str], kind: Literal["numpy", "torch"] = "numpy") -> None:
        self.folder = Path(folder)
        if kind not in ("numpy", "torch"):
            raise TwinsError(f"kind={kind!r}: choose 'numpy' or 'torch'")
        self._kind = kind
        self.manifest = read_manifest(self.folder)
        self.levels: tuple[str, ...] = tuple(level["name"] for level in self.manifest["model"]["levels"])
        count, chunk = self.manifest["images"]["count"], self.manifest["chunk"]
        parts = finished_parts(self.folder)
        self.complete = (self.folder / INDEX).exists()  # after listing the parts, which are removed once it exists
        rows = np.arange(count)
        self.rows: np.ndarray = rows if self.complete else rows[np.isin(rows // chunk, parts)]
        if not len(self.rows):
            raise TwinsError(f"{self.folder} has no finished chunks yet: run `twins-dense extract` again to resume")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | str) -> dict[str, Any]:
        position = self.position_of(key) if isinstance(key, str) else range(len(self))[key]
        entry = self._readable_entry(position)
        item: dict[str, Any] = {name: entry[name] for name in ("row", "image_id", "path")}
        if self.manifest["maps"]:
            item |= {level: self._convert(self.map(position, level)) for level in self.levels}
        for column in self.vector_columns:
            item[column] = self._convert(self._vector(entry["row"], column))
        return item

    @cached_property
    def index(self) -> pa.Table:
        """The index without the vectors: one row per image, see `twins_dense.features`."""
        return self._read(INDEX_COLUMNS)

    @property
    def vector_columns(self) -> Sequence[str]:
        """Names of the columns with pooled vectors, such as `c4_mean`."""
        return [f"{level}_mean" for level in self.levels] if self.manifest["pool"] == "mean" else []

    def entry(self, position: int) -> dict[str, Any]:
        """Return the index row of an image."""
        return self.index.slice(range(len(self))[position], 1).to_pylist()[0]

    def position_of(self, image_id: str) -> int:
        """Return the position of an image. An unknown id raises `TwinsError`."""
        position = pc.index(self.index["image_id"], image_id).as_py()
        if position < 0:
            raise TwinsError(f"{self.folder} has no image {image_id!r}: {self._suggest(image_id)}")
        return position

    def map(self, position: int, level: str) -> np.ndarray:
        """Return the map (C, H, W) of a level; for images of different sizes it includes the padding."""
        if not self.manifest["maps"]:
            raise TwinsError(f"{self.folder} has no maps: extract them without --pool mean, or with --maps")
        row = self._readable_entry(position)["row"]
        group: Any = self._maps
        return group[level][row] if self.manifest["preparation"]["size"] else group[f"{level}/{row}"][:]

    def vectors(self, level: str) -> Any:
        """Return all pooled vectors of a level, (N, C), with zeros for unreadable images."""
        column = f"{level}_mean"
        if column not in self.vector_columns:
            available = ", ".join(self.vector_columns) or "none"
            raise TwinsError(
                f"{self.folder} has no vectors {column!r} (it has {available}): extract them with --pool mean"
            )
        return self._convert(_matrix(self._read([column])[column]))

    def readable(self) -> Features:
        """Return the features of the readable images."""
        return self._view(np.flatnonzero(pc.is_null(self.index["error"]).to_numpy()))

    def select(self, images: str | Sequence[str]) -> Features:
        """Return the features of some of the images, in the order given.

        Args:
            images: Image ids and globs, such as "photos/cats/*", or one of them. In a glob, `*` also matches "/". The
                images that match a glob keep the order of the folder, and each image appears once.

        Raises:
            TwinsError: If an id or a glob matches no image.
        """
        ids = self.index["image_id"]
        positions: dict[int, None] = {}
        for name in [images] if isinstance(images, str) else images:
            found = [pc.index(ids, name).as_py()]
            if found == [-1]:  # not an id
                pattern = re.compile(fnmatch.translate(name))
                found = [position for position, image_id in enumerate(ids.to_pylist()) if pattern.match(image_id)]
            if not found:
                raise TwinsError(f"{self.folder} has no image that matches {name!r}: {self._suggest(name)}")
            positions.update(dict.fromkeys(found))
        return self._view(np.fromiter(positions, np.int64))

    def to_pandas(self) -> Any:
        """Return the index with the pooled vectors as a pandas data frame; a vector is an array (C,), or `None`.

        Raises:
            TwinsError: If pandas is not installed.
        """
        if importlib.util.find_spec("pandas") is None:
            raise TwinsError("pandas is not installed: pip install pandas")
        return self._read([*INDEX_COLUMNS, *self.vector_columns]).to_pandas()

    def iter_batches(self, size: int = 64, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """Iterate over the readable images in batches, with constant memory.

        A batch contains the same entries as `features[position]` for B images: `row` is an array (B,) int64,
        `image_id` and `path` are lists, a map is (B, C, H, W), or a list of maps for images of different sizes, and a
        vector is (B, C).

        Args:
            size: Number of images per batch; the last batch may be smaller.
            columns: Levels and vector columns to read, such as ["c5_mean"]. `None` reads all.

        Raises:
            TwinsError: If the size is less than 1, or a column does not exist.
        """
        if size < 1:
            raise TwinsError(f"size={size}: give a number of images, 1 or more")
        known = [*(self.levels if self.manifest["maps"] else ()), *self.vector_columns]
        unknown = next((name for name in columns or () if name not in known), None)
        if unknown is not None:
            raise TwinsError(f"{self.folder} has no column {unknown!r}: choose from {', '.join(known)}")
        return self.readable()._batches(size, known if columns is None else columns)

    def _batches(self, size: int, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self), size):
            rows = self.rows[start : start + size]
            names = self.index.slice(start, size)
            batch: dict[str, Any] = {"row": rows if self._kind == "numpy" else torch.from_numpy(rows)}
            batch |= {name: names[name].to_pylist() for name in ("image_id", "path")}
            for name in columns:
                if name in self.vector_columns:
                    batch[name] = self._convert(np.stack([self._vector(row, name) for row in rows.tolist()]))
                elif self.manifest["preparation"]["size"]:
                    level: Any = self._maps[name]
                    batch[name] = self._convert(level.oindex[rows])
                else:
                    batch[name] = [self._convert(self.map(start + i, name)) for i in range(len(rows))]
            yield batch

    def _view(self, positions: np.ndarray) -> Features:
        view = copy.copy(self)
        view.rows = self.rows[positions]
        view.__dict__["index"] = self.index.take(positions)
        return view

    def _readable_entry(self, position: int) -> dict[str, Any]:
        entry = self.entry(position)
        if entry["error"] is not None:
            raise TwinsError(f"row {entry['row']} of {self.folder}, {entry['path']}, has no features: {entry['error']}")
        return entry

    def _suggest(self, name: str) -> str:
        ids = self.index["image_id"].slice(0, _NUM_COMPARED).to_pylist()
        near = difflib.get_close_matches(name, ids, n=1)
        return f"did you mean {near[0]!r}?" if near else f"its ids look like {ids[0]!r}"

    def _read(self, columns: Sequence[str]) -> pa.Table:
        """Read columns of the index for the rows of these features."""
        parts: list[int] = []
        if not (self.folder / INDEX).exists():
            parts = np.unique(self.rows // self.manifest["chunk"]).tolist() or finished_parts(self.folder)[:1]
        names = list(dict.fromkeys(["row", *columns]))
        try:
            tables = [pq.read_table(part_path(self.folder, part), columns=names) for part in parts]
        except FileNotFoundError:  # the extraction has just finished
            tables = []
        table = pa.concat_tables(tables or [pq.read_table(self.folder / INDEX, columns=names)])
        found = table["row"].to_numpy()
        if not np.array_equal(found, self.rows):
            table = table.take(np.searchsorted(found, self.rows))
        return table.select(list(columns))

    def _vector(self, row: int, column: str) -> np.ndarray:
        rows, vectors = self._cached
        if row not in rows:
            rows, vectors = self._cached = self._read_block(row)
        return vectors[column][row - rows.start]

    def _read_block(self, row: int) -> tuple[range, dict[str, np.ndarray]]:
        """Read the vectors of the row group, or the part of an unfinished index, that contains a row."""
        names = ["row", *self.vector_columns]
        if (self.folder / INDEX).exists():
            table = self._file.read_row_group(int(np.searchsorted(self._group_ends, row, side="right")), columns=names)
        else:
            try:
                table = pq.read_table(part_path(self.folder, row // self.manifest["chunk"]), columns=names)
            except FileNotFoundError:
                if not (self.folder / INDEX).exists():
                    raise
                return self._read_block(row)  # the extraction has just finished
        start = table["row"][0].as_py()
        return range(start, start + len(table)), {name: _matrix(table[name]) for name in self.vector_columns}

    # The vectors that were read last, with their rows, which makes reading consecutive rows fast.
    _cached: tuple[range, dict[str, np.ndarray]] = (range(0), {})

    @cached_property
    def _file(self) -> pq.ParquetFile:
        return pq.ParquetFile(self.folder / INDEX)

    @cached_property
    def _group_ends(self) -> np.ndarray:
        metadata = self._file.metadata
        return np.cumsum([metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)])

    @cached_property
    def _maps(self) -> zarr.Group:
        return zarr.open_group(self.folder / MAPS, mode="r")

    def _convert(self, array: np.ndarray) -> Any:
        if self._kind == "numpy":
            return array
        return torch.from_numpy(array).to(getattr(torch, self.manifest["dtype"]))

    def __getstate__(self) -> dict[str, Any]:
        opened = ("index", "_maps", "_file", "_group_ends", "_cached")
        return {name: value for name, value in vars(self).items() if name not in opened}


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    """Convert a column of fixed-size lists to (rows, length), with zeros for missing lists."""
    values = np.zeros((len(column), column.type.list_size), column.type.value_type.to_pandas_dtype())
    start = 0
    for chunk in column.chunks:
        readable = chunk.is_valid().to_numpy(zero_copy_only=False)
        rows = values[start : start + len(chunk)]
        rows[readable] = chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, chunk.type.list_size)
        start += len(chunk)
    return values
