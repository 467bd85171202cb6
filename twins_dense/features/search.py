"""Nearest neighbours and near duplicates among pooled vectors, by cosine.

The search is exact: it multiplies blocks of vectors by the queries. With 1,000,000 vectors of 512 numbers, two CPU
cores answer one query in 0.1 s and 1,000 queries in 5 s. An approximate index (HNSW by usearch) answers one query in
2 ms, but takes 11 minutes to build, and finds less than a third of the true neighbours if the vectors form no clusters.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.format import open_memmap
from scipy.sparse import coo_array  # type: ignore[import-untyped]
from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]
from torch import Tensor

from ..atomic import atomic_path
from ..errors import TwinsError
from . import INDEX

if TYPE_CHECKING:
    from .reader import Features

SEARCH = "search"  # folder of the prepared vectors
_LARGE = 50_000  # vectors: from this number on, the prepared vectors are kept on disk
_BLOCK = 65_536  # vectors that are compared at a time
_NUM_QUERIES = 256  # queries that are compared at a time


@dataclass(frozen=True)
class Neighbours:
    """Images most similar to a query, the most similar first.

    Attributes:
        ids: Image ids.
        paths: Paths of the images.
        rows: Rows in the feature folder.
        scores: Cosine between the vectors, in -1..1.
    """

    ids: list[str]
    paths: list[str]
    rows: list[int]
    scores: list[float]


class VectorSearch:
    """Exact search among the pooled vectors of one level of the readable images.

    Large sets are normalised once and kept in the folder `search` of the features, where they are memory-mapped. They
    are written again if the features have changed. If the folder cannot be written to, they are kept in memory.

    Args:
        features: The features to search.
        level: Name of the level, such as "c5". `None` means the coarsest one.

    Attributes:
        features: The readable ones of the features.
        level: Name of the level.

    Raises:
        TwinsError: If the level has no vectors, or no image is readable.
    """

    def __init__(self, features: Features, level: str | None = None) -> None:
        self.level = level or features.levels[-1]
        features.check_vectors(self.level)
        self.features = features.readable()
        if not len(self.features):
            raise TwinsError(f"{features.folder} has no readable image to search: check its column error")
        self._matrix = self._prepare(
            is_whole=features.complete and len(features) == features.manifest["images"]["count"]
        )

    def neighbours(self, vectors: Tensor, k: int) -> list[Neighbours]:
        """Return the `k` nearest neighbours of each query, or fewer if there are not as many images.

        Args:
            vectors: Queries (Q, C).
            k: Number of neighbours.
        """
        scores, positions = self.nearest(vectors, k)
        return [self._describe(*found) for found in zip(scores, positions, strict=True)]

    def neighbours_of(self, position: int, k: int) -> Neighbours:
        """Return the `k` nearest neighbours of an image of these features, without the image itself."""
        scores, positions = (found[0] for found in self.nearest(self._matrix[position : position + 1], k + 1))
        others = (positions != position).nonzero()[:k, 0]
        return self._describe(scores[others], positions[others])

    def nearest(self, vectors: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the scores (Q, k) and the positions (Q, k) of the nearest neighbours of queries (Q, C)."""
        if k < 1:
            raise TwinsError(f"k={k}: give a number of neighbours, 1 or more")
        if vectors.ndim != 2 or vectors.shape[1] != self._matrix.shape[1]:
            found = tuple(vectors.shape[1:])
            raise TwinsError(f"query of shape {found}: a vector of {self.level} has shape ({self._matrix.shape[1]},)")
        if not vectors.isfinite().all():
            raise TwinsError("the query has values that are not finite: check the vector")
        results = [self._nearest(queries, k) for queries in F.normalize(vectors.float(), dim=1).split(_NUM_QUERIES)]
        scores, positions = (torch.cat(parts) for parts in zip(*results, strict=True))
        return scores, positions

    def duplicates(self, threshold: float) -> list[list[str]]:
        """Return groups of the ids of near duplicates, the largest group first.

        Two images belong to one group if their cosine is at least the threshold, or if a chain of such pairs links
        them. The time grows with the square of the number of images, and the memory does not.

        Raises:
            TwinsError: If the threshold is not in 0..1.
        """
        if not 0 < threshold <= 1:
            raise TwinsError(f"threshold={threshold}: give a cosine above 0, at most 1, such as 0.98")
        count = len(self._matrix)
        labels = np.arange(count)
        for start, block in self._blocks(_NUM_QUERIES):
            for other, others in self._blocks(_BLOCK, start):
                # Rounding must not part equal vectors.
                near = (block @ others.T >= threshold - 1e-6).nonzero().numpy()
                left, right = labels[near[:, 0] + start], labels[near[:, 1] + other]
                if (left == right).all():
                    continue
                graph = coo_array((np.ones(len(left), bool), (left, right)), shape=(count, count))
                labels = connected_components(graph, directed=False)[1][labels]
        order = np.argsort(labels, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
        ids = self.features.index["image_id"]
        found = sorted((group for group in groups if len(group) > 1), key=lambda group: (-len(group), group[0]))
        return [ids.take(group).to_pylist() for group in found]

    def _nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        scores, positions = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
        for start, block in self._blocks(_BLOCK):
            block_scores, block_positions = (queries @ block.T).topk(min(k, len(block)))
            scores = torch.cat([scores, block_scores], dim=1)
            positions = torch.cat([positions, block_positions + start], dim=1)
            scores, order = scores.topk(min(k, scores.shape[1]))
            positions = positions.gather(1, order)
        return scores, positions

    def _blocks(self, size: int, first: int = 0) -> Iterator[tuple[int, Tensor]]:
        for start in range(first, len(self._matrix), size):
            yield start, self._matrix[start : start + size]

    def _describe(self, scores: Tensor, positions: Tensor) -> Neighbours:
        index = self.features.index.select(["image_id", "path", "row"]).take(positions.numpy())
        ids, paths, rows = (column.to_pylist() for column in index.columns)
        return Neighbours(ids, paths, rows, scores.clamp(-1, 1).tolist())

    def _prepare(self, is_whole: bool) -> Tensor:
        """Return the normalised vectors (N, C)."""
        (channels,) = (x["channels"] for x in self.features.manifest["model"]["levels"] if x["name"] == self.level)
        shape = (len(self.features), channels)
        if is_whole and shape[0] >= _LARGE:
            index, path = self.features.folder / INDEX, self.features.folder / SEARCH / f"{self.level}_mean.npy"
            written = index.stat().st_mtime_ns  # also set for the prepared vectors, to recognise features that changed
            try:
                if not path.exists() or path.stat().st_mtime_ns != written:
                    with atomic_path(path) as temporary:
                        mapped = open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
                        self._fill(mapped)
                        mapped.flush()
                        os.utime(temporary, ns=(written, written))
                return torch.from_numpy(np.load(path, mmap_mode="c"))  # a private, writable mapping, as torch expects
            except OSError:
                pass  # such as a folder of another user, or a full disk
        matrix = np.empty(shape, np.float32)
        self._fill(matrix)
        return torch.from_numpy(matrix)

    def _fill(self, matrix: np.ndarray) -> None:
        column, start = f"{self.level}_mean", 0
        for batch in self.features.iter_batches(4096, [column]):
            vectors = F.normalize(torch.as_tensor(batch[column]).float(), dim=1)
            matrix[start : start + len(vectors)] = vectors.numpy()
            start += len(vectors)
