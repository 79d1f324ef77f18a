"""Detect CUDA-aware MPI libraries, which accept pointers to GPU memory; other libraries crash on such pointers."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import TYPE_CHECKING

from hpc_dasgd.runtime import mpi

if TYPE_CHECKING:
    from mpi4py import MPI

_QUERY = "MPIX_Query_cuda_support"  # extension of MPICH, its derivatives and Open MPI


def is_cuda_aware(comm: MPI.Intracomm) -> bool:
    """Return True if the MPI library states that it accepts GPU memory; False if it states nothing.

    Not collective; never waits. The answer is taken from the info key ``mpi_memory_alloc_kinds`` (MPI 4.1) of `comm`
    or from the extension ``MPIX_Query_cuda_support``.
    """
    kinds = comm.Get_info().Get("mpi_memory_alloc_kinds") or ""
    return any(kind.partition(":")[0] == "cuda" for kind in kinds.split(",")) or _query_cuda_support()


def _query_cuda_support() -> bool:
    """Return the answer of `_QUERY`, if a loaded MPI library has this function."""
    for path in sorted(mpi.library_paths()):
        with suppress(OSError, AttributeError):
            if getattr(ctypes.CDLL(path), _QUERY)():
                return True
    return False
