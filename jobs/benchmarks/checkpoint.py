"""Measure what checkpoints cost: gradients per second with and without them, and how long training waits for a copy.

    mpiexec -n 2 python -m mpi4py -m jobs.benchmarks.checkpoint results/checkpoint

writes ``results/checkpoint.json`` and ``.md``. Each round trains without checkpoints, with one per second, and with one
per second for which training waits until it is on the disk. The longest wait of any rank is compared with ``np.copyto``
of the same number of bytes, measured in the same processes.
"""

import tempfile
import time
from contextlib import nullcontext
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from unittest import mock

import numpy as np

import hpc_dasgd
from hpc_dasgd.runtime import mpi
from hpc_dasgd.storage.checkpoint_writer import CheckpointWriter
from jobs.benchmarks.common import (
    argument_parser,
    describe_machine,
    median_of,
    sample_in_turns,
    table,
    write_outcome,
)

HIDDEN = [1024, 1024, 1024]
NONE, BESIDE, WAITED_FOR = "none", "beside", "waited for"
EVERY_S = {NONE: 1e9, BESIDE: 1.0, WAITED_FOR: 1.0}
N_ARRAYS = {"sgd": 1, "adam": 3}  # number of arrays of the size of the parameters in a checkpoint
N_COPIES = 9


def main():
    parser = argument_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="of one run (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each kind (default %(default)s)")
    options = parser.parse_args()
    comm, numbers = mpi.comm_world(), count()
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
        folder = Path(comm.bcast(folder, root=0))
        runs = {
            (optimizer, kind): partial(train, comm, kind, optimizer, options.seconds, folder, numbers)
            for optimizer in N_ARRAYS
            for kind in EVERY_S
        }
        samples = sample_in_turns(runs, options.repeats)
        comm.Barrier()
    n_params = samples["sgd", NONE][0]["n_params"]
    # All ranks copy at the same time, as they may in a run.
    copies_s = {optimizer: max(comm.allgather(copy_s(4 * n_params * n))) for optimizer, n in N_ARRAYS.items()}
    if comm.rank == 0:
        about = {"n_ranks": comm.size, "rounds": options.repeats, "seconds": options.seconds, "n_params": n_params}
        rows = summarize(samples, copies_s, n_params)
        write_outcome(options.output, {"about": about, "rows": rows}, text(about, rows))


def settings(kind: str, optimizer: str, seconds: float) -> dict:
    return {
        "data": {"path": "digits", "batch_size": 64},
        "objective": {"kind": "mlp", "hidden": HIDDEN},
        "optimizer": {"kind": optimizer, "stepsize": 1e-4},
        "budget": {"seconds": seconds},
        "log": {"evaluate_every_s": 1e9},
        "checkpoint": {"every_s": EVERY_S[kind]},
    }


def waiting_for_files():
    """Return a context manager in which training waits for each checkpoint until its file is written."""
    begin = CheckpointWriter.begin

    def begin_and_finish(writer, *arguments):
        begin(writer, *arguments)
        begun_s = time.perf_counter()
        writer.finish()
        writer.longest_stall_s = max(writer.longest_stall_s, time.perf_counter() - begun_s)

    return mock.patch.object(CheckpointWriter, "begin", begin_and_finish)


def train(comm, kind: str, optimizer: str, seconds: float, folder: Path, numbers) -> dict:
    """Train once; return the rate and the longest stall of any rank. Collective over `comm`."""
    with waiting_for_files() if kind == WAITED_FOR else nullcontext():
        result = hpc_dasgd.train(
            settings(kind, optimizer, seconds), comm=comm, run=folder / f"run-{next(numbers)}", progress=False
        )
    row = None
    if comm.rank == 0:
        run = hpc_dasgd.open_run(result.run)
        row = {
            # Up to the last gradient: the checkpoint that is written after the budget is spent does not count.
            "gradients_per_s": len(run.gradients) / run.gradients["t_end_s"].max(),
            "stall_s": run.attributes["checkpoint_stall_s"],
            "n_params": result.parameters.size,
        }
    return comm.bcast(row, root=0)


def copy_s(n_bytes: int) -> float:
    """Return the median time, in s, of a copy between two arrays that are not in cache."""
    source, target = np.ones(n_bytes // 4, np.float32), np.zeros(n_bytes // 4, np.float32)
    times = []
    for _ in range(N_COPIES):
        begun_s = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - begun_s)
    return median(times)


def summarize(samples: dict[tuple[str, str], list[dict]], copies_s: dict[str, float], n_params: int) -> list[dict]:
    """Return a row of medians for each optimizer and kind of checkpoints."""
    return [
        {
            "optimizer": optimizer,
            "checkpoints": kind,
            "bytes": 4 * n_params * N_ARRAYS[optimizer],
            "gradients_per_s": median_of(found, "gradients_per_s"),
            "of_none": median_of(found, "gradients_per_s") / median_of(samples[optimizer, NONE], "gradients_per_s"),
            "longest_stall_s": median_of(found, "stall_s"),
            "copy_s": copies_s[optimizer],
        }
        for (optimizer, kind), found in samples.items()
    ]


def text(about: dict, rows: list[dict]) -> list[str]:
    """Return the lines of the Markdown page."""
    cells = [
        [
            row["optimizer"],
            row["checkpoints"],
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['gradients_per_s']:.0f}",
            f"{row['of_none']:.3f}",
            "-" if row["checkpoints"] == NONE else f"{1e3 * row['longest_stall_s']:.1f}",
            f"{1e3 * row['copy_s']:.1f}",
        ]
        for row in rows
    ]
    headings = ["optimizer", "checkpoints", "MB each", "gradients/s", "of none", "longest wait, ms"]
    return [
        "# What checkpoints cost",
        "",
        f"Made by `jobs/benchmarks/checkpoint.py`: {about['n_ranks']} ranks, {describe_machine()['cpu']}, "
        f"{about['n_params']:,} parameters in float32, batches of 64, exchange `read`; one checkpoint per second. "
        f"Medians of {about['rounds']} runs of {about['seconds']:g} s each, taken in turns.",
        "",
        *table([*headings, "copy of as many bytes, ms"], cells),
    ]


if __name__ == "__main__":
    main()
