"""Train with many more ranks than cores, repeatedly: does a run ever hang, and is it as good as one of few ranks?

    python -m jobs.benchmarks.many_ranks results/many-ranks-NAME

trains ``jobs/digits.toml`` 3 times with 4 ranks, then 20 times with 32, on the complete overlay and on a tree. Writes
``results/many-ranks-NAME.json`` (every run) and ``.md`` after each series. A run that takes longer than `LONGEST_S`
counts as hanging and is ended. The exit status is 1 if any run failed or hung.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hpc_dasgd import open_run
from jobs.benchmarks.common import argument_parser, spread_text, table, write_outcome
from jobs.benchmarks.mpiexec import mpi_library, train_digits

LONGEST_S = 180
FEW_RANKS, N_RUNS_OF_FEW = 4, 3


def main():
    parser = argument_parser(__doc__)
    parser.add_argument("--runs", type=int, default=20, help="of each overlay (default %(default)s)")
    parser.add_argument("--ranks", type=int, default=32, help="(default %(default)s)")
    options = parser.parse_args()
    found, mpi = {}, mpi_library()
    with tempfile.TemporaryDirectory() as folder:
        for topology in ("complete", "tree"):
            for n_ranks, n_runs in ((FEW_RANKS, N_RUNS_OF_FEW), (options.ranks, options.runs)):
                case = f"{topology}, {n_ranks} ranks"
                directories = [Path(folder, f"{len(found)}-{number}") for number in range(n_runs)]
                found[case] = [train(directory, n_ranks, topology) for directory in directories]
                write_outcome(options.output, found, text(found, mpi))
    if any(run["status"] for runs in found.values() for run in runs):
        sys.exit(1)


def train(directory: Path, n_ranks: int, topology: str) -> dict:
    """Train once; return the exit status, the seconds from launch to end, and the results of a run that succeeded."""
    begun_s = time.monotonic()
    try:
        done = train_digits(n_ranks, directory, [f"exchange.topology={topology}"], LONGEST_S)
        status, errors = done.returncode, done.stderr
    except subprocess.TimeoutExpired as late:
        status, errors = "hung", str(late)
    result = {"status": status, "launched_s": round(time.monotonic() - begun_s, 1)}
    if status:
        return result | {"errors": errors[-2000:]}
    run = open_run(directory)
    return result | {
        "accuracy": float(run.evaluation["accuracy"][-1]),
        "loss": float(run.evaluation["loss"][-1]),
        "S_avg": run.staleness().as_dict()["S_avg"],
        "gradients_per_s": run.attributes["gradients"] / run.seconds,
        "mpi": run.attributes["mpi_library"],
    }


def text(found: dict[str, list[dict]], mpi: str) -> list[str]:
    """Return the lines of the Markdown page."""
    rows = []
    for case, runs in found.items():
        good = [run for run in runs if run["status"] == 0]
        spreads = [spread_text([run[name] for run in good]) for name in ("accuracy", "S_avg", "gradients_per_s")]
        rows.append([case, len(runs), len(runs) - len(good), *spreads])
    return [
        "# Many ranks",
        "",
        f"Made by `jobs/benchmarks/many_ranks.py`; {mpi}, {os.cpu_count()} cores. Medians, and in brackets the range.",
        "",
        *table(["", "runs", "failed or hung", "accuracy", "S_avg", "gradients/s"], rows),
    ]


if __name__ == "__main__":
    main()
