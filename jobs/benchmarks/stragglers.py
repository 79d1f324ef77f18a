"""Measure time and gradients to a target loss, by exchange, with slow ranks.

    mpiexec -n 4 python -m mpi4py -m jobs.benchmarks.stragglers results/stragglers          # trains
    python -m jobs.benchmarks.stragglers results/stragglers                                 # tables and figures

The first command appends a line to ``runs.jsonl`` for each run and continues an interrupted series; the second one
writes ``tables.md`` and a figure per task from the finished runs.

Two tasks on real handwritten digits, enlarged to 28 x 28 pixels: an MLP 784-128-10 on the classes, and logistic
regression of even against odd digits. Every method trains until rank 0's evaluation loss has reached the target:
without delays, with the last rank slowed down by 5 or 20 ms per step, and with exponentially distributed delays of 5 ms
on average on all ranks. It does so with the same stepsize for all methods, and with the one of `STEPSIZES` that was
fastest for the method without delays, in the slowest of three runs with other seeds.
"""

import tempfile
from pathlib import Path
from statistics import median

import h5py
import numpy as np

import hpc_dasgd
from hpc_dasgd.report import plotting
from hpc_dasgd.runtime import mpi
from jobs.benchmarks.common import append_run, argument_parser, read_runs, table

METHODS = {
    "read, complete": {"kind": "read"},
    "read, tree": {"kind": "read", "topology": "tree"},
    "accumulate": {"kind": "accumulate"},
    "gossip, average": {"kind": "gossip", "topology": "ring"},
    "gossip, push-sum": {"kind": "gossip", "topology": "exponential", "mixing": "push-sum"},
    "server": {"kind": "server"},
    "allreduce": {"kind": "allreduce"},
}
TASKS = {
    "MLP": {"objective": {"kind": "mlp", "hidden": [128]}, "stepsize": 0.05, "target_loss": 0.1},
    "logistic": {"objective": {"kind": "logistic"}, "stepsize": 0.02, "target_loss": 0.26},
}
STEPSIZES = {"MLP": [0.05, 0.1, 0.2, 0.4], "logistic": [0.02, 0.05, 0.1, 0.2]}
BATCH_SIZE = 32
SEEDS = [1, 2, 3]
TUNING_SEEDS = [0, 10, 11]
LONGEST_S = 8.0
SAME, TUNED = "same stepsize", "tuned stepsizes"
CASE = ("task", "method", "delay", "stepsize", "seed")


def delays(n_ranks: int) -> dict[str, dict]:
    """Return the settings ``[straggler]`` by name."""
    slow = {"ranks": [n_ranks - 1]}
    return {
        "no delays": slow | {"delay_ms": 0.0},
        "one rank 5 ms": slow | {"delay_ms": 5.0},
        "one rank 20 ms": slow | {"delay_ms": 20.0},
        "random 5 ms": {"ranks": list(range(n_ranks)), "delay_ms": 5.0, "distribution": "exponential"},
    }


def main():
    parser = argument_parser(__doc__)
    parser.add_argument("--runs", type=int, help="end after as many new runs (default: all)")
    options = parser.parse_args()
    comm = mpi.comm_world()
    if comm.size > 1:
        train_all(comm, options.output, options.runs)
    else:
        write_results(options.output)


def train_all(comm, output: Path, n_runs: int | None) -> None:
    """Train all cases, or the first `n_runs`, that are not in ``runs.jsonl``; in the same order on all ranks."""
    done = comm.bcast(read_runs(output) if comm.rank == 0 else None, root=0)
    n_before = len(done)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(comm.bcast(folder, root=0))
        if comm.rank == 0:
            write_data(folder)
        comm.Barrier()
        for case in cases(comm, done):
            if len(done) - n_before == n_runs:
                break
            result = train(comm, folder, len(done), case)
            done.append(case | result)
            if comm.rank == 0:
                append_run(output, done[-1])
                print(case, {name: round(value, 4) for name, value in result.items() if value}, flush=True)
        comm.Barrier()


def cases(comm, done):
    """Yield the cases that are missing in `done`: first for tuning, then with the same and the tuned stepsize."""
    yielded = {tuple(run[name] for name in CASE) for run in done}

    def new(*values):
        if values not in yielded:
            yielded.add(values)
            yield dict(zip(CASE, values, strict=True))

    for seed in TUNING_SEEDS:
        for task in TASKS:
            for method in METHODS:
                for stepsize in STEPSIZES[task]:
                    yield from new(task, method, "no delays", stepsize, seed)
    for seed in SEEDS:
        for task in TASKS:
            for delay in delays(comm.size):
                for method in METHODS:  # in turns, so that a slow moment of a shared machine affects all alike
                    for stepsize in (TASKS[task]["stepsize"], tuned(done, task, method)):
                        yield from new(task, method, delay, stepsize, seed)


def tuned(runs, task, method):
    """Return the stepsize with the fastest slowest tuning run; the smallest if none reached the target in all runs."""

    def worst(stepsize):
        wanted = (task, method, stepsize)
        found = [run for run in runs if (run["task"], run["method"], run["stepsize"]) == wanted]
        return max(run["seconds"] or np.inf for run in found if run["seed"] in TUNING_SEEDS)

    return min(STEPSIZES[task], key=worst)


def train(comm, folder, number, case):
    """Train once; return the result of `measure` on all ranks. Collective over `comm`."""
    task = TASKS[case["task"]]
    config = {
        "seed": case["seed"],
        "data": {"path": str(folder / f"{case['task']}.h5"), "batch_size": BATCH_SIZE},
        "objective": task["objective"],
        "optimizer": {"stepsize": case["stepsize"]},
        "exchange": METHODS[case["method"]],
        "budget": {"target_loss": task["target_loss"], "seconds": LONGEST_S},
        "log": {"evaluate_every_s": 0.02},
        "straggler": delays(comm.size)[case["delay"]],
    }
    result = hpc_dasgd.train(config, comm=comm, run=folder / f"run-{number}", progress=False)
    return comm.bcast(measure(result.run, task["target_loss"]) if comm.rank == 0 else None, root=0)


def measure(directory: Path, target_loss: float) -> dict[str, float | None]:
    """Return seconds and gradients until rank 0's evaluation loss reached the target (else None), and rates."""
    run = hpc_dasgd.open_run(directory)
    reached = run.evaluation[run.evaluation["loss"] <= target_loss]
    seconds = float(reached["t_s"][0]) if reached.size else None
    ended_s = run.gradients["t_end_s"]
    return {
        "seconds": seconds,
        "gradients": int(np.sum(ended_s <= seconds)) if reached.size else None,
        "gradients_per_s": len(ended_s) / run.attributes["seconds"],
        "S_avg": run.staleness().as_dict()["S_avg"],
    }


def write_data(folder):
    """Write the digits, enlarged from 8 x 8 to 28 x 28 pixels, the size of MNIST's, by bilinear interpolation."""
    digits = hpc_dasgd.open_dataset("digits", "float32")
    at = np.linspace(0, 7, 28)
    low = np.minimum(at.astype(int), 6)
    weights = np.zeros((28, 8), np.float32)
    weights[np.arange(28), low], weights[np.arange(28), low + 1] = 1 - (at - low), at - low
    for task, labels in (("MLP", lambda y: y), ("logistic", lambda y: y % 2)):
        with h5py.File(folder / f"{task}.h5", "w") as file:
            for name, split in (("train", digits.train), ("test", digits.test)):
                x, y = split.rows(np.arange(split.n_rows))
                file[f"{name}/x"] = np.einsum("ri,nij,cj->nrc", weights, x.reshape(-1, 8, 8), weights)
                file[f"{name}/y"] = labels(y)


def write_results(output: Path) -> None:
    """Write ``tables.md`` and the figures."""
    runs = read_runs(output)
    lines = ["# Time and gradients to a target loss", "", "Made by `jobs/benchmarks/stragglers.py`; every run is in"]
    lines += ["`runs.jsonl`. Medians over seeds, and in brackets the smallest and the largest.", ""]
    for task in TASKS:
        for tuning in (SAME, TUNED):
            lines += task_tables(runs, task, tuning)
        write_plot(runs, task, output)
    (output / "tables.md").write_text("\n".join(lines))


def chosen_stepsize(runs: list[dict], task: str, method: str, tuning: str) -> float:
    return TASKS[task]["stepsize"] if tuning == SAME else tuned(runs, task, method)


def select(runs: list[dict], task: str, method: str, tuning: str) -> list[list[dict]]:
    """Return the runs of a method with its chosen stepsize, by delay."""
    stepsize = chosen_stepsize(runs, task, method, tuning)
    cases = [(task, method, delay, stepsize) for delay in delays(2)]
    return [
        [run for run in runs if tuple(run[name] for name in CASE[:-1]) == case and run["seed"] in SEEDS]
        for case in cases
    ]


def task_tables(runs: list[dict], task: str, tuning: str) -> list[str]:
    """Return the lines of the tables of one task: one for each quantity."""
    lines = [f"## {task}, {tuning}: evaluation loss {TASKS[task]['target_loss']}", ""]
    selected = {method: select(runs, task, method, tuning) for method in METHODS}
    for name in ("seconds", "gradients", "gradients_per_s", "S_avg"):
        rows = [
            [method, f"{chosen_stepsize(runs, task, method, tuning):g}", *(spread(group, name) for group in groups)]
            for method, groups in selected.items()
        ]
        lines += [*table([name.replace("_", " "), "stepsize", *delays(2)], rows), ""]
    return lines


def spread(runs: list[dict], name: str) -> str:
    """Return median and extremes of a quantity, which is None in runs that did not reach the target."""
    values = [np.inf if run[name] is None else run[name] for run in runs]
    if not values:
        return "-"
    if median(values) == np.inf:
        return f"not in {LONGEST_S:g} s"
    return f"{number(median(values))} [{number(min(values))}, {number(max(values))}]"


def number(value: float) -> str:
    if value == np.inf:
        return "never"
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def write_plot(runs: list[dict], task: str, output: Path) -> None:
    """Plot the seconds to the target by delay, a line per method, for both ways to choose the stepsize."""
    figure = plotting.blank_figure(11, 4.5)
    for axes, tuning in zip(figure.subplots(1, 2, sharey=True), (SAME, TUNED), strict=True):
        for index, method in enumerate(METHODS):
            groups = select(runs, task, method, tuning)
            medians = [median(run["seconds"] or np.inf for run in group) if group else np.nan for group in groups]
            axes.plot(list(delays(2)), medians, **plotting.line_style(index), label=method)
        axes.set_title(f"{task}, {tuning}")
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel(f"seconds to evaluation loss {TASKS[task]['target_loss']:g}")
    figure.axes[1].legend(fontsize="small")
    figure.savefig(output / f"{task}.png")


if __name__ == "__main__":
    main()
