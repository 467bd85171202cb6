"""Read a feature folder."""

from __future__ import annotations

from collections.abc import Sequence
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
from torch.utils.data import Dataset, Subset

from ..errors import TwinsError
from . import INDEX, MAPS
from .store import read_manifest


class Features(Dataset):
    """Data set of features by row or image id, as returned by `open_features`. Pickles leave out open files and tables.

    `features[3]` and `features["photos/a.jpg"]` are dicts with `row`, `image_id` and `path`. If they were extracted,
    the map (C, H, W) of each level is stored under its name (`c4`), and the pooled vector (C,) under its column
    (`c4_mean`). Negative rows count from the end. An unreadable image raises `TwinsError`; `features.readable()` leaves
    such images out.

    Attributes:
        folder: The feature folder.
        manifest: Content of `manifest.json`: how the features were computed.
        levels: Names of the levels, finest first.
    """

    def __init__(self, folder: str | PathLike[str], kind: Literal["numpy", "torch"] = "numpy") -> None:
        self.folder = Path(folder)
        if kind not in ("numpy", "torch"):
            raise TwinsError(f"kind={kind!r}: choose 'numpy' or 'torch'")
        self._kind = kind
        self.manifest = read_manifest(self.folder)
        if not (self.folder / INDEX).exists():
            raise TwinsError(f"{self.folder} is not complete: run `twins-dense extract` again to resume")
        self.levels: tuple[str, ...] = tuple(level["name"] for level in self.manifest["model"]["levels"])

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: int | str) -> dict[str, Any]:
        row = self.row_of(key) if isinstance(key, str) else range(len(self))[key]
        entry = self._readable_entry(row)
        item: dict[str, Any] = {name: entry[name] for name in ("row", "image_id", "path")}
        if self.manifest["maps"]:
            item |= {level: self._convert(self.map(row, level)) for level in self.levels}
        for column in self._vector_columns:
            item[column] = self._convert(self._vector(row, column))
        return item

    @cached_property
    def index(self) -> pa.Table:
        """The index without the vectors: one row per image, see `twins_dense.features`."""
        names = [name for name in pq.read_schema(self.folder / INDEX).names if name not in self._vector_columns]
        return pq.read_table(self.folder / INDEX, columns=names)

    def entry(self, row: int) -> dict[str, Any]:
        """Return the index row of an image."""
        return self.index.slice(range(len(self))[row], 1).to_pylist()[0]

    def row_of(self, image_id: str) -> int:
        """Return the row of an image. An unknown id raises `TwinsError`."""
        row = pc.index(self.index["image_id"], image_id).as_py()
        if row < 0:
            raise TwinsError(
                f"{self.folder} has no image {image_id!r}: its ids look like {self.entry(0)['image_id']!r}"
            )
        return row

    def map(self, row: int, level: str) -> np.ndarray:
        """Return the map (C, H, W) of a level; for images of different sizes it includes the padding."""
        if not self.manifest["maps"]:
            raise TwinsError(f"{self.folder} has no maps: extract them without --pool mean, or with --maps")
        row = self._readable_entry(row)["row"]
        group: Any = self._maps
        return group[level][row] if self.manifest["preparation"]["size"] else group[f"{level}/{row}"][:]

    def vectors(self, level: str) -> Any:
        """Return all pooled vectors of a level, (rows, C), with zeros for unreadable images."""
        column = f"{level}_mean"
        if column not in self._vector_columns:
            available = ", ".join(self._vector_columns) or "none"
            raise TwinsError(
                f"{self.folder} has no vectors {column!r} (it has {available}): extract them with --pool mean"
            )
        return self._convert(_matrix(pq.read_table(self.folder / INDEX, columns=[column])[column]))

    def readable(self) -> Subset:
        """Return a torch dataset of the readable images."""
        return Subset(self, np.flatnonzero(pc.is_null(self.index["error"]).to_numpy()).tolist())

    def _readable_entry(self, row: int) -> dict[str, Any]:
        entry = self.entry(row)
        if entry["error"] is not None:
            raise TwinsError(f"row {row} of {self.folder}, {entry['path']}, has no features: {entry['error']}")
        return entry

    @property
    def _vector_columns(self) -> Sequence[str]:
        return [f"{level}_mean" for level in self.levels] if self.manifest["pool"] == "mean" else []

    @cached_property
    def _maps(self) -> zarr.Group:
        return zarr.open_group(self.folder / MAPS, mode="r")

    @cached_property
    def _file(self) -> pq.ParquetFile:
        return pq.ParquetFile(self.folder / INDEX)

    @cached_property
    def _group_ends(self) -> np.ndarray:
        metadata = self._file.metadata
        return np.cumsum([metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)])

    def _vector(self, row: int, column: str) -> np.ndarray:
        group = int(np.searchsorted(self._group_ends, row, side="right"))
        if self._cached_group[0] != group:
            table = self._file.read_row_group(group, columns=list(self._vector_columns))
            self._cached_group = (group, {name: _matrix(table[name]) for name in self._vector_columns})
        start = int(self._group_ends[group - 1]) if group else 0
        return self._cached_group[1][column][row - start]

    # The last row group that was read, which makes reading consecutive rows fast.
    _cached_group: tuple[int, dict[str, np.ndarray]] = (-1, {})

    def _convert(self, array: np.ndarray) -> Any:
        if self._kind == "numpy":
            return array
        return torch.from_numpy(array).to(getattr(torch, self.manifest["dtype"]))

    def __getstate__(self) -> dict[str, Any]:
        opened = ("index", "_maps", "_file", "_group_ends", "_cached_group")
        return {name: value for name, value in vars(self).items() if name not in opened}


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    """Convert a column of fixed-size lists to (rows, length), with zeros for missing lists."""
    chunks = []
    for chunk in column.chunks:
        values = np.zeros((len(chunk), chunk.type.list_size), chunk.type.value_type.to_pandas_dtype())
        values[chunk.is_valid().to_numpy(zero_copy_only=False)] = (
            chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, chunk.type.list_size)
        )
        chunks.append(values)
    return np.concatenate(chunks)
