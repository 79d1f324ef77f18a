"""Interface of the memory in which exchange `read` keeps a contribution, what was read from others, and their sum."""

from collections.abc import Generator, Sequence
from typing import Protocol

from hpc_dasgd.arrays.types import Array
from hpc_dasgd.exchange.interface import Update
from hpc_dasgd.exchange.reader import Neighbour
from hpc_dasgd.window.slots import Slot


class Store(Protocol):
    """Contribution, replica and partial sums of one rank, as they are stored, summed and published.

    Nothing here is collective. `HostStore` and `DeviceStore` are the implementations.

    Attributes
    ----------
    own : array of the device, shape (n_params,)
        The contribution; it may be another array after each call of `publish`.
    """

    own: Array

    def new_seen(self) -> Slot:
        """Return zeroed memory for the last publication of a neighbour."""

    def accept(self, other: Neighbour, buffer: Slot) -> Generator[None, None, Slot]:
        """Make what was read into `buffer` the `seen` of a neighbour; yields whenever it would have to wait.

        Returns
        -------
        buffer : Slot
            A buffer for the next read.
        """

    def sum_replica(self, neighbours: Sequence[Neighbour]) -> None:
        """Store the sum of the contribution and of what was read from `neighbours` into the replica."""

    def publish(
        self,
        due: list[bool],
        version: int,
        neighbours: Sequence[Neighbour],
        update: Update | None = None,
        catching_up: bool = False,
    ) -> list[bool]:
        """Add an update to the contribution, sum the replica again, and publish. Never waits.

        Parameters
        ----------
        due : list of bool
            For each of the first channels, whether it is to be published.
        version : int
            Number of own updates, this one included.
        neighbours : sequence of Neighbour
        update : Update, optional
            By default the contribution stays as it is.
        catching_up : bool
            If True, the replica changes by the update only.

        Returns
        -------
        published : list of bool
            For each of these channels, whether it is published now or as soon as a copy is complete. False for channels
            that are not due and for channels that are still publishing.
        """

    def poll(self) -> None:
        """Continue publications that are under way. Never waits."""

    def finish(self) -> None:
        """Wait until all publications are complete."""

    def publish_start(self) -> None:
        """Make the initial contribution readable for ranks that read it before its first publication. May wait."""

    def free(self) -> None:
        """Wait until all publications are complete, and release the memory of the window."""
