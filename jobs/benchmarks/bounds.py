"""Do the bounds of theory hold on real runs, and how tight are they?

    for n in 1 2 4 8; do mpiexec -n $n python -m mpi4py -m jobs.benchmarks.bounds results/bounds; done    # trains
    python -m jobs.benchmarks.bounds results/bounds --results                                # table and picture

The first writes a line of ``runs.jsonl`` for each run, and goes on where it was ended; the second makes ``table.md``
and ``tightness.png`` of what is there.

The function is a quadratic in 100 dimensions of which L = 1, sigma = 1 and F_0 are known exactly. Each run makes 4,000
gradients of all ranks, at one of `STEPSIZES`, on the complete overlay or a tree, without delays or with the last rank
slowed by 2 ms a step, for several seeds. Measured is the mean squared norm of the true gradient at the replicas (the
logged squared norms less sigma^2); Q of bound A is the largest norm in the log.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from hpc_dasgd.runtime import launcher, mpi

launcher.set_environment_defaults()

import numpy as np  # noqa: E402

import hpc_dasgd  # noqa: E402
from hpc_dasgd.analysis import bound_report  # noqa: E402
from hpc_dasgd.report import plotting  # noqa: E402

STEPSIZES = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3]
DELAYS_MS = [0.0, 2.0]
TOPOLOGIES = ["complete", "tree"]
SEEDS = [1, 2, 3, 4, 5]
N_GRADIENTS = 4000
CASE = ("n_ranks", "topology", "delay_ms", "stepsize", "seed")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--results", action="store_true", help="make table and picture of the runs that are there")
    options = parser.parse_args()
    if options.results:
        write_results(options.output)
    else:
        train_all(mpi.comm_world(), options.output)


def train_all(comm, output):
    """Make all runs with as many ranks as there are that are not there yet."""
    path = output / "runs.jsonl"
    if comm.rank == 0:
        output.mkdir(parents=True, exist_ok=True)
    done = comm.bcast([tuple(run[name] for name in CASE) for run in read(path)] if comm.rank == 0 else None, root=0)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(comm.bcast(folder, root=0))
        for number, case in enumerate(case for case in cases(comm.size) if tuple(case.values()) not in done):
            result = train(comm, folder / f"run-{number}", case)
            if comm.rank == 0:
                with path.open("a") as file:
                    print(json.dumps(case | result), file=file)


def cases(n_ranks):
    for seed in SEEDS:
        for topology in TOPOLOGIES if n_ranks > 2 else TOPOLOGIES[:1]:  # with two ranks they are the same
            for delay_ms in DELAYS_MS if n_ranks > 1 else DELAYS_MS[:1]:
                for stepsize in STEPSIZES:
                    yield dict(zip(CASE, (n_ranks, topology, delay_ms, stepsize, seed), strict=True))


def train(comm, directory, case):
    """What was measured, and both bounds."""
    config = {
        "seed": case["seed"],
        "objective": {"kind": "quadratic", "dimension": 100, "L": 1.0, "mu": 0.01, "noise": 1.0},
        "optimizer": {"stepsize": case["stepsize"]},
        "exchange": {"topology": case["topology"]},
        "budget": {"gradients": N_GRADIENTS},
        "log": {"evaluate_every_s": 1e9},
        "straggler": {"ranks": [comm.size - 1], "delay_ms": case["delay_ms"]},
    }
    hpc_dasgd.train(config, comm=comm, run=directory, progress=False)
    if comm.rank:
        return None
    found = bound_report.compare_with_bounds(hpc_dasgd.open_run(directory)).as_dict()
    bounds = {name: {key: found[name][key] for key in ("value", "condition_met", "terms")} for name in ("A", "B")}
    return {name: found[name] for name in ("measured", "measured_error", "staleness")} | bounds


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write_results(output):
    runs = read(output / "runs.jsonl")
    lines = ["# Bounds against runs", "", "Made by `jobs/benchmarks/bounds.py`; every run is in `runs.jsonl`."]
    lines += [f"Quadratic, {N_GRADIENTS} gradients of all ranks; medians over {len(SEEDS)} seeds."]
    lines += ["Tightness: bound by measured, where the bound's condition is met in all runs.", ""]
    for name in ("A", "B"):
        held = [run for run in runs if run[name]["condition_met"]]
        below = [run for run in held if run["measured"] < run[name]["value"]]
        met = f"its condition is met in {len(held)} of {len(runs)} runs"
        lines.append(f"- bound {name}: {met}, {len(below)} of which lie below it")
    headings = ["ranks", "overlay", "straggler", "stepsize", "S_avg", "S_rms", "W_max", "measured"]
    headings += ["A", "tightness", "B", "tightness"]
    lines += ["", f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for key, group in groups(runs).items():
        cells = [str(key[0]), key[1], f"{key[2]:g} ms", f"{key[3]:g}"]
        cells += [f"{middle(run['staleness'][name] for run in group):.3g}" for name in ("S_avg", "S_rms", "W_max")]
        measured = middle(run["measured"] for run in group)
        cells.append(f"{measured:.3g}")
        for name in ("A", "B"):
            value = middle(run[name]["value"] for run in group)
            met = all(run[name]["condition_met"] for run in group)
            cells += [f"{value:.3g}", f"{value / measured:.2g}" if met else "not met"]
        lines.append(f"| {' | '.join(cells)} |")
    (output / "table.md").write_text("\n".join(lines) + "\n")
    write_plot(runs, output / "tightness.png")


def groups(runs):
    found = {}
    for run in sorted(runs, key=lambda run: tuple(run[name] for name in CASE)):
        found.setdefault(tuple(run[name] for name in CASE[:-1]), []).append(run)
    return found


def middle(values):
    return statistics.median(values)


def write_plot(runs, path):
    """Measured and bounds against the stepsize, on the complete overlay without delays, by number of ranks."""
    figure = plotting.blank_figure(11, 4.5)
    axes = figure.subplots(1, 2, sharey=True)
    found = groups(runs)
    n_ranks = sorted({key[0] for key in found})
    for place, name in zip(axes, ("A", "B"), strict=True):
        for number, n in enumerate(n_ranks):
            groups_of_n = [group for key, group in found.items() if key[:3] == (n, "complete", 0.0)]
            stepsizes = [group[0]["stepsize"] for group in groups_of_n]
            style = plotting.line_style(number)
            measured = [middle(run["measured"] for run in group) for group in groups_of_n]
            place.plot(stepsizes, measured, **style | {"linestyle": "--"}, label=f"{n} ranks, measured")
            values = [
                middle(run[name]["value"] for run in group)
                if all(run[name]["condition_met"] for run in group)
                else np.nan
                for group in groups_of_n
            ]
            place.plot(stepsizes, values, **style, label=f"{n} ranks, bound {name}")
        place.set(title=f"bound {name}, where its condition is met", xscale="log", yscale="log", xlabel="stepsize")
        place.grid(alpha=0.3)
        place.legend(fontsize="x-small", ncols=2)
    axes[0].set_ylabel("mean squared gradient norm")
    figure.savefig(path)


if __name__ == "__main__":
    main()
