"""What a rank publishes and reads on an overlay, as pure functions without communication."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from hpc_dasgd.overlay import topology

Tree: TypeAlias = Callable[[int], tuple[int, ...]]
"""A function that returns the neighbours of a rank on a tree that spans all ranks; the same on all ranks."""

COMPLETE_SLOTS, TREE_SLOTS = 3, 2


@dataclass(frozen=True)
class Channels:
    """The channels of a rank, and the channels of other ranks that it reads.

    A rank has a channel for its contribution, or one for each edge of a tree, or both, in this order. The channel of an
    edge publishes the partial sum of the own side of the edge; see `hpc_dasgd.overlay.partial_sums`.

    Attributes
    ----------
    ranks : tuple of int
        Neighbours of the rank.
    channels_read : tuple of int
        For each neighbour, the number of its channel that is read.
    publishes_own : bool
        True if channel 0 publishes the contribution: on the complete overlay, in leaves of a tree, and on every rank if
        deaths are survived.
    n_edges : int
        Number of channels for edges; 0 on the complete overlay and in leaves of a tree.
    on_tree : bool
        True if the overlay is a tree.
    n_slots : int
        Number of slots of each channel.
    n_versions : int
        Number of entries of the version vectors in slots: 1 on the complete overlay, else the number of ranks.
    own_entry : int
        Index of this rank in these version vectors.
    """

    ranks: tuple[int, ...]
    channels_read: tuple[int, ...]
    publishes_own: bool
    n_edges: int
    on_tree: bool
    n_slots: int
    n_versions: int
    own_entry: int

    @property
    def n_channels(self) -> int:
        """Number of channels of the rank."""
        return self.publishes_own + self.n_edges


def complete_channels(rank: int, n_ranks: int) -> Channels:
    """Return the channels of a rank on the complete overlay."""
    ranks = topology.complete(rank, n_ranks)
    return Channels(
        ranks=ranks,
        channels_read=(0,) * len(ranks),
        publishes_own=True,
        n_edges=0,
        on_tree=False,
        n_slots=COMPLETE_SLOTS,
        n_versions=1,
        own_entry=0,
    )


def tree_channels(rank: int, n_ranks: int, tree: Tree, survives: bool) -> Channels:
    """Return the channels of a rank on a tree.

    Parameters
    ----------
    rank, n_ranks : int
    tree : callable
        See `Tree`.
    survives : bool
        True if every rank also publishes its contribution, so that the others can leave the tree.
    """

    def is_inner(other: int) -> bool:
        return len(tree(other)) > 1

    ranks = tree(rank)
    return Channels(
        ranks=ranks,
        channels_read=tuple((survives and is_inner(other)) + tree(other).index(rank) for other in ranks),
        publishes_own=survives or not is_inner(rank),
        n_edges=len(ranks) if is_inner(rank) else 0,
        on_tree=True,
        n_slots=TREE_SLOTS,
        n_versions=n_ranks,
        own_entry=rank,
    )
