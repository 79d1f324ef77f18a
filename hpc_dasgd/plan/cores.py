"""Processes that take turns on the cores of their nodes, as events in simulated time."""

import heapq
from collections import Counter, deque
from collections.abc import Iterator, Sequence

SLICE_S = 4e-3  # of a core: Linux looks who is next at its ticks, mostly 250 a second
_ROUNDING_S = 1e-12


def turns(
    lives: Sequence[Iterator[tuple[float, bool]]], nodes: Sequence[int], n_cores: int, slice_s: float = SLICE_S
) -> Iterator[float]:
    """Let simulated time go on from event to event; yields the time, s, behind each.

    Where more processes of a node want a core than it has, each runs for a slice and then queues behind the others.
    One that slept comes first, and ends the oldest slice as soon as that one's process has anything to say.

    Parameters
    ----------
    lives : sequence of iterators
        Of each process: how long it does what comes next, s, and whether it needs a core for that. The first item is
        when it starts, without a core. What is done between two items happens at one moment.
    nodes : sequence of int
        Of each process.
    n_cores : int
        Of each node.
    slice_s : float, s
    """
    crowded = {node for node, count in Counter(nodes).items() if count > n_cores}
    n_free = dict.fromkeys(crowded, n_cores)
    waiting = {node: deque() for node in crowded}
    running = {node: {} for node in crowded}  # process -> end of its slice
    work_s = [0.0] * len(nodes)  # left of what it does now
    asleep = [True] * len(nodes)
    events = [(next(life)[0], process) for process, life in enumerate(lives)]
    heapq.heapify(events)

    def leave_core(node):
        if waiting[node]:
            other = waiting[node].popleft()
            running[node][other] = now_s + slice_s
            heapq.heappush(events, (now_s, other))
        else:
            n_free[node] += 1

    while True:
        now_s, process = events[0]
        node = nodes[process]
        if node not in crowded:
            heapq.heapreplace(events, (now_s + next(lives[process])[0], process))
            yield now_s
            continue
        heapq.heappop(events)
        if asleep[process]:
            asleep[process] = False
            if not n_free[node]:
                oldest = min(running[node], key=running[node].get)
                running[node][oldest] = min(now_s, running[node][oldest])
                waiting[node].appendleft(process)
                continue
            n_free[node] -= 1
            running[node][process] = now_s + slice_s
        if not work_s[process]:
            seconds, needs_core = next(lives[process])
            yield now_s
            if not needs_core:
                asleep[process] = True
                del running[node][process]
                leave_core(node)
                heapq.heappush(events, (now_s + seconds, process))
                continue
            work_s[process] = seconds
        if now_s >= running[node][process] - _ROUNDING_S:
            if waiting[node]:
                del running[node][process]
                waiting[node].append(process)
                leave_core(node)
                continue
            running[node][process] = now_s + slice_s
        step_s = min(work_s[process], running[node][process] - now_s)
        work_s[process] -= step_s
        heapq.heappush(events, (now_s + step_s, process))
