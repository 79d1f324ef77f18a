"""Compare the convergence bounds of ``docs/theory.md`` with measurements: do they hold, and how tight are they?

    for n in 1 2 4 8; do mpiexec -n $n python -m mpi4py -m jobs.benchmarks.bounds results/bounds; done    # trains
    python -m jobs.benchmarks.bounds results/bounds --results                                # table and figure

The first command appends a line to ``runs.jsonl`` for each run and continues an interrupted series; the second one
writes ``table.md`` and ``tightness.png`` from the finished runs.

The objective is a quadratic in 100 dimensions with known L = 1, sigma = 1 and F_0. The ranks of each run compute 4,000
gradients together, with one of `STEPSIZES`, on the complete overlay or a tree, without delays or with the last rank
slowed down by 2 ms per step, for several seeds. The measured quantity is the mean squared norm of the true gradient at
the replicas (the logged squared norms minus sigma^2); Q of bound A is the largest norm in the log.
"""

import math
import tempfile
from pathlib import Path
from statistics import median

import hpc_dasgd
from hpc_dasgd.analysis import bound_report
from hpc_dasgd.report import plotting
from hpc_dasgd.runtime import mpi
from jobs.benchmarks.common import append_run, argument_parser, median_of, read_runs, table

STEPSIZES = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3]
DELAYS_MS = [0.0, 2.0]
TOPOLOGIES = ["complete", "tree"]
SEEDS = [1, 2, 3, 4, 5]
N_GRADIENTS = 4000
CASE = ("n_ranks", "topology", "delay_ms", "stepsize", "seed")
BOUNDS = ("A", "B")


def main():
    parser = argument_parser(__doc__)
    parser.add_argument("--results", action="store_true", help="write table and figure from the finished runs")
    parser.add_argument("--runs", type=int, help="end after as many new runs (default: all)")
    options = parser.parse_args()
    if options.results:
        write_results(options.output)
    else:
        train_all(mpi.comm_world(), options.output, options.runs)


def train_all(comm, output: Path, n_runs: int | None) -> None:
    """Train all cases of this number of ranks, or the first `n_runs`, that are not in ``runs.jsonl``."""
    done = comm.bcast(read_runs(output) if comm.rank == 0 else None, root=0)
    done = {tuple(run[name] for name in CASE) for run in done}
    missing = [case for case in cases(comm.size) if tuple(case.values()) not in done]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(comm.bcast(folder, root=0))
        for number, case in enumerate(missing[:n_runs]):
            result = train(comm, folder / f"run-{number}", case)
            if comm.rank == 0:
                append_run(output, case | result)
        comm.Barrier()


def cases(n_ranks: int):
    """Yield all cases of a number of ranks."""
    for seed in SEEDS:
        for topology in TOPOLOGIES if n_ranks > 2 else TOPOLOGIES[:1]:  # with two ranks the overlays are the same
            for delay_ms in DELAYS_MS if n_ranks > 1 else DELAYS_MS[:1]:
                for stepsize in STEPSIZES:
                    yield dict(zip(CASE, (n_ranks, topology, delay_ms, stepsize, seed), strict=True))


def train(comm, directory: Path, case: dict) -> dict | None:
    """Train once; return the measured quantity and both bounds on rank 0. Collective over `comm`."""
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
    bounds = {name: {key: found[name][key] for key in ("value", "condition_met", "terms")} for name in BOUNDS}
    return {name: found[name] for name in ("measured", "measured_error", "staleness")} | bounds


def write_results(output: Path) -> None:
    """Write ``table.md`` and ``tightness.png``."""
    runs = read_runs(output)
    lines = ["# Bounds against runs", "", "Made by `jobs/benchmarks/bounds.py`; every run is in `runs.jsonl`."]
    lines += [f"Quadratic, {N_GRADIENTS} gradients of all ranks together; medians over {len(SEEDS)} seeds."]
    lines += ["Tightness: bound divided by measured, if the bound's condition is met in all runs.", ""]
    for name in BOUNDS:
        met = [run for run in runs if run[name]["condition_met"]]
        n_held = sum(run["measured"] < run[name]["value"] for run in met)
        text = f"its condition is met in {len(met)} of {len(runs)} runs"
        lines.append(f"- bound {name}: {text}, and {n_held} of those lie below it")
    headings = ["ranks", "overlay", "straggler", "stepsize", "S_avg", "S_rms", "W_max", "measured"]
    headings += ["A", "tightness", "B", "tightness"]
    lines += ["", *table(headings, [table_row(*item) for item in group_by_setting(runs).items()])]
    (output / "table.md").write_text("\n".join(lines) + "\n")
    write_plot(runs, output / "tightness.png")


def table_row(setting: tuple, group: list[dict]) -> list[str]:
    """Return the cells of one setting: medians over its seeds."""
    n_ranks, topology, delay_ms, stepsize = setting
    row = [str(n_ranks), topology, f"{delay_ms:g} ms", f"{stepsize:g}"]
    row += [f"{median_of([run['staleness'] for run in group], name):.3g}" for name in ("S_avg", "S_rms", "W_max")]
    measured = median_of(group, "measured")
    row.append(f"{measured:.3g}")
    for name in BOUNDS:
        value = median(run[name]["value"] for run in group)
        row += [f"{value:.3g}", f"{value / measured:.2g}" if is_condition_met(group, name) else "not met"]
    return row


def group_by_setting(runs: list[dict]) -> dict[tuple, list[dict]]:
    """Return the runs that differ in nothing but the seed, by the other parts of their case, in order."""
    groups = {}
    for run in sorted(runs, key=lambda run: tuple(run[name] for name in CASE)):
        groups.setdefault(tuple(run[name] for name in CASE[:-1]), []).append(run)
    return groups


def is_condition_met(group: list[dict], name: str) -> bool:
    return all(run[name]["condition_met"] for run in group)


def write_plot(runs: list[dict], path: Path) -> None:
    """Plot measured and bounds against the stepsize, on the complete overlay without delays, by number of ranks."""
    figure = plotting.blank_figure(11, 4.5)
    groups = group_by_setting(runs)
    all_axes = figure.subplots(1, 2, sharey=True)
    for axes, name in zip(all_axes, BOUNDS, strict=True):
        for number, n_ranks in enumerate(sorted({setting[0] for setting in groups})):
            of_n_ranks = [group for setting, group in groups.items() if setting[:3] == (n_ranks, "complete", 0.0)]
            stepsizes = [group[0]["stepsize"] for group in of_n_ranks]
            style = plotting.line_style(number)
            measured = [median_of(group, "measured") for group in of_n_ranks]
            axes.plot(stepsizes, measured, **style | {"linestyle": "--"}, label=f"{n_ranks} ranks, measured")
            values = [
                median(run[name]["value"] for run in group) if is_condition_met(group, name) else math.nan
                for group in of_n_ranks
            ]
            axes.plot(stepsizes, values, **style, label=f"{n_ranks} ranks, bound {name}")
        axes.set(title=f"bound {name}, if its condition is met", xscale="log", yscale="log", xlabel="stepsize")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small", ncols=2)
    all_axes[0].set_ylabel("mean squared gradient norm")
    figure.savefig(path)


if __name__ == "__main__":
    main()
