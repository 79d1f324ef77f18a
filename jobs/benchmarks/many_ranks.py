"""Many ranks on few cores, again and again: does a run ever hang, and is it as good as one of few ranks?

    python -m jobs.benchmarks.many_ranks results/many-ranks-NAME

trains ``jobs/digits.toml`` with 4 ranks, then 20 times with 32, on the complete overlay and on a tree, with the
``mpiexec`` beside this Python; writes ``results/many-ranks-NAME.json`` (every run) and ``.md``. A run that takes longer
than `LONGEST_S` counts as hanging and is ended.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hpc_dasgd import open_run
from jobs.benchmarks.mpiexec import ENVIRONMENT, MPIEXEC

LONGEST_S = 180
CONFIG = Path(__file__).parents[1] / "digits.toml"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--runs", type=int, default=20, help="of each overlay (default %(default)s)")
    parser.add_argument("--ranks", type=int, default=32, help="(default %(default)s)")
    options = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for topology in ("complete", "tree"):
            for n_ranks, n_runs in ((4, 3), (options.ranks, options.runs)):
                runs = [train(Path(folder, f"{topology}-{n_ranks}-{k}"), n_ranks, topology) for k in range(n_runs)]
                found[f"{topology}, {n_ranks} ranks"] = runs
                write(options.output, found)
    if any(run["status"] for runs in found.values() for run in runs):
        sys.exit(1)


def train(directory, n_ranks, topology):
    """One run: exit status, what it came to, how long it took from launch to end."""
    command = [MPIEXEC, "-n", str(n_ranks), sys.executable]
    command += ["-m", "hpc_dasgd", "train", str(CONFIG), "--run", str(directory)]
    command += ["--set", f"exchange.topology={topology}"]
    begun_s = time.monotonic()
    try:
        done = subprocess.run(
            command, env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LONGEST_S
        )
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


def write(output, found):
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    mpi = next(run["mpi"] for runs in found.values() for run in runs if "mpi" in run)
    lines = [
        "# Many ranks",
        "",
        f"Made by `jobs/benchmarks/many_ranks.py`; {mpi}, {os.cpu_count()} cores. Medians, and extremes.",
        "",
    ]
    lines += ["| | runs | failed or hung | accuracy | S_avg | gradients/s |", "|---" * 6 + "|"]
    for case, runs in found.items():
        good = [run for run in runs if run["status"] == 0]
        cells = [f"{case}", f"{len(runs)}", f"{len(runs) - len(good)}"]
        for name in ("accuracy", "S_avg", "gradients_per_s"):
            values = [run[name] for run in good]
            middle = f"{statistics.median(values):.4g} [{min(values):.4g}, {max(values):.4g}]" if values else "-"
            cells.append(middle)
        lines.append(f"| {' | '.join(cells)} |")
    output.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
