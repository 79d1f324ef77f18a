"""Discrete-event simulation of processes that share the cores of their nodes in time slices."""

import heapq
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import TypeAlias

SLICE_S = 4e-3  # time slice of a process; Linux schedules at timer ticks, usually 250 per second
_ROUNDING_S = 1e-12

Activity: TypeAlias = tuple[float, bool]
"""Next activity of a process: its duration in s, and whether it needs a core."""

Event: TypeAlias = tuple[float, int]
"""A simulated time in s, and the process that has an event at that time."""


def share_cores(
    processes: Sequence[Iterator[Activity]], nodes: Sequence[int], n_cores: int, slice_s: float = SLICE_S
) -> Iterator[float]:
    """Advance simulated time from event to event, without end; yield the time, in s, after each event.

    If more processes of a node need a core than it has, each runs for one time slice and then joins the end of the
    queue. A process that wakes up joins the front of the queue. The running process whose time slice is the oldest then
    gives up its core at its next event.

    Parameters
    ----------
    processes : sequence of iterators of Activity
        The activities of each process. The first one is the time until the process starts, without a core. Whatever
        the iterator does between two items happens at one moment of simulated time.
    nodes : sequence of int
        Node of each process.
    n_cores : int
        Number of cores of each node.
    slice_s : float, s
        Time slice.
    """
    counts = Counter(nodes)
    crowded = {node: _CrowdedNode(n_cores, slice_s) for node, count in counts.items() if count > n_cores}
    remaining_s = [0.0] * len(nodes)  # of the present activity of each process
    is_asleep = [True] * len(nodes)
    events: list[Event] = [(next(activities)[0], process) for process, activities in enumerate(processes)]
    heapq.heapify(events)
    while True:
        now_s, process = events[0]
        node = crowded.get(nodes[process])
        if node is None:
            heapq.heapreplace(events, (now_s + next(processes[process])[0], process))
            yield now_s
            continue
        heapq.heappop(events)
        if is_asleep[process]:
            is_asleep[process] = False
            if not node.wake(process, now_s):
                continue
        if not remaining_s[process]:
            seconds, needs_core = next(processes[process])
            yield now_s
            if not needs_core:
                is_asleep[process] = True
                node.release_core(process, now_s, events)
                heapq.heappush(events, (now_s + seconds, process))
                continue
            remaining_s[process] = seconds
        if not node.renew_slice(process, now_s, events):
            continue
        step_s = min(remaining_s[process], node.slice_ends_s[process] - now_s)
        remaining_s[process] -= step_s
        heapq.heappush(events, (now_s + step_s, process))


class _CrowdedNode:
    """Scheduler of a node with more processes than cores.

    Attributes
    ----------
    slice_ends_s : dict of int to float, s
        End of the time slice of each running process.
    """

    def __init__(self, n_cores: int, slice_s: float) -> None:
        self._n_free, self._slice_s = n_cores, slice_s
        self._queue: deque[int] = deque()
        self.slice_ends_s: dict[int, float] = {}

    def wake(self, process: int, now_s: float) -> bool:
        """Give a process a core and return True; if all cores are in use, queue it in front and return False."""
        if not self._n_free:
            oldest = min(self.slice_ends_s, key=self.slice_ends_s.__getitem__)
            self.slice_ends_s[oldest] = min(now_s, self.slice_ends_s[oldest])
            self._queue.appendleft(process)
            return False
        self._n_free -= 1
        self.slice_ends_s[process] = now_s + self._slice_s
        return True

    def renew_slice(self, process: int, now_s: float, events: list[Event]) -> bool:
        """Return True if a process keeps its core; if its slice ended and others wait, queue it and return False."""
        if now_s >= self.slice_ends_s[process] - _ROUNDING_S:
            if self._queue:
                self._queue.append(process)
                self.release_core(process, now_s, events)
                return False
            self.slice_ends_s[process] = now_s + self._slice_s
        return True

    def release_core(self, process: int, now_s: float, events: list[Event]) -> None:
        """Take the core from a process; the first process of the queue continues on it."""
        del self.slice_ends_s[process]
        if self._queue:
            other = self._queue.popleft()
            self.slice_ends_s[other] = now_s + self._slice_s
            heapq.heappush(events, (now_s, other))
        else:
            self._n_free += 1
