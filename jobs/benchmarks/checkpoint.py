"""What checkpoints cost: gradients per second with and without, and how long training waits for a copy.

    mpiexec -n 2 python -m mpi4py -m jobs.benchmarks.checkpoint results/checkpoint [SECONDS] [ROUNDS]

Writes OUTPUT.json and OUTPUT.md. Each round trains without checkpoints, with one a second, and with one a second for
which training waits until it is on the disk. The longest wait of any rank is held against ``np.copyto`` of as many
bytes, measured in the same processes.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from hpc_dasgd.runtime import launcher, mpi

launcher.set_environment_defaults()

import numpy as np  # noqa: E402, behind the variables that BLAS reads

import hpc_dasgd  # noqa: E402
from hpc_dasgd.storage.checkpoint_writer import CheckpointWriter  # noqa: E402

HIDDEN = [1024, 1024, 1024]
EVERY_S = {"none": 1e9, "beside": 1.0, "waited for": 1.0}
OPTIMIZERS = ("sgd", "adam")


def settings(kind: str, optimizer: str, seconds: float) -> dict:
    return {
        "data": {"path": "digits", "batch_size": 64},
        "objective": {"kind": "mlp", "hidden": HIDDEN},
        "optimizer": {"kind": optimizer, "stepsize": 1e-4},
        "budget": {"seconds": seconds},
        "log": {"evaluate_every_s": 1e9},
        "checkpoint": {"every_s": EVERY_S[kind]},
    }


class Waiting(CheckpointWriter):
    """Has training wait until the file is written."""

    def begin(self, header, state):
        super().begin(header, state)
        begun_s = time.perf_counter()
        self.finish()
        self.longest_stall_s = max(self.longest_stall_s, time.perf_counter() - begun_s)


def train(comm, kind: str, optimizer: str, seconds: float, folder: Path) -> dict:
    """One run; its rate, and the longest stall of any rank."""
    from hpc_dasgd.training import checkpointing

    checkpointing.Writer = Waiting if kind == "waited for" else CheckpointWriter
    result = hpc_dasgd.train(settings(kind, optimizer, seconds), comm=comm, run=folder, progress=False)
    # The last one, behind the budget, is left out of the rate.
    row = None
    if comm.rank == 0:
        run = hpc_dasgd.open_run(result.run)
        ended_s = run.gradients["t_end_s"].max()
        row = {
            "gradients_per_s": len(run.gradients) / ended_s,
            "stall_s": run.attributes["checkpoint_stall_s"],
            "n_params": result.parameters.size,
        }
    return comm.bcast(row, root=0)


def copy_s(n_bytes: int) -> float:
    """Median time of a copy between two arrays that are not in cache."""
    source, target = np.ones(n_bytes // 4, np.float32), np.zeros(n_bytes // 4, np.float32)
    times = []
    for _ in range(9):
        begun_s = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - begun_s)
    return statistics.median(times)


def median(rows, name):
    return statistics.median(row[name] for row in rows)


def main(output: Path, seconds: float, rounds: int) -> None:
    comm = mpi.comm_world()
    rows = {(optimizer, kind): [] for optimizer in OPTIMIZERS for kind in EVERY_S}
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
        for number in range(rounds):
            for optimizer, kind in rows:
                run = comm.bcast(Path(folder, f"{optimizer}-{kind.replace(' ', '-')}-{number}"), root=0)
                rows[optimizer, kind].append(train(comm, kind, optimizer, seconds, run))
    n_params = rows["sgd", "none"][0]["n_params"]
    # All ranks copy at once, as they may in a run.
    copies = {name: max(comm.allgather(copy_s(4 * n_params * n))) for name, n in (("sgd", 1), ("adam", 3))}
    if comm.rank:
        return
    table = [
        {
            "optimizer": optimizer,
            "checkpoints": kind,
            "bytes": 4 * n_params * {"sgd": 1, "adam": 3}[optimizer],
            "gradients_per_s": median(found, "gradients_per_s"),
            "of_none": median(found, "gradients_per_s") / median(rows[optimizer, "none"], "gradients_per_s"),
            "longest_stall_s": median(found, "stall_s"),
            "copy_s": copies[optimizer],
        }
        for (optimizer, kind), found in rows.items()
    ]
    about = {
        "n_ranks": comm.size,
        "rounds": rounds,
        "seconds": seconds,
        "n_params": n_params,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps({"about": about, "rows": table}, indent=1) + "\n")
    output.with_suffix(".md").write_text(text(about, table))


def text(about: dict, table: list[dict]) -> str:
    from hpc_dasgd.runtime import hardware

    lines = [
        "# What checkpoints cost",
        "",
        f"Made by `jobs/benchmarks/checkpoint.py`: {about['n_ranks']} ranks, {hardware.describe_hardware()['cpu']}, "
        f"{about['n_params']:,} parameters in float32, batches of 64, exchange `read`; a checkpoint a second. "
        f"Medians of {about['rounds']} runs of {about['seconds']:g} s each, taken in turn.",
        "",
        "| optimizer | checkpoints | MB each | gradients/s | of none | longest wait, ms | copy of as many bytes, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in table:
        wait = "-" if row["checkpoints"] == "none" else f"{1e3 * row['longest_stall_s']:.1f}"
        lines.append(
            f"| {row['optimizer']} | {row['checkpoints']} | {row['bytes'] / 1e6:.1f} | {row['gradients_per_s']:.0f} | "
            f"{row['of_none']:.3f} | {wait} | {1e3 * row['copy_s']:.1f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(Path(arguments[0]), float((arguments[1:] or [8])[0]), int((arguments[2:] or [5])[0]))
