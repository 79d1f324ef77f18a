"""What simulated ranks show each other: how many updates of which ranks, and no parameters.

A rank's vector `held` counts the updates of some ranks, the sources, that its replica holds. `own` is its own entry
there, -1 where it is no source.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

_PIECES = 16  # in which a rank reads all others; with fewer others each is read at a moment of its own
_PIECES_SAMPLED = 8


class Complete:
    """Every rank reads all others, in order, a piece of them at a moment."""

    def __init__(self, nodes: Sequence[int], sources: np.ndarray):
        n_ranks, n_sources = len(nodes), sources.size
        n_pieces = min(n_sources, _PIECES if n_sources == n_ranks else _PIECES_SAMPLED)
        self._bounds = np.linspace(0, n_sources, n_pieces + 1).astype(int).tolist()
        if n_sources == n_ranks <= _PIECES + 1:
            self._bounds = list(range(n_ranks + 1))
        self._ranks_per_source = n_ranks / n_sources
        self._shown = np.zeros(n_sources, np.int32)
        _, node, counts = np.unique(nodes, return_inverse=True, return_counts=True)
        self._across = ((n_ranks - counts) / max(1, n_ranks - 1))[node].tolist()
        self._n_others = n_ranks - 1
        self.n_links = n_ranks * (n_ranks - 1)

    def degree(self, rank: int) -> tuple[int, bool]:
        return self._n_others, False

    def read(self, rank: int, own: int, held: np.ndarray) -> Iterator[tuple[float, float, float]]:
        """Take in what is shown, piece by piece: yields neighbours asked, those with news, share across nodes."""
        across = self._across[rank]
        for lo, hi in pairwise(self._bounds):
            n_asked = (hi - lo) * self._ranks_per_source - (lo <= own < hi)
            if n_asked > 0:
                shown, seen = self._shown[lo:hi], held[lo:hi]
                n_news = np.count_nonzero(shown != seen) * self._ranks_per_source
                seen[:] = shown
                yield n_asked, n_news, across

    def publish(self, rank: int, own: int, held: np.ndarray) -> None:
        if own >= 0:
            self._shown[own] = held[own]


class Tree:
    """Every rank reads its neighbours, each of which shows all that it holds.

    What a real one shows to a neighbour leaves out that neighbour's side, of which it holds nothing newer.
    """

    def __init__(self, nodes: Sequence[int], neighbours: list[tuple[int, ...]], n_sources: int):
        self._neighbours, self._nodes = neighbours, nodes
        self._shown = np.zeros((len(nodes), n_sources), np.int32)
        self._publication = [0] * len(nodes)
        self._seen = [[0] * len(others) for others in neighbours]
        self.n_links = sum(map(len, neighbours))

    def degree(self, rank: int) -> tuple[int, bool]:
        n_neighbours = len(self._neighbours[rank])
        return n_neighbours, n_neighbours > 1

    def read(self, rank: int, own: int, held: np.ndarray) -> Iterator[tuple[float, float, float]]:
        seen = self._seen[rank]
        for k, other in enumerate(self._neighbours[rank]):
            news = seen[k] != self._publication[other]
            if news:
                seen[k] = self._publication[other]
                np.maximum(held, self._shown[other], out=held)
            yield 1, news, self._nodes[other] != self._nodes[rank]

    def publish(self, rank: int, own: int, held: np.ndarray) -> None:
        self._shown[rank] = held
        self._publication[rank] += 1
