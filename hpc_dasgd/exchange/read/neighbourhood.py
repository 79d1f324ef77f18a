"""The neighbours that a rank reads, and how their version vectors are merged into that of the replica."""

from collections.abc import Sequence

import numpy as np

from hpc_dasgd.arrays.types import Int64s
from hpc_dasgd.exchange.reader import Neighbour, PublicationThrottle, Reader


class Neighbourhood:
    """The neighbours that a rank reads.

    Parameters
    ----------
    neighbours : sequence of Neighbour
    entries : sequence of slice
        For each neighbour, the entries of the replica's version vector that its slots describe.
    throttles : sequence of PublicationThrottle
        One for each own channel that is published.
    on_tree : bool
        True if the neighbours are those of a tree.

    Attributes
    ----------
    neighbours, throttles, on_tree
        As above.
    left : list of Neighbour
        Neighbours that are not read any more; reads of them may still be under way.
    catching_up : bool
        True if own updates are the only changes that the replica may make at present; see `fallback`.
    """

    def __init__(
        self,
        neighbours: Sequence[Neighbour],
        entries: Sequence[slice],
        throttles: Sequence[PublicationThrottle],
        on_tree: bool,
    ):
        self.neighbours, self.throttles, self.on_tree = list(neighbours), list(throttles), on_tree
        self.left: list[Neighbour] = []
        self.catching_up = False
        self._entries = list(entries)

    def advance(self, reader: Reader, versions: Int64s) -> list[bool]:
        """Continue the reads of all neighbours, and update the version vector of the replica. Never waits.

        Returns
        -------
        arrived : list of bool
            For each neighbour, whether a new publication has arrived and the replica has to be summed again.
        """
        arrived = reader.advance(self.neighbours)
        if any(arrived):
            self._merge_versions(versions)
        return arrived

    def _merge_versions(self, versions: Int64s) -> None:
        for other, entries in zip(self.neighbours, self._entries, strict=True):
            merged = versions[entries]
            np.maximum(merged, other.seen.versions, out=merged)
