"""Where a generation of a run begins: at the first parameters of a new run, or at combined checkpoints."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_dasgd.arrays.types import Floats, Int64s

if TYPE_CHECKING:
    from mpi4py import MPI


@dataclass(frozen=True, eq=False)
class GenerationStart:
    """Where a generation of a run begins.

    Attributes
    ----------
    x0 : ndarray, shape (n_params,), host memory, or None
        Parameters; None in `without_arrays`.
    run_id : str
        Identifies the run in all of its files.
    generation : int
        0 for a new run.
    parent : int
        The generation that is continued; -1 for a new run.
    versions_before : ndarray, shape (n_streams,), int64
        Updates that each rank made in earlier generations; as many entries as the largest generation,
        this one included, has ranks.
    begun_s : float, s
        Time of the start on the clock of the run.
    slot : int
        Slot of the first checkpoint of this rank, to be taken modulo ``checkpoint.keep``.
    optimizer_state : mapping of str to ndarray or int, or None
        State of the optimizer of this rank; None if it starts from zero.
    stepsize_chosen : str
        How the stepsize was chosen for the run, as JSON; empty if the settings give it.
    """

    x0: Floats | None
    run_id: str
    generation: int
    parent: int
    versions_before: Int64s
    begun_s: float
    slot: int = 0
    optimizer_state: Mapping[str, Any] | None = None
    stepsize_chosen: str = ""

    @property
    def first_parameters(self) -> Floats:
        """The parameters that the generation begins with; not available in `without_arrays`."""
        assert self.x0 is not None, "the arrays were released"
        return self.x0

    @property
    def gradients(self) -> int:
        """Number of gradients of all ranks in earlier generations."""
        return int(self.versions_before.sum())

    @property
    def without_arrays(self) -> "GenerationStart":
        """The same start without parameters and optimizer state, for use after they were copied."""
        return replace(self, x0=None, optimizer_state=None)


def start_new_run(comm: "MPI.Intracomm", x0: Floats) -> GenerationStart:
    """Return the start of a new run. Collective over `comm`."""
    run_id = comm.bcast(uuid.uuid4().hex if comm.rank == 0 else None, root=0)
    versions = np.zeros(comm.size, np.int64)
    return GenerationStart(x0, run_id, generation=0, parent=-1, versions_before=versions, begun_s=0.0)
