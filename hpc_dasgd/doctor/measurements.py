"""What one-sided calls cost here, and whether they need the target's help. Everything is collective."""

import time
from dataclasses import dataclass, field

import numpy as np

from hpc_dasgd.errors import WindowError
from hpc_dasgd.exchange.reader import Neighbour, PublicationThrottle, Reader
from hpc_dasgd.runtime.launch_checks import LaunchSurvey, survey_launch
from hpc_dasgd.window.memory import WindowMemory
from hpc_dasgd.window.publication import PublicationWindow, Word

SLEEP_S = 0.4  # of a target that makes no call of MPI
BULK_BYTES = 1 << 25
_SMALL, _BULK = 100, 5  # calls that a median is taken of
_ASLEEP_AFTER_S = 0.1  # when the target is asleep for sure
_TEAR_S, _TEAR_PARAMS, _TEAR_SLOTS = 0.5, 1 << 18, 3
_TAG = 104


@dataclass(frozen=True)
class Link:
    """One-sided calls from rank 0 to another rank.

    Attributes
    ----------
    rank : int
    same_node : bool
    get_s, accumulate_s : float, s
        Of 8 bytes, while the target waits inside MPI: medians.
    get_bytes_per_s, accumulate_bytes_per_s, memcpy_bytes_per_s : float
        Of 32 MiB, likewise; of a copy by rank 0.
    asleep_get_s, asleep_accumulate_s : float, s
        Of 1 MiB, while the target makes no call of MPI for `SLEEP_S`.
    n_reads, n_dropped, n_torn : int
        Publications read while their owner wrote as fast as it could: accepted, dropped, accepted though torn.
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
    """What was found out about this launch; links on rank 0 alone.

    Attributes
    ----------
    survey : LaunchSurvey
    window_error : str
        Why there are no windows; empty where there are.
    links : list of Link
        To one rank of the same node, to one of another.
    """

    survey: LaunchSurvey
    window_error: str = ""
    links: list[Link] = field(default_factory=list)


def measure(comm) -> Measurements:
    """Find out about the launch and the network; takes some seconds."""
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


def _measure_link(comm, target: int, same_node: bool) -> Link | None:
    memory = WindowMemory(comm, BULK_BYTES)
    costs = _origin(comm, memory, target) if comm.rank == 0 else _target(comm, target)
    comm.Barrier()
    memory.free()
    torn = _tear(comm, target)
    return Link(target, same_node, **costs, **torn) if comm.rank == 0 else None


def _origin(comm, memory: WindowMemory, target: int) -> dict[str, float]:
    small, bulk = np.zeros(2), np.zeros(BULK_BYTES // 8)
    back, megabyte = np.zeros_like(bulk), bulk[: bulk.size // 32]

    def get(values):
        return _seconds(lambda: memory.read(target, 0, values))

    def accumulate(values):
        return _seconds(lambda: memory.add(target, 0, values, back[: values.size]))

    def median(call, values, n):
        return float(np.median([call(values) for _ in range(n + 1)][1:]))

    costs = {
        "get_s": median(get, small[:1], _SMALL),
        "accumulate_s": median(accumulate, small[:1], _SMALL),
        "get_bytes_per_s": BULK_BYTES / median(get, bulk, _BULK),
        "accumulate_bytes_per_s": BULK_BYTES / median(accumulate, bulk, _BULK),
    }
    copies = []
    for _ in range(_BULK + 1):
        begun_s = time.perf_counter()
        np.copyto(back, bulk)
        copies.append(time.perf_counter() - begun_s)
    costs["memcpy_bytes_per_s"] = BULK_BYTES / float(np.median(copies[1:]))
    for name, call in (("asleep_get_s", get), ("asleep_accumulate_s", accumulate)):
        comm.send(True, target, tag=_TAG)
        time.sleep(_ASLEEP_AFTER_S)
        costs[name] = call(megabyte)
        comm.recv(source=target, tag=_TAG)
    comm.send(False, target, tag=_TAG)
    return costs


def _target(comm, target: int) -> None:
    if comm.rank == target:
        while comm.recv(source=0, tag=_TAG):
            time.sleep(SLEEP_S + _ASLEEP_AFTER_S)
            comm.send(None, 0, tag=_TAG)


def _seconds(begin) -> float:
    begun_s = time.perf_counter()
    transfer = begin()
    while not transfer.done():
        pass
    return time.perf_counter() - begun_s


def _tear(comm, target: int) -> dict[str, int]:
    """Read publications of `target` while it writes new ones as fast as it can."""
    window = PublicationWindow(comm, _TEAR_PARAMS, np.float32, _TEAR_SLOTS)
    counts = {"n_reads": 0, "n_dropped": 0, "n_torn": 0}
    comm.Barrier()
    end_s = time.perf_counter() + _TEAR_S
    if comm.rank == target:
        version = 0
        while time.perf_counter() < end_s:
            version += 1
            window.set_word(Word.VERSION, version)
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
