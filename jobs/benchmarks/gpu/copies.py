"""Measure the bandwidth of copies between a window's memory and the device, compared with page-locked memory.

    mpiexec -n 2 python -m mpi4py -m jobs.benchmarks.gpu.copies OUTPUT.json --device gpu

writes one row for each size and direction, measured by rank 0 alone. The window belongs to two ranks, because memory
that ranks share is allocated differently from that of a single rank. Part of ``jobs/benchmarks/gpu/benchmark.py``.
"""

from functools import partial

import numpy as np

from hpc_dasgd.arrays import devices
from hpc_dasgd.runtime import mpi
from hpc_dasgd.window.memory import WindowMemory
from jobs.benchmarks.gpu import rounds

SIZES = (80_000_000, 320_000_000)
N_ROUNDS, ROUND_S = 9, 0.1


def main():
    options = rounds.arguments(__doc__).parse_args()
    comm, rows = mpi.comm_world(), []
    for n_bytes in SIZES[:1] if options.small else SIZES:
        window = WindowMemory(comm, n_bytes)
        if comm.rank == 0:
            rows += compare(devices.choose(options.device), window.memory)
            rounds.write_rows(options.output, rows)
        comm.Barrier()
        window.free()


def compare(device, memory: np.ndarray) -> list[dict]:
    """Return the rows of the table for the size of `memory`, which belongs to a window."""
    registered = device.register(memory)
    pattern = np.random.default_rng(0).random(memory.nbytes // 4, np.float32)
    on_device = device.to_device(pattern)
    host = {"window": memory.view(np.float32), "limit": device.host_zeros(memory.nbytes).view(np.float32)}
    steps, wrong = {}, {"download": False, "upload": False}
    for kind, values in host.items():
        steps[kind, "download"] = partial(copy, device, device.download, on_device, values)
        steps[kind, "upload"] = partial(copy, device, device.upload, values, on_device)
        steps[kind, "download"]()
        wrong["download"] |= not np.array_equal(values, pattern)
        values[:] = pattern[::-1]
        steps[kind, "upload"]()
        wrong["upload"] |= not np.array_equal(device.to_host(on_device), pattern[::-1])
        on_device = device.to_device(pattern)
    samples = rounds.time_in_turns(steps, lambda: None, ROUND_S, N_ROUNDS)
    if registered:
        device.unregister(memory)
    rows = []
    for direction, text in (("download", "device to window"), ("upload", "window to device")):
        row = {"direction": text, "bytes": memory.nbytes, "page_locked": registered}
        row |= {kind: samples[kind, direction] for kind in host}
        rows.append(row | ({"failed": "the copy differs from the original"} if wrong[direction] else {}))
    return rows


def copy(device, begin, source, out) -> None:
    """Copy `source` to `out` and wait until the copy is complete."""
    transfer = begin(source, out, after=device.record_event())
    while not transfer.done():
        pass


if __name__ == "__main__":
    main()
