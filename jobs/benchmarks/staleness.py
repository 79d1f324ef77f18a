"""How long does `hpc-dasgd staleness` take on a large run, and how much memory?

    python -m jobs.benchmarks.staleness results/staleness

makes the files of a run of 64 ranks with 100,000 gradients each, whose ranks take steps of random length and read
each other at the start of each; then times ``staleness --json``, each time in a new process, and writes
``results/staleness.md``.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from hpc_dasgd.storage.log_writer import RankLog
from hpc_dasgd.storage.run_file import complete_run, create_run

CONFIG = "[budget]\ngradients = 1\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--ranks", type=int, default=64, help="(default %(default)s)")
    parser.add_argument("--gradients", type=int, default=100_000, help="of each rank (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="(default %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_run(Path(folder, "run"), options.ranks, options.gradients)
        n_bytes = sum(path.stat().st_size for path in Path(folder, "run").iterdir())
        seconds, found = zip(*(timed(Path(folder, "run")) for _ in range(options.repeats)), strict=True)
    # Of the largest child; this process's own memory does not count.
    peak_gib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    lines = [
        "# Staleness of a large run",
        "",
        f"Made by `jobs/benchmarks/staleness.py`, {os.cpu_count()} cores, {platform.machine()}: {options.ranks} ranks, "
        f"{options.gradients} gradients each, files of {n_bytes / 2**30:.2f} GiB.",
        "",
        f"- seconds: median {statistics.median(seconds):.1f}, from {min(seconds):.1f} to {max(seconds):.1f}",
        f"- memory at its peak: {peak_gib:.2f} GiB",
        f"- S_avg {found[0]['S_avg']:.4g}, S_max {found[0]['S_max']}, W_max {found[0]['W_max']}",
    ]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def write_run(directory, n_ranks, n_gradients):
    """The files of a run in which news take a tenth of a step to arrive."""
    rng = np.random.default_rng(0)
    ends = [np.cumsum(rng.exponential(1e-3, n_gradients)) for _ in range(n_ranks)]
    create_run(directory, config_toml=CONFIG, attributes={"n_ranks": n_ranks}, x0=np.zeros(1))
    for rank, own in enumerate(ends):
        starts = np.concatenate([[0.0], own[:-1]])
        versions = np.stack([np.searchsorted(other, starts - 1e-4) for other in ends], axis=1)
        versions[:, rank] = np.arange(n_gradients)
        with RankLog(directory, rank, n_ranks, 1) as log:
            for k in range(n_gradients):
                log.append(starts[k], own[k], 1.0, 1.0, k, versions[k])
    complete_run(directory, final=np.zeros(1), attributes={"seconds": max(own[-1] for own in ends)})


def timed(directory):
    begun_s = time.perf_counter()
    command = [sys.executable, "-m", "hpc_dasgd", "staleness", str(directory), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return time.perf_counter() - begun_s, json.loads(done.stdout)


if __name__ == "__main__":
    main()
