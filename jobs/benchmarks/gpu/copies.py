"""Bandwidth of copies between the memory of a window and the device, against that of page-locked memory.

    mpiexec -n 2 python -m mpi4py -m jobs.benchmarks.gpu.copies OUTPUT.json --device gpu

writes one row for each size and direction, measured by rank 0 alone. The window is of two ranks, since memory that
ranks share is not of the kind that a rank alone gets. Part of ``jobs/benchmarks/gpu/benchmark.py``.
"""

from functools import partial

from hpc_dasgd.runtime import launcher, mpi

launcher.set_environment_defaults()

import numpy as np  # noqa: E402, behind the variables that BLAS reads

from hpc_dasgd.arrays import devices  # noqa: E402
from hpc_dasgd.window.memory import WindowMemory  # noqa: E402
from jobs.benchmarks.gpu import rounds  # noqa: E402

SIZES = (80_000_000, 320_000_000)
N_ROUNDS, ROUND_S = 9, 0.1


def main():
    options = rounds.arguments(__doc__).parse_args()
    comm, rows = mpi.comm_world(), []
    for n_bytes in SIZES[:1] if options.small else SIZES:
        window = WindowMemory(comm, n_bytes)
        if comm.rank == 0:
            rows += compare(devices.choose(options.device), window.memory)
            rounds.write(options.output, rows)
        comm.Barrier()
        window.free()


def compare(device, memory: np.ndarray) -> list[dict]:
    """Rows of the table for as many bytes as `memory`, of a window, has."""
    registered = device.register(memory)
    pattern = np.random.default_rng(0).random(memory.nbytes // 4, np.float32)
    there = device.to_device(pattern)
    host = {"window": memory.view(np.float32), "limit": device.host_zeros(memory.nbytes).view(np.float32)}
    steps, wrong = {}, {"download": False, "upload": False}
    for place, values in host.items():
        steps[place, "download"] = partial(copy, device, device.download, there, values)
        steps[place, "upload"] = partial(copy, device, device.upload, values, there)
        steps[place, "download"]()
        wrong["download"] |= not np.array_equal(values, pattern)
        values[:] = pattern[::-1]
        steps[place, "upload"]()
        wrong["upload"] |= not np.array_equal(device.to_host(there), pattern[::-1])
        there = device.to_device(pattern)
    samples = rounds.alternate(steps, lambda: None, ROUND_S, N_ROUNDS)
    if registered:
        device.unregister(memory)
    rows = []
    for direction, text in (("download", "device to window"), ("upload", "window to device")):
        row = {"direction": text, "bytes": memory.nbytes, "page_locked": registered}
        row |= {place: samples[place, direction] for place in host}
        rows.append(row | ({"failed": "what was copied is not what arrived"} if wrong[direction] else {}))
    return rows


def copy(device, begin, source, out) -> None:
    """Copy, and wait until that is done."""
    transfer = begin(source, out, after=device.record_event())
    while not transfer.done():
        pass


if __name__ == "__main__":
    main()
