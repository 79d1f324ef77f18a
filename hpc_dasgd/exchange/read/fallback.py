"""Leaving a tree for the complete overlay, after the death of a rank has divided it."""

from hpc_dasgd.arrays.types import Int64s
from hpc_dasgd.exchange.read.neighbourhood import Neighbourhood
from hpc_dasgd.exchange.read.state import ReadState
from hpc_dasgd.exchange.reader import Neighbour, Reader
from hpc_dasgd.overlay import topology
from hpc_dasgd.window.publication import HeaderField


class CompleteFallback(Neighbourhood):
    """The complete overlay, for a rank that has left a tree.

    The replica holds contributions that arrived as partial sums over the tree. While the rank is catching up, the
    replica therefore changes by own updates only, until everything that it holds has been read as contributions. From
    then on the replica is the sum of the contributions.

    Parameters
    ----------
    neighbours : list of Neighbour
        All other ranks, none of which has been read.
    tree : Neighbourhood
        The neighbours on the tree.
    """

    def __init__(self, neighbours: list[Neighbour], tree: Neighbourhood):
        super().__init__(neighbours, [slice(None)] * len(neighbours), tree.throttles[:1], on_tree=False)
        self.left = tree.neighbours
        self.catching_up = True

    def advance(self, reader: Reader, versions: Int64s) -> list[bool]:
        """Continue the reads of all neighbours; see `Neighbourhood.advance`.

        While the rank is catching up nothing counts as arrived, and the version vector does not change. The call that
        ends this phase reports all neighbours as arrived.
        """
        if not self.catching_up:
            return super().advance(reader, versions)
        reader.advance(self.neighbours)
        self.catching_up = not all(_has_caught_up(other, versions) for other in self.neighbours)
        if not self.catching_up:
            self._merge_versions(versions)
        return [not self.catching_up] * len(self.neighbours)


def _has_caught_up(other: Neighbour, versions: Int64s) -> bool:
    """Return True if all updates of a rank that the replica holds have been read as its contribution."""
    return other.publication >= 0 and bool(other.seen.versions[other.rank] >= versions[other.rank])


def must_leave_tree(state: ReadState, died: set[int]) -> bool:
    """Return True if the rank is on a tree, and a rank has died or a neighbour has left the tree. Never waits."""
    neighbourhood = state.neighbourhood
    if not neighbourhood.on_tree:
        return False
    return bool(died) or any(other.header[HeaderField.LEFT_TREE] for other in neighbourhood.neighbours)


def leave_tree(state: ReadState) -> None:
    """Replace the neighbours on the tree by all other ranks, and tell the neighbours in the own headers. Never waits.

    Parameters
    ----------
    state : ReadState
        State of a run in which every rank publishes its contribution in channel 0.
    """
    tree = state.neighbourhood
    state.window.set_field(HeaderField.LEFT_TREE, 1)
    if any(other.reading for other in tree.neighbours):
        state.reader.add_buffer()
    neighbours = [
        state.make_neighbour(other, 0, tree.throttles[0])
        for other in topology.complete(state.comm.rank, state.comm.size)
    ]
    for other in neighbours:
        other.publication = -1  # the initial contribution, publication 0, is read too: that of rank 0 contains x_0
    state.neighbourhood = CompleteFallback(neighbours, tree)
