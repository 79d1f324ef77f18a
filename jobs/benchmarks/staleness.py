"""Measure the time and the memory that `hpc-dasgd staleness` takes for a large run.

    python -m jobs.benchmarks.staleness results/staleness

writes the files of a run of 64 ranks with 100,000 gradients each, whose steps have random lengths and begin with a read
of all other ranks. Then it times ``staleness --json``, each time in a new process, and writes
``results/staleness.json`` and ``.md``.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from hpc_dasgd.storage.log_segment import LogSettings
from hpc_dasgd.storage.log_writer import RankLog
from hpc_dasgd.storage.run_file import complete_run, create_run
from jobs.benchmarks.common import argument_parser, describe_machine, spread_text, write_outcome

CONFIG = "[budget]\ngradients = 1\n"
MEAN_STEP_S, DELAY_S = 1e-3, 1e-4  # an update is visible to other ranks a tenth of a step after it was made


def main():
    parser = argument_parser(__doc__)
    parser.add_argument("--ranks", type=int, default=64, help="(default %(default)s)")
    parser.add_argument("--gradients", type=int, default=100_000, help="of each rank (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="(default %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        write_run(run, options.ranks, options.gradients)
        n_bytes = sum(path.stat().st_size for path in run.iterdir())
        samples = [time_command(run) for _ in range(options.repeats)]
    found = {
        "machine": describe_machine("numpy", "h5py", "hpc_dasgd"),
        "n_ranks": options.ranks,
        "n_gradients_per_rank": options.gradients,
        "n_bytes": n_bytes,
        "seconds": [seconds for seconds, _ in samples],
        # Peak of the largest child process; the memory of this process is not included.
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss,
        "staleness": {name: samples[0][1][name] for name in ("S_avg", "S_max", "W_max")},
    }
    lines = text(found)
    write_outcome(options.output, found, lines)
    print("\n".join(lines))


def text(found: dict) -> list[str]:
    """Return the lines of the Markdown page."""
    staleness = found["staleness"]
    return [
        "# Staleness of a large run",
        "",
        f"Made by `jobs/benchmarks/staleness.py`, {found['machine']['cpu']}: {found['n_ranks']} ranks, "
        f"{found['n_gradients_per_rank']} gradients each, files of {found['n_bytes'] / 2**30:.2f} GiB.",
        "",
        f"- seconds, median and range: {spread_text(found['seconds'], '.1f')}",
        f"- peak memory: {found['peak_bytes'] / 2**30:.2f} GiB",
        f"- S_avg {staleness['S_avg']:.4g}, S_max {staleness['S_max']}, W_max {staleness['W_max']}",
    ]


def write_run(directory: Path, n_ranks: int, n_gradients: int) -> None:
    """Write the files of a run in which an update reaches the other ranks after `DELAY_S`."""
    rng = np.random.default_rng(0)
    ends = [np.cumsum(rng.exponential(MEAN_STEP_S, n_gradients)) for _ in range(n_ranks)]
    create_run(directory, config_toml=CONFIG, attributes={"n_ranks": n_ranks}, x0=np.zeros(1))
    for rank, own in enumerate(ends):
        starts = np.concatenate([[0.0], own[:-1]])
        versions = np.stack([np.searchsorted(other, starts - DELAY_S) for other in ends], axis=1)
        versions[:, rank] = np.arange(n_gradients)
        with RankLog(directory, LogSettings(rank, n_ranks, 1)) as log:
            for k in range(n_gradients):
                log.append(starts[k], own[k], 1.0, 1.0, k, versions[k])
    complete_run(directory, final=np.zeros(1), attributes={"seconds": max(own[-1] for own in ends)})


def time_command(directory: Path) -> tuple[float, dict]:
    """Return the seconds that ``staleness --json`` took, and what it printed."""
    begun_s = time.perf_counter()
    command = [sys.executable, "-m", "hpc_dasgd", "staleness", str(directory), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return time.perf_counter() - begun_s, json.loads(done.stdout)


if __name__ == "__main__":
    main()
