"""Time and gradients to a target loss, by exchange, with slow ranks.

    mpiexec -n 4 python -m mpi4py -m jobs.benchmarks.stragglers results/stragglers          # trains
    python -m jobs.benchmarks.stragglers results/stragglers                                 # tables and pictures

The first writes a line of ``runs.jsonl`` for each run, and goes on where it was ended; the second makes
``tables.md`` and a picture per task of what is there.

Two tasks on real handwritten digits, enlarged to 28 x 28 pixels: an MLP 784-128-10 on the classes, and logistic
regression on even against odd. Every method trains until rank 0's evaluation loss is at the target, without
delays, with the last rank slowed by 5 or 20 ms a step, and with delays of 5 ms on average, exponentially
distributed, on all ranks; with the same stepsize for all methods, and with the one of `STEPSIZES` that was
fastest for the method: without delays, in the worst of three runs with other seeds.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from hpc_dasgd.runtime import launcher, mpi

launcher.set_environment_defaults()

import h5py  # noqa: E402
import numpy as np  # noqa: E402

import hpc_dasgd  # noqa: E402
from hpc_dasgd.report import plotting  # noqa: E402

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


def delays(n_ranks):
    slow = {"ranks": [n_ranks - 1]}
    return {
        "no delays": slow | {"delay_ms": 0.0},
        "one rank 5 ms": slow | {"delay_ms": 5.0},
        "one rank 20 ms": slow | {"delay_ms": 20.0},
        "random 5 ms": {"ranks": list(range(n_ranks)), "delay_ms": 5.0, "distribution": "exponential"},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    comm = mpi.comm_world()
    if comm.size > 1:
        train_all(comm, options.output)
    else:
        write_results(options.output)


def train_all(comm, output):
    """Make all runs that are not there yet; the same order on all ranks."""
    path = output / "runs.jsonl"
    if comm.rank == 0:
        output.mkdir(parents=True, exist_ok=True)
    done = comm.bcast(read(path) if comm.rank == 0 else None, root=0)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(comm.bcast(folder, root=0))
        if comm.rank == 0:
            write_data(folder)
        comm.Barrier()
        for case in cases(comm, done):
            result = train(comm, folder, len(done), case)
            done.append(case | result)
            if comm.rank == 0:
                with path.open("a") as file:
                    print(json.dumps(done[-1]), file=file)
                print(case, {name: round(value, 4) for name, value in result.items() if value}, flush=True)


def cases(comm, done):
    """Yield what is still to be run: first the tuning, then with the same stepsize and the tuned one."""
    names = ("task", "method", "delay", "stepsize", "seed")
    known = {tuple(run[name] for name in names) for run in done}

    def new(*values):
        if values not in known:
            known.add(values)
            yield dict(zip(names, values, strict=True))

    for seed in TUNING_SEEDS:
        for task in TASKS:
            for method in METHODS:
                for stepsize in STEPSIZES[task]:
                    yield from new(task, method, "no delays", stepsize, seed)
    for seed in SEEDS:
        for task in TASKS:
            for delay in delays(comm.size):
                for method in METHODS:  # in turns, so that a slow moment of a shared machine hits all alike
                    for stepsize in (TASKS[task]["stepsize"], tuned(done, task, method)):
                        yield from new(task, method, delay, stepsize, seed)


def tuned(runs, task, method):
    """The stepsize that was fastest in the worst of its tuning runs; the smallest where none always got there."""

    def worst(stepsize):
        wanted = (task, method, stepsize)
        found = [run for run in runs if (run["task"], run["method"], run["stepsize"]) == wanted]
        return max(run["seconds"] or np.inf for run in found if run["seed"] in TUNING_SEEDS)

    return min(STEPSIZES[task], key=worst)


def train(comm, folder, number, case):
    """Seconds and gradients until rank 0's evaluation loss was at the target, None where it was not; and rates."""
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


def measure(directory, target_loss):
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
    """Digits of 28 x 28 pixels by bilinear interpolation of 8 x 8: the size of MNIST's, and real."""
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


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write_results(output):
    runs = read(output / "runs.jsonl")
    lines = ["# Time and gradients to a target loss", "", "Made by `jobs/benchmarks/stragglers.py`; every run is in"]
    lines += ["`runs.jsonl`. Medians over seeds, and in brackets the smallest and the largest.", ""]
    for task, settings in TASKS.items():
        for tuning in ("same stepsize", "tuned stepsizes"):
            lines += table(runs, task, settings, tuning)
        write_plot(runs, task, output)
    (output / "tables.md").write_text("\n".join(lines))


def chosen(runs, task, method, delay, tuning):
    stepsize = TASKS[task]["stepsize"] if tuning == "same stepsize" else tuned(runs, task, method)
    wanted = (task, method, delay, stepsize)
    names = ("task", "method", "delay", "stepsize")
    return [run for run in runs if tuple(run[name] for name in names) == wanted and run["seed"] in SEEDS]


def table(runs, task, settings, tuning):
    columns = list(delays(2))
    lines = [f"## {task}, {tuning}: evaluation loss {settings['target_loss']}", ""]
    for name in ("seconds", "gradients", "gradients_per_s", "S_avg"):
        lines += [f"| {name.replace('_', ' ')} | stepsize | {' | '.join(columns)} |", "|---" * (2 + len(columns)) + "|"]
        for method in METHODS:
            found = [chosen(runs, task, method, delay, tuning) for delay in columns]
            stepsize = settings["stepsize"] if tuning == "same stepsize" else tuned(runs, task, method)
            lines.append(f"| {method} | {stepsize:g} | {' | '.join(cell(part, name) for part in found)} |")
        lines.append("")
    return lines


def cell(runs, name):
    values = [np.inf if run[name] is None else run[name] for run in runs]
    if not values:
        return "-"
    middle = statistics.median(values)
    if middle == np.inf:
        return f"not in {LONGEST_S:g} s"
    return f"{short(middle)} [{short(min(values))}, {short(max(values))}]"


def short(value):
    if value == np.inf:
        return "never"
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def write_plot(runs, task, output):
    """Seconds to the target by delay, a line per method, for both ways to choose the stepsize."""
    figure = plotting.blank_figure(11, 4.5)
    columns = list(delays(2))
    for axes, tuning in zip(figure.subplots(1, 2, sharey=True), ("same stepsize", "tuned stepsizes"), strict=True):
        for number, method in enumerate(METHODS):
            found = [chosen(runs, task, method, delay, tuning) for delay in columns]
            middle = [statistics.median(run["seconds"] or np.inf for run in part) if part else np.nan for part in found]
            axes.plot(columns, middle, **plotting.line_style(number), label=method)
        axes.set_title(f"{task}, {tuning}")
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel(f"seconds to evaluation loss {TASKS[task]['target_loss']:g}")
    figure.axes[1].legend(fontsize="small")
    figure.savefig(output / f"{task}.png")


if __name__ == "__main__":
    main()
