"""Publications of simulated ranks: version vectors without parameters.

The version vector of a rank counts the updates in its replica, but only those of some ranks: the sources. In all
methods, `vector` is the version vector of the rank, shape (n_sources,), int32, and `column` is the index of its own
entry there; -1 if the rank is not a source.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Protocol, TypeAlias

import numpy as np

from hpc_dasgd.arrays.types import AnyArray, Int64s

_PIECES = 16  # number of parts in which a rank reads all others; with at most 16 others, each is read by itself
_PIECES_SAMPLED = 8  # number of parts if not all ranks are sources


ReadPiece: TypeAlias = tuple[float, float, float]
"""Some neighbours that a rank reads at one time: the number of neighbours checked for a new publication (a mean if not
all ranks are sources), the number of new publications, and the fraction of the neighbours that are on other nodes."""


class Overlay(Protocol):
    """Publications of all ranks, and which ranks read which.

    Attributes
    ----------
    n_links : int
        Number of pairs of a reader and the rank that it reads.
    """

    n_links: int

    def degree(self, rank: int) -> tuple[int, bool]:
        """Return the number of neighbours of a rank, and whether it passes on what it reads."""

    def read(self, rank: int, column: int, vector: AnyArray) -> Iterator[ReadPiece]:
        """Update the version vector of a rank from the publications of its neighbours, piece by piece."""

    def publish(self, rank: int, column: int, vector: AnyArray) -> None:
        """Publish the version vector of a rank."""


class CompleteOverlay(Overlay):
    """Overlay on which every rank reads all others in order, one part of them at a time.

    Parameters
    ----------
    nodes : sequence of int
        Node of each rank.
    sources : ndarray, shape (n_sources,), int64
        The ranks whose updates are counted.
    """

    def __init__(self, nodes: Sequence[int], sources: Int64s) -> None:
        n_ranks, n_sources = len(nodes), sources.size
        n_pieces = min(n_sources, _PIECES if n_sources == n_ranks else _PIECES_SAMPLED)
        self._bounds = np.linspace(0, n_sources, n_pieces + 1).astype(int).tolist()
        if n_sources == n_ranks <= _PIECES + 1:
            self._bounds = list(range(n_ranks + 1))
        self._ranks_per_source = n_ranks / n_sources
        self._published = np.zeros(n_sources, np.int32)
        _, node, counts = np.unique(nodes, return_inverse=True, return_counts=True)
        self._share_across = ((n_ranks - counts) / max(1, n_ranks - 1))[node].tolist()
        self._n_others = n_ranks - 1
        self.n_links = n_ranks * (n_ranks - 1)

    def degree(self, rank: int) -> tuple[int, bool]:
        """Return the number of other ranks, and False."""
        return self._n_others, False

    def read(self, rank: int, column: int, vector: AnyArray) -> Iterator[ReadPiece]:
        """Copy the published counts into `vector`, piece by piece."""
        share_across = self._share_across[rank]
        for lo, hi in pairwise(self._bounds):
            n_polled = (hi - lo) * self._ranks_per_source - (lo <= column < hi)
            if n_polled > 0:
                published, seen = self._published[lo:hi], vector[lo:hi]
                n_new = np.count_nonzero(published != seen) * self._ranks_per_source
                seen[:] = published
                yield n_polled, n_new, share_across

    def publish(self, rank: int, column: int, vector: AnyArray) -> None:
        """Publish the number of a rank's own updates."""
        if column >= 0:
            self._published[column] = vector[column]


class TreeOverlay(Overlay):
    """Overlay on which every rank reads its neighbours, each of which publishes all that its replica contains.

    In a real run, what a rank publishes for a neighbour does not contain what it has read from that neighbour. The
    simulation includes it, without effect: the neighbour already has newer counts of that part.

    Parameters
    ----------
    nodes : sequence of int
        Node of each rank.
    neighbours : sequence of tuple of int
        Neighbours of each rank.
    n_sources : int
        Number of ranks whose updates are counted.
    """

    def __init__(self, nodes: Sequence[int], neighbours: Sequence[tuple[int, ...]], n_sources: int) -> None:
        self._neighbours, self._nodes = neighbours, nodes
        self._published = np.zeros((len(nodes), n_sources), np.int32)
        self._publication = [0] * len(nodes)
        self._seen = [[0] * len(others) for others in neighbours]
        self.n_links = sum(map(len, neighbours))

    def degree(self, rank: int) -> tuple[int, bool]:
        """Return the number of neighbours of a rank, and whether it is an inner rank of the tree."""
        n_neighbours = len(self._neighbours[rank])
        return n_neighbours, n_neighbours > 1

    def read(self, rank: int, column: int, vector: AnyArray) -> Iterator[ReadPiece]:
        """Update `vector` from new publications, one neighbour at a time."""
        seen = self._seen[rank]
        for k, other in enumerate(self._neighbours[rank]):
            is_new = seen[k] != self._publication[other]
            if is_new:
                seen[k] = self._publication[other]
                np.maximum(vector, self._published[other], out=vector)
            yield 1, is_new, self._nodes[other] != self._nodes[rank]

    def publish(self, rank: int, column: int, vector: AnyArray) -> None:
        """Publish the version vector of a rank."""
        self._published[rank] = vector
        self._publication[rank] += 1
