"""Whether the MPI library takes memory of a GPU, as far as it says; one that does not crashes on it."""

import ctypes
from contextlib import suppress
from pathlib import Path

_QUERY = "MPIX_Query_cuda_support"  # of MPICH and what descends from it, and of Open MPI


def taken(comm) -> bool:
    """Whether the MPI of `comm` says that calls may be given memory of a GPU; False where it does not say."""
    kinds = comm.Get_info().Get("mpi_memory_alloc_kinds") or ""  # since MPI 4.1
    return any(kind.partition(":")[0] == "cuda" for kind in kinds.split(",")) or _queried()


def _queried() -> bool:
    """What the library that is loaded answers to `_QUERY`."""
    maps = Path("/proc/self/maps")
    paths = {line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines() if "/libmpi" in line}
    for path in sorted(paths):
        with suppress(OSError, AttributeError):
            if getattr(ctypes.CDLL(path), _QUERY)():
                return True
    return False
