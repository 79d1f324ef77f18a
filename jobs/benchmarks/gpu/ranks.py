"""Train with several ranks on one device, with exchange `read` and without an exchange, in turns.

    mpiexec -n 2 python -m mpi4py -m jobs.benchmarks.gpu.ranks OUTPUT.json --device gpu

writes one row: gradients per second of both by round, staleness, and the time of an exchange that does not overlap with
computation. What is timed is `hpc_dasgd.train` itself, log files included, repeatedly in the same processes. Part of
``jobs/benchmarks/gpu/benchmark.py``.
"""

import math
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np

import hpc_dasgd
from hpc_dasgd.arrays import devices
from hpc_dasgd.data.dataset import Sampler
from hpc_dasgd.runtime import mpi
from hpc_dasgd.window.memory import WindowMemory
from jobs.benchmarks.common import median_of
from jobs.benchmarks.gpu import networks, rounds

KINDS = ("none", "read")
N_ROWS, STEPSIZE = 8192, 0.01
BOUND = 1e-3  # largest relative error of losses and of norms of gradients
DRIFT = 1e-5  # largest absolute error of parameters, whose size is about 0.02
SECONDS, SMALL_SECONDS, N_ROUNDS, N_EXCHANGES = 2.5, 1.0, 3, 9


def main():
    options = rounds.arguments(__doc__).parse_args()
    comm, network = mpi.comm_world(), networks.network("mlp", options.small)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(comm.bcast(folder, root=0))
        if comm.rank == 0:
            networks.write_data(folder / "data.h5", network.image, N_ROWS)
        comm.Barrier()
        for row in compare(comm, folder, network, options):
            if comm.rank == 0:
                rounds.write_rows(options.output, [row])
        comm.Barrier()


def compare(comm, folder: Path, network, options) -> Iterator[dict]:
    """Yield the row of the table after each round. Collective over `comm`."""
    config = {
        "data": {"path": str(folder / "data.h5"), "batch_size": network.batch_size},
        "objective": {"kind": network.kind, **network.options},
        "optimizer": {"stepsize": STEPSIZE},
        "budget": {"seconds": SMALL_SECONDS if options.small else SECONDS},
        "device": {"kind": options.device},
        "log": {"evaluate_every_s": 1e9},
        "checkpoint": {"every_s": 1e9},
    }
    first = {kind: train(comm, config, kind, folder / kind, network) for kind in KINDS}  # warm-up
    row = {"n_ranks": comm.size} | {name: first["none"][name] for name in ("n_params", "mpi", "device")}
    times = comm.allgather(exchange_s(comm, devices.choose(options.device, comm.rank), row["n_params"]))
    row["exchange_s"] = sum(times) / len(times)
    failed, read = [found["failed"] for found in first.values()], []
    for number in range(N_ROUNDS):
        for kind in KINDS:
            found = train(comm, config, kind, folder / f"{kind}-{number}")
            row.setdefault(kind, []).append(found["gradients_per_s"])
            failed.append(found["failed"])
        read.append(found)
        row |= {name: median_of(read, name) for name in ("S_avg", "S_max", "reads")}
        row |= {"failed": next(filter(None, failed))} if any(failed) else {}
        yield row


def train(comm, config: dict, kind: str, run: Path, network=None) -> dict:
    """Train once; return rate, staleness and models read per gradient. Collective over `comm`.

    With a `network` and without exchange the first gradients are compared with those in float64.
    """
    result = hpc_dasgd.train(config | {"exchange": {"kind": kind}}, comm=comm, run=run, progress=False)
    comm.Barrier()  # until the files of all ranks are closed
    opened = hpc_dasgd.open_run(run)
    wrong = wrong_first_gradient(comm.rank, opened, network) if network and kind == "none" else ""
    # The first run, which compiles kernels, may end after few gradients.
    lower = math.isfinite(result.loss) and (network is not None or result.loss < opened.gradients["loss"][0])
    if not lower:
        wrong = wrong or f"training does not lower the loss: it ends at {result.loss:.3g}"
    if result.drift > DRIFT:  # False if it is nan, because replicas lacked updates at the end
        wrong = wrong or f"replicas are not the sum of all updates: off by {result.drift:.1e}"
    found = {
        # Up to the last gradient: the work after the budget is spent does not count.
        "gradients_per_s": len(opened.gradients) / opened.gradients["t_end_s"].max(),
        "n_params": opened.x0.size,
        "mpi": opened.attributes["mpi_library"],
        "device": ", ".join(sorted(set(opened.attributes["devices"]))),
        "reads": sum(opened.attributes["transferred_bytes"]) / opened.x0.nbytes / len(opened.gradients),
        "failed": next(filter(None, comm.allgather(wrong)), ""),
    }
    if kind == "read":
        staleness = opened.staleness().as_dict()
        found |= {name: staleness[name] for name in ("S_avg", "S_max")}
    comm.Barrier()
    if comm.rank == 0:
        shutil.rmtree(run)  # many runs would fill the disk
    return found


def wrong_first_gradient(rank: int, run, network) -> str:
    """Return an error text if this rank logged a wrong loss or norm of its first gradient, else an empty string."""
    objective, data = run.objective()
    batch = Sampler(run.config.seed, rank, data.train, network.batch_size).batch(0)
    loss, gradient = networks.float64_gradient(objective, run.x0, batch)
    logged = run.gradients[run.rows(rank)][0]
    for name, expected in (("loss", loss), ("gradient_norm", np.linalg.norm(gradient))):
        if not abs(logged[name] - expected) <= BOUND * abs(expected):
            return f"the first {name} of rank {rank} is {logged[name]:.6g}, and {expected:.6g} in float64"
    return ""


def exchange_s(comm, device, n_params: int) -> float:
    """Return the median time, in s, of a publication and a read of each other rank, one after another.

    Collective over `comm`; all ranks do it at the same time.
    """
    window = WindowMemory(comm, 4 * n_params)
    registered = device.register(window.memory)
    buffer = device.host_zeros(4 * n_params)
    published, seen = device.zeros(n_params, np.float32), device.zeros(n_params, np.float32)
    others = [rank for rank in range(comm.size) if rank != comm.rank]
    times = []
    for _ in range(1 + N_EXCHANGES):
        comm.Barrier()
        begun_s = time.perf_counter()
        wait(device.download(published, window.memory.view(np.float32), after=device.record_event()))
        for other in others:
            wait(window.read(other, 0, buffer))
            wait(device.upload(buffer.view(np.float32), seen, after=device.record_event()))
        times.append(time.perf_counter() - begun_s)
    comm.Barrier()
    if registered:
        device.unregister(window.memory)
    window.free()
    return median(times[1:])


def wait(transfer) -> None:
    while not transfer.done():
        pass


if __name__ == "__main__":
    main()
