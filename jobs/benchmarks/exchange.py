"""Throughput of the exchanges, and of a one-sided read, as ratios measured in one run.

    mpiexec -n 2 python -m mpi4py -m jobs.benchmarks.exchange results/exchange-NAME

writes ``results/exchange-NAME.json`` (every sample) and ``.md`` (medians and their ratios). Training is
`hpc_dasgd.train` itself, log files included, of MLPs 784-H-H-10 in float32 with batches of 64; all variants take
turns, so that a slow moment of a shared machine hits all alike. PyTorch DDP (gloo) takes part where PyTorch is
installed (extra ``bench``). One core per rank, please.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from hpc_dasgd.runtime import launcher, mpi

launcher.set_environment_defaults()

import h5py  # noqa: E402
import numpy as np  # noqa: E402

import hpc_dasgd  # noqa: E402
from hpc_dasgd.storage import log_writer  # noqa: E402
from hpc_dasgd.window.publication import PublicationWindow  # noqa: E402

N_FEATURES, N_CLASSES, BATCH_SIZE, N_ROWS = 784, 10, 64, 4096
STEPSIZE = 0.01
STRAGGLER_MS = 20
READ_BYTES = 32 << 20
READS = 15
VARIANTS = {
    "none": {"kind": "none"},
    "allreduce": {"kind": "allreduce"},
    "read snapshot": {"kind": "read", "consistency": "snapshot"},
    "read elementwise": {"kind": "read", "consistency": "elementwise"},
    "read tree": {"kind": "read", "topology": "tree"},
    "accumulate": {"kind": "accumulate"},
    "gossip average": {"kind": "gossip", "topology": "ring"},
    "gossip push-sum": {"kind": "gossip", "topology": "exponential", "mixing": "push-sum"},
    "server": {"kind": "server"},
}
UNLOGGED = "read snapshot, no log"
DDP = "PyTorch DDP"


def main():
    options = arguments()
    comm = mpi.comm_world()
    found = {"read_gb_per_s": read_bandwidth(comm), "gradients_per_s": {}}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(comm.bcast(folder, root=0))
        data = folder / "data.h5"
        if comm.rank == 0:
            write_data(data)
        comm.Barrier()
        for hidden in options.hidden:
            for delay_ms in (0, STRAGGLER_MS):
                key = f"H = {hidden}" + (f", one rank {delay_ms} ms slower" if delay_ms else "")
                found["gradients_per_s"][key] = throughput(comm, folder, data, hidden, delay_ms, options)
    if comm.rank == 0:
        found |= {
            "job": "jobs/benchmarks/exchange.py",
            "options": vars(options) | {"output": None},
            "machine": machine(comm),
        }
        options.output.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
        options.output.with_suffix(".md").write_text(table(found))
        print(table(found))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one sample (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="samples of each variant (default %(default)s)")
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 512, 1024], metavar="H")
    return parser.parse_args()


def read_bandwidth(comm):
    """GB/s of one-sided reads of a neighbour's payload, and of memcpy of as much, in turns on rank 0."""
    n_params = READ_BYTES // 4
    window = PublicationWindow(comm, n_params, np.float32, n_slots=2)
    window.channels[0].begin().payload[:] = comm.rank
    window.channels[0].publish()
    comm.Barrier()
    seconds = {"read": [], "memcpy": []}
    if comm.rank == 0:
        buffer, source, copy = window.buffer(), np.ones(n_params, np.float32), np.zeros(n_params, np.float32)
        for _ in range(READS):
            begun_s = time.perf_counter()
            transfer = window.read_payload(comm.size - 1, 0, 1, buffer)
            while not transfer.done():
                pass
            read_s = time.perf_counter()
            np.copyto(copy, source)
            seconds["read"].append(read_s - begun_s)
            seconds["memcpy"].append(time.perf_counter() - read_s)
        assert np.all(buffer.payload == comm.size - 1)
    comm.Barrier()
    window.free()
    return {name: [READ_BYTES / 1e9 / sample for sample in samples[1:]] for name, samples in seconds.items()}


def throughput(comm, folder, data, hidden, delay_ms, options):
    """Gradients per second of all ranks, `repeats` samples of each variant, the variants in turns."""
    samples = {}
    ddp = make_ddp(comm, data, hidden)
    for repeat in range(options.repeats + 1):
        for name, exchange in (VARIANTS | {UNLOGGED: VARIANTS["read snapshot"]}).items():
            logged = name != UNLOGGED
            run = folder / f"{hidden}-{delay_ms}-{name}-{repeat}"
            rate = train_rate(comm, run, data, hidden, exchange, delay_ms, options.seconds, logged)
            samples.setdefault(name, []).append(rate)
        if ddp is not None:
            samples.setdefault(DDP, []).append(ddp(delay_ms / 1e3 if comm.rank == 0 else 0.0, options.seconds))
    return {name: rates[1:] for name, rates in samples.items()}  # the first turn warms up


def train_rate(comm, run, data, hidden, exchange, delay_ms, seconds, logged):
    config = {
        "data": {"path": str(data), "batch_size": BATCH_SIZE},
        "objective": {"kind": "mlp", "hidden": [hidden, hidden]},
        "optimizer": {"stepsize": STEPSIZE},
        "exchange": exchange,
        "budget": {"seconds": seconds},
        "log": {"evaluate_every_s": 1e6},
        "straggler": {"ranks": [0], "delay_ms": float(delay_ms)},
    }
    kept = log_writer.RankLog
    if not logged:
        log_writer.RankLog = NoLog
    try:
        result = hpc_dasgd.train(config, comm=comm, run=run, progress=False)
    finally:
        log_writer.RankLog = kept
    return result.gradients / max(comm.allgather(result.seconds))


class NoLog(log_writer.RankLog):
    """A rank's log that nothing is written to."""

    def append(self, *_):
        pass


def make_ddp(comm, data, hidden):
    """A function (delay_s, seconds) -> gradients per second of PyTorch DDP; None without PyTorch."""
    try:
        import torch
        import torch.distributed as dist
    except ImportError:
        return None
    torch.set_num_threads(1)
    if not dist.is_initialized():
        store = comm.bcast(tempfile.mktemp(), root=0)
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=comm.rank, world_size=comm.size)
    with h5py.File(data) as file:
        x, y = torch.from_numpy(file["train/x"][:]), torch.from_numpy(file["train/y"][:].astype(np.int64))
    nn = torch.nn
    layers = [
        nn.Linear(N_FEATURES, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, N_CLASSES),
    ]
    model = nn.parallel.DistributedDataParallel(nn.Sequential(*layers))
    loss_of = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=STEPSIZE)

    def stretch(n_steps, delay_s):
        comm.Barrier()
        begun_s = time.perf_counter()
        for _ in range(n_steps):
            rows = torch.randint(N_ROWS, (BATCH_SIZE,))
            optimizer.zero_grad(set_to_none=True)
            loss_of(model(x[rows]), y[rows]).backward()
            if delay_s:
                time.sleep(delay_s)
            optimizer.step()
        return max(comm.allgather(time.perf_counter() - begun_s))

    def measure(delay_s, seconds):
        step_s = stretch(8, delay_s) / 8  # all ranks must make the same number of steps
        n_steps = max(8, round(seconds / step_s))
        return comm.size * n_steps / stretch(n_steps, delay_s)

    return measure


def write_data(path):
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for split, n_rows in (("train", N_ROWS), ("test", 64)):
            file[f"{split}/x"] = rng.standard_normal((n_rows, N_FEATURES), dtype=np.float32)
            file[f"{split}/y"] = rng.integers(N_CLASSES, size=n_rows)
        file.attrs["classes"] = N_CLASSES


def machine(comm):
    from mpi4py import MPI

    cpu = Path("/proc/cpuinfo").read_text().split("model name\t: ")[1].split("\n")[0]
    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    versions = {
        "numpy": np.__version__,
        "python": platform.python_version(),
        "hpc_dasgd": hpc_dasgd.__version__,
    }
    try:
        from torch import __version__ as torch_version

        versions["torch"] = str(torch_version)
    except ImportError:
        pass
    return {
        "cpu": f"{cpu}, {os.cpu_count()} cores, {pages * page_bytes / 2**30:.0f} GiB",
        "kernel": platform.release(),
        "n_ranks": comm.size,
        "mpi": " ".join(MPI.Get_library_version().split("\n")[0].strip("\0").split()),
        "versions": versions,
        "measured": datetime.now(UTC).isoformat(timespec="minutes"),
    }


def table(found):
    """Medians, and their ratios to what they are held against, as Markdown."""
    read = {name: statistics.median(samples) for name, samples in found["read_gb_per_s"].items()}
    lines = [
        "# Exchanges compared",
        "",
        f"Made by `{found['job']}`: medians of samples taken in turns; every sample is in the `.json` beside this.",
        "",
        *(f"- {name}: {value}" for name, value in found["machine"].items()),
        "",
        f"One-sided read of {READ_BYTES >> 20} MiB: {read['read']:.2f} GB/s, memcpy {read['memcpy']:.2f} GB/s,"
        f" ratio {read['read'] / read['memcpy']:.2f}",
    ]
    for case, samples in found["gradients_per_s"].items():
        median = {name: statistics.median(values) for name, values in samples.items()}
        others = [name for name in ("none", "allreduce", DDP) if name in median]
        lines += ["", f"## {case}", "", f"| | gradients/s | {' | '.join(f'/ {other}' for other in others)} |"]
        lines += ["|---" * (2 + len(others)) + "|"]
        for name, rate in median.items():
            lines.append(f"| {name} | {rate:.0f} | {' | '.join(f'{rate / median[other]:.2f}' for other in others)} |")
        logging = [
            1 - logged / not_logged
            for logged, not_logged in zip(samples["read snapshot"], samples[UNLOGGED], strict=True)
        ]
        lines += [
            "",
            f"Logging costs {100 * statistics.median(logging):.1f} % of the throughput of `read snapshot`.",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
