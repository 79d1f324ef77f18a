"""Measure the throughput of the exchanges and the bandwidth of one-sided reads, as ratios within one run.

    mpiexec -n 2 python -m mpi4py -m jobs.benchmarks.exchange results/exchange-NAME

writes ``results/exchange-NAME.json`` (every sample) and ``.md`` (medians and their ratios). What is timed is
`hpc_dasgd.train` itself, log files included, on MLPs 784-H-H-10 in float32 with batches of 64. All variants take turns,
so that a slow moment of a shared machine affects all alike. PyTorch DDP (gloo) is one of them if PyTorch is installed
(extra ``bench``). Use one core per rank.
"""

import tempfile
import time
from contextlib import nullcontext
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from statistics import median
from unittest import mock

import h5py
import numpy as np

import hpc_dasgd
from hpc_dasgd.runtime import mpi
from hpc_dasgd.storage.log_writer import RankLog
from hpc_dasgd.window.publication import PublicationWindow
from hpc_dasgd.window.slots import PublicationLayout
from jobs.benchmarks.common import argument_parser, describe_machine, sample_in_turns, table, write_outcome

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
    parser = argument_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one sample (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="samples of each variant (default %(default)s)")
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 512, 1024], metavar="H")
    options = parser.parse_args()
    comm = mpi.comm_world()
    found = {"read_gb_per_s": read_bandwidth(comm), "gradients_per_s": {}}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(comm.bcast(folder, root=0))
        if comm.rank == 0:
            write_data(folder / "data.h5")
        comm.Barrier()
        for hidden in options.hidden:
            for delay_ms in (0, STRAGGLER_MS):
                case = f"H = {hidden}" + (f", one rank {delay_ms} ms slower" if delay_ms else "")
                found["gradients_per_s"][case] = throughput(comm, folder, hidden, delay_ms, options)
    if comm.rank == 0:
        machine = {"n_ranks": comm.size, "mpi": mpi.library_version()}
        machine |= describe_machine("numpy", "hpc_dasgd", "torch")
        found |= {
            "job": "jobs/benchmarks/exchange.py",
            "options": vars(options) | {"output": None},
            "machine": machine,
        }
        lines = text(found)
        write_outcome(options.output, found, lines)
        print("\n".join(lines))


def read_bandwidth(comm) -> dict[str, list[float]]:
    """Return GB/s of one-sided reads of a neighbour's payload, and of a copy of the same size, in turns on rank 0.

    Collective over `comm`.
    """
    n_params = READ_BYTES // 4
    window = PublicationWindow(comm, PublicationLayout(n_params, np.float32, n_slots=2))
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


def throughput(comm, folder: Path, hidden: int, delay_ms: int, options) -> dict[str, list[float]]:
    """Return gradients per second of all ranks together: the samples of each variant. Collective over `comm`."""
    data, numbers = folder / "data.h5", count()

    def sample(exchange, log):
        with log:
            run = folder / f"{hidden}-{delay_ms}-{next(numbers)}"
            return train_rate(comm, run, settings(data, hidden, exchange, delay_ms, options.seconds))

    variants = {name: partial(sample, exchange, nullcontext()) for name, exchange in VARIANTS.items()}
    no_rows = mock.patch.object(RankLog, "append", lambda *_: None)
    variants[UNLOGGED] = partial(sample, VARIANTS["read snapshot"], no_rows)
    measure_ddp = make_ddp(comm, data, hidden)
    if measure_ddp is not None:
        variants[DDP] = partial(measure_ddp, delay_ms / 1e3 if comm.rank == 0 else 0.0, options.seconds)
    return sample_in_turns(variants, options.repeats, n_warm_up=1)


def settings(data: Path, hidden: int, exchange: dict, delay_ms: int, seconds: float) -> dict:
    return {
        "data": {"path": str(data), "batch_size": BATCH_SIZE},
        "objective": {"kind": "mlp", "hidden": [hidden, hidden]},
        "optimizer": {"stepsize": STEPSIZE},
        "exchange": exchange,
        "budget": {"seconds": seconds},
        "log": {"evaluate_every_s": 1e6},
        "straggler": {"ranks": [0], "delay_ms": float(delay_ms)},
    }


def train_rate(comm, run: Path, config: dict) -> float:
    """Train once; return the gradients per second of all ranks. Collective over `comm`."""
    result = hpc_dasgd.train(config, comm=comm, run=run, progress=False)
    return result.gradients / max(comm.allgather(result.seconds))


def make_ddp(comm, data: Path, hidden: int):
    """Return a function that measures PyTorch DDP; None if PyTorch is not installed.

    The function takes ``delay_s`` and ``seconds`` and returns gradients per second. Both are collective over `comm`.
    """
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(1)
    train_step = make_ddp_step(comm, data, hidden)

    def time_steps(n_steps, delay_s):
        comm.Barrier()
        begun_s = time.perf_counter()
        for _ in range(n_steps):
            train_step(delay_s)
        return max(comm.allgather(time.perf_counter() - begun_s))

    def measure(delay_s, seconds):
        step_s = time_steps(8, delay_s) / 8  # all ranks must make the same number of steps
        n_steps = max(8, round(seconds / step_s))
        return comm.size * n_steps / time_steps(n_steps, delay_s)

    return measure


def make_ddp_step(comm, data: Path, hidden: int):
    """Return a function that makes one synchronous step of SGD with PyTorch DDP, delayed by ``delay_s``."""
    import torch
    import torch.distributed as dist
    from torch import nn

    if not dist.is_initialized():
        store = comm.bcast(tempfile.mktemp(), root=0)
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=comm.rank, world_size=comm.size)
    with h5py.File(data) as file:
        x, y = torch.from_numpy(file["train/x"][:]), torch.from_numpy(file["train/y"][:].astype(np.int64))
    sizes = [N_FEATURES, hidden, hidden, N_CLASSES]
    layers = [layer for sides in pairwise(sizes) for layer in (nn.Linear(*sides), nn.ReLU())]
    model = nn.parallel.DistributedDataParallel(nn.Sequential(*layers[:-1]))
    cross_entropy = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=STEPSIZE)

    def train_step(delay_s):
        rows = torch.randint(N_ROWS, (BATCH_SIZE,))
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(model(x[rows]), y[rows]).backward()
        if delay_s:
            time.sleep(delay_s)
        optimizer.step()

    return train_step


def write_data(path: Path) -> None:
    """Write a data set of random images and classes."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for split, n_rows in (("train", N_ROWS), ("test", 64)):
            file[f"{split}/x"] = rng.standard_normal((n_rows, N_FEATURES), dtype=np.float32)
            file[f"{split}/y"] = rng.integers(N_CLASSES, size=n_rows)
        file.attrs["classes"] = N_CLASSES


def text(found: dict) -> list[str]:
    """Return the lines of the Markdown page: medians, and their ratios to those of the baselines."""
    read = {name: median(samples) for name, samples in found["read_gb_per_s"].items()}
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
        medians = {name: median(values) for name, values in samples.items()}
        baselines = [name for name in ("none", "allreduce", DDP) if name in medians]
        rows = [
            [name, f"{rate:.0f}", *(f"{rate / medians[baseline]:.2f}" for baseline in baselines)]
            for name, rate in medians.items()
        ]
        headings = ["", "gradients/s", *(f"/ {baseline}" for baseline in baselines)]
        lines += ["", f"## {case}", "", *table(headings, rows)]
        pairs = zip(samples["read snapshot"], samples[UNLOGGED], strict=True)
        cost = median(1 - logged / unlogged for logged, unlogged in pairs)
        lines += ["", f"Logging costs {100 * cost:.1f} % of the throughput of `read snapshot`."]
    return lines


if __name__ == "__main__":
    main()
