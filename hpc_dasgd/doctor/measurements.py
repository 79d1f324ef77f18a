"""Measurements of one-sided calls: latency, bandwidth, progress without the target, consistency of reads."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from hpc_dasgd.arrays.types import Float64s
from hpc_dasgd.errors import WindowError
from hpc_dasgd.exchange.reader import Neighbour, PublicationThrottle, Reader
from hpc_dasgd.runtime.launch_checks import LaunchSurvey, survey_launch
from hpc_dasgd.window.memory import Transfer, WindowMemory
from hpc_dasgd.window.publication import HeaderField, PublicationWindow
from hpc_dasgd.window.slots import PublicationLayout

if TYPE_CHECKING:
    from mpi4py import MPI

SLEEP_S = 0.4  # time for which the target makes no MPI calls
BULK_BYTES = 1 << 25
_SMALL_CALLS, _BULK_CALLS = 100, 5  # number of samples per median
_ASLEEP_AFTER_S = 0.1  # time after which the target is certainly asleep
_TEAR_S, _TEAR_PARAMS, _TEAR_SLOTS = 0.5, 1 << 18, 3
_TAG = 104


@dataclass(frozen=True)
class Link:
    """Measurements of one-sided calls from rank 0 to another rank.

    Attributes
    ----------
    rank : int
        Rank of the target.
    same_node : bool
        True if the target is on the same node as rank 0.
    get_s, accumulate_s : float, s
        Median time of a call with 8 bytes, while the target waits inside MPI.
    get_bytes_per_s, accumulate_bytes_per_s : float, bytes/s
        Bandwidth of calls with 32 MiB, while the target waits inside MPI.
    memcpy_bytes_per_s : float, bytes/s
        Bandwidth of a copy of 32 MiB by rank 0.
    asleep_get_s, asleep_accumulate_s : float, s
        Time of a call with 1 MiB, while the target makes no MPI calls for `SLEEP_S`.
    n_reads, n_dropped, n_torn : int
        Number of accepted reads, of dropped reads, and of accepted reads that mix several publications (must be 0),
        while the target wrote new publications as fast as possible.
    """

    rank: int
    same_node: bool
    get_s: float
    accumulate_s: float
    get_bytes_per_s: float
    accumulate_bytes_per_s: float
    memcpy_bytes_per_s: float
    asleep_get_s: float
    asleep_accumulate_s: float
    n_reads: int
    n_dropped: int
    n_torn: int


@dataclass(frozen=True)
class Measurements:
    """Results of `measure`.

    Attributes
    ----------
    survey : LaunchSurvey
        Description of the launch, from `survey_launch`.
    window_error : str
        Why windows cannot be used; empty if they can.
    links : list of Link
        On rank 0: at most one to a rank of the same node and one to a rank of another node. Empty on other ranks.
    """

    survey: LaunchSurvey
    window_error: str = ""
    links: list[Link] = field(default_factory=list)


def measure(comm: "MPI.Intracomm") -> Measurements:
    """Survey the launch and measure one-sided calls. Collective over `comm`; takes some seconds."""
    survey = survey_launch(comm)
    nodes = survey.nodes
    links = []
    try:
        for same_node in (True, False):
            targets = [rank for rank in range(1, comm.size) if (nodes[rank] == nodes[0]) == same_node]
            if targets:
                links.append(_measure_link(comm, targets[0], same_node))
    except WindowError as error:
        return Measurements(survey, window_error=str(error))
    return Measurements(survey, links=[link for link in links if link is not None])


def _measure_link(comm: "MPI.Intracomm", target: int, same_node: bool) -> Link | None:
    """Measure calls from rank 0 to `target`; return None on other ranks. Collective over `comm`."""
    memory = WindowMemory(comm, BULK_BYTES)
    costs: dict[str, float] = {}
    if comm.rank == 0:
        costs = _measure_as_origin(comm, memory, target)
    elif comm.rank == target:
        _serve_as_target(comm)
    comm.Barrier()
    memory.free()
    torn = _tear(comm, target)
    if comm.rank != 0:
        return None
    return Link(
        rank=target,
        same_node=same_node,
        memcpy_bytes_per_s=_memcpy_bytes_per_s(),
        n_reads=torn["n_reads"],
        n_dropped=torn["n_dropped"],
        n_torn=torn["n_torn"],
        **costs,
    )


def _measure_as_origin(comm: "MPI.Intracomm", memory: WindowMemory, target: int) -> dict[str, float]:
    """Time calls to `target`, which runs `_serve_as_target`."""
    small, bulk = np.zeros(2), np.zeros(BULK_BYTES // 8)
    back, megabyte = np.zeros_like(bulk), bulk[: bulk.size // 32]

    def get(values: Float64s) -> float:
        return _seconds(lambda: memory.read(target, 0, values))

    def accumulate(values: Float64s) -> float:
        return _seconds(lambda: memory.add(target, 0, values, back[: values.size]))

    def median(call: Callable[[Float64s], float], values: Float64s, n_calls: int) -> float:
        return float(np.median([call(values) for _ in range(n_calls + 1)][1:]))

    costs = {
        "get_s": median(get, small[:1], _SMALL_CALLS),
        "accumulate_s": median(accumulate, small[:1], _SMALL_CALLS),
        "get_bytes_per_s": BULK_BYTES / median(get, bulk, _BULK_CALLS),
        "accumulate_bytes_per_s": BULK_BYTES / median(accumulate, bulk, _BULK_CALLS),
    }
    for name, call in (("asleep_get_s", get), ("asleep_accumulate_s", accumulate)):
        comm.send(True, target, tag=_TAG)
        time.sleep(_ASLEEP_AFTER_S)
        costs[name] = call(megabyte)
        comm.recv(source=target, tag=_TAG)
    comm.send(False, target, tag=_TAG)
    return costs


def _serve_as_target(comm: "MPI.Intracomm") -> None:
    """Wait inside MPI; sleep without MPI calls whenever rank 0 asks for it, until rank 0 ends the measurement."""
    while comm.recv(source=0, tag=_TAG):
        time.sleep(SLEEP_S + _ASLEEP_AFTER_S)
        comm.send(None, 0, tag=_TAG)


def _memcpy_bytes_per_s() -> float:
    """Return the bandwidth of copies within the memory of this process. Not collective."""
    source, target = np.ones((2, BULK_BYTES // 8))  # pages that were never written would be copied faster
    times_s = []
    for _ in range(_BULK_CALLS + 1):
        begun_s = time.perf_counter()
        np.copyto(target, source)
        times_s.append(time.perf_counter() - begun_s)
    return BULK_BYTES / float(np.median(times_s[1:]))


def _seconds(begin: Callable[[], Transfer]) -> float:
    """Return the time, in s, from the start of a transfer to its completion."""
    begun_s = time.perf_counter()
    transfer = begin()
    while not transfer.done():
        pass
    return time.perf_counter() - begun_s


def _tear(comm: "MPI.Intracomm", target: int) -> dict[str, int]:
    """Read publications of `target` while it writes new ones as fast as possible. Collective over `comm`."""
    window = PublicationWindow(comm, PublicationLayout(_TEAR_PARAMS, np.float32, _TEAR_SLOTS))
    counts = {"n_reads": 0, "n_dropped": 0, "n_torn": 0}
    comm.Barrier()
    end_s = time.perf_counter() + _TEAR_S
    if comm.rank == target:
        version = 0
        while time.perf_counter() < end_s:
            version += 1
            window.set_field(HeaderField.VERSION, version)
            slot = window.channels[0].begin()
            slot.payload.fill(version)
            slot.versions[0] = version
            window.channels[0].publish()
    elif comm.rank == 0:
        reader = Reader(comm, window, _TEAR_SLOTS, n_buffers=1)
        neighbours = [Neighbour(target, 0, window.buffer(), PublicationThrottle())]
        while time.perf_counter() < end_s:
            if any(reader.advance(neighbours)):
                seen = neighbours[0].seen
                counts["n_reads"] += 1
                counts["n_torn"] += bool(np.any(seen.payload != seen.versions[0]))
        reader.finish(neighbours)
        counts["n_dropped"] = reader.dropped_reads
    comm.Barrier()
    window.free()
    return counts
