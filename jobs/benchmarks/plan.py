"""Compare the predictions of `hpc-dasgd plan` for staleness and throughput with measurements.

    python -m jobs.benchmarks.plan results/plan/validation

trains ``jobs/digits.toml`` with 2, 4 and 8 ranks on this machine, without and with a straggler, several times each.
Each setting is predicted from a run of the same setting with another seed, and from a run of 2 ranks without straggler.
The settings take turns, so that a slow moment of a shared machine affects all alike. Writes
``results/plan/validation.json`` (every run) and ``.md``.
"""

import tempfile
from itertools import count
from pathlib import Path
from statistics import median

from hpc_dasgd import load_config, open_run
from hpc_dasgd.plan import planning
from hpc_dasgd.plan.times import times_from_run
from jobs.benchmarks.common import argument_parser, sample_in_turns, spread_text, table, write_outcome
from jobs.benchmarks.mpiexec import DIGITS, train_digits

LONGEST_S = 180
DELAY_MS = 5
TOLERANCE = 0.15
MEASURES = ("S_avg", "gradients_per_s")


def main():
    parser = argument_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="of each setting (default %(default)s)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8], help="(default %(default)s)")
    parser.add_argument("--gradients", type=int, default=20_000, help="of each run (default %(default)s)")
    options = parser.parse_args()
    settings = [(n_ranks, delay_ms) for delay_ms in (0, DELAY_MS) for n_ranks in options.ranks]
    with tempfile.TemporaryDirectory() as folder:
        runs = train_all(Path(folder), settings, options)
        found = {
            "mpi": runs[2, 0][0].attributes["mpi_library"],
            "cores": planning.available_cores(),
            "settings": [compare(runs, *setting, options.gradients) for setting in settings],
        }
    lines = text(found)
    write_outcome(options.output, found, lines)
    print("\n".join(lines))


def train_all(folder: Path, settings: list[tuple[int, int]], options) -> dict:
    """Return the runs of each setting and of 2 ranks without straggler; the first run of each is used to predict."""

    def trainer(n_ranks, delay_ms):
        seeds = count()

        def train():
            directory = folder / f"{n_ranks}-{delay_ms}-{(seed := next(seeds))}"
            train_digits(n_ranks, directory, overrides(delay_ms, seed, options.gradients), LONGEST_S).check_returncode()
            return open_run(directory)

        return train

    return sample_in_turns({setting: trainer(*setting) for setting in [(2, 0), *settings]}, options.repeats + 1)


def overrides(delay_ms: int, seed: int, n_gradients: int) -> list[str]:
    return [f"straggler.delay_ms={delay_ms}", f"seed={seed}", f"budget.gradients={n_gradients}"]


def compare(runs: dict, n_ranks: int, delay_ms: int, n_gradients: int) -> dict:
    """Return the measurements of a setting, and both predictions for it."""
    source, *measured = runs[n_ranks, delay_ms]
    sources = {"from the same setting": source, "from 2 ranks": runs[2, 0][0]}
    return {
        "n_ranks": n_ranks,
        "delay_ms": delay_ms,
        "measured": [measures(run) for run in measured],
        "predicted": {name: predict(run, n_ranks, delay_ms, n_gradients) for name, run in sources.items()},
    }


def measures(run) -> dict[str, float]:
    return {"S_avg": run.staleness().as_dict()["S_avg"], "gradients_per_s": run.attributes["gradients"] / run.seconds}


def predict(source, n_ranks: int, delay_ms: int, n_gradients: int) -> dict[str, float]:
    cores = planning.available_cores()
    config = load_config(DIGITS, overrides(delay_ms, 0, n_gradients))
    machine = planning.Machine(n_ranks=n_ranks, cores=cores, ranks_per_node=n_ranks)
    return planning.plan(config, machine, times_from_run(source, n_ranks, cores))


def text(found: dict) -> list[str]:
    """Return the lines of the Markdown page."""
    rows, n_far, n_predictions = [], 0, 0
    for setting in found["settings"]:
        for name in MEASURES:
            values = [run[name] for run in setting["measured"]]
            row = [setting["n_ranks"], f"{setting['delay_ms']} ms", name, spread_text(values)]
            for predicted in setting["predicted"].values():
                ratio = predicted[name] / median(values)
                row += [f"{predicted[name]:.4g}", f"{ratio:.2f}"]
                n_far += name == "S_avg" and abs(ratio - 1) > TOLERANCE
            rows.append(row)
        n_predictions += len(setting["predicted"])
    return [
        "# Planned and measured",
        "",
        f"Made by `jobs/benchmarks/plan.py`; {found['mpi']}, {found['cores']} cores. Measured: median, and in brackets",
        "the range. Each prediction is followed by its ratio to that median.",
        "",
        *table(
            ["ranks", "straggler", "", "measured", "from the same setting", "ratio", "from 2 ranks", "ratio"],
            rows,
        ),
        "",
        f"S_avg: {n_far} of {n_predictions} predictions differ from the median by more than {TOLERANCE:.0%}.",
    ]


if __name__ == "__main__":
    main()
