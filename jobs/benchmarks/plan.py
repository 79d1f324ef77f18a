"""Does `hpc-dasgd plan` predict what a run then does? Staleness and throughput, predicted and measured.

    python -m jobs.benchmarks.plan results/plan/validation

trains ``jobs/digits.toml`` with 2, 4 and 8 ranks on this machine, without and with a straggler, several times each,
with the ``mpiexec`` beside this Python. Each setting is predicted from a run of the same setting with another seed,
and from a run of 2 ranks without straggler. The settings take turns, so that a slow moment of a shared machine hits
all alike. Writes ``results/plan/validation.json`` (every run) and ``.md``.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from hpc_dasgd import load_config, open_run
from hpc_dasgd.plan import planning
from hpc_dasgd.plan.times import times_from_run
from jobs.benchmarks.mpiexec import ENVIRONMENT, MPIEXEC

LONGEST_S = 180
CONFIG = Path(__file__).parents[1] / "digits.toml"
DELAY_MS = 5
TOLERANCE = 0.15
MEASURES = ("S_avg", "gradients_per_s")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--repeats", type=int, default=3, help="of each setting (default %(default)s)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8], help="(default %(default)s)")
    parser.add_argument("--gradients", type=int, default=20_000, help="of each run (default %(default)s)")
    options = parser.parse_args()
    settings = [(n_ranks, delay_ms) for delay_ms in (0, DELAY_MS) for n_ranks in options.ranks]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        runs = {setting: [] for setting in [(2, 0), *settings]}
        # One more than the repeats: the run of another seed that predictions are made from.
        for seed in range(options.repeats + 1):
            for setting in runs:
                directory = Path(folder, "-".join(map(str, (*setting, seed))))
                runs[setting].append(train(directory, *setting, seed, options.gradients))
        for n_ranks, delay_ms in settings:
            source, *measured = runs[n_ranks, delay_ms]
            predicted = {
                "from the same setting": predict(source, n_ranks, delay_ms, options.gradients),
                "from 2 ranks": predict(runs[2, 0][0], n_ranks, delay_ms, options.gradients),
            }
            result = {"n_ranks": n_ranks, "delay_ms": delay_ms, "measured": list(map(measures, measured))}
            found.append(result | {"predicted": predicted})
        mpi = source.attributes["mpi_library"]
    write(options.output, {"mpi": mpi, "cores": planning.available_cores(), "settings": found})


def overrides(delay_ms, seed, gradients):
    return [f"straggler.delay_ms={delay_ms}", f"seed={seed}", f"budget.gradients={gradients}"]


def train(directory, n_ranks, delay_ms, seed, gradients):
    command = [MPIEXEC, "-n", str(n_ranks), sys.executable]
    command += ["-m", "hpc_dasgd", "train", str(CONFIG), "--run", str(directory)]
    for override in overrides(delay_ms, seed, gradients):
        command += ["--set", override]
    subprocess.run(
        command, env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, timeout=LONGEST_S, check=True
    )
    return open_run(directory)


def measures(run):
    return {"S_avg": run.staleness().as_dict()["S_avg"], "gradients_per_s": run.attributes["gradients"] / run.seconds}


def predict(source, n_ranks, delay_ms, gradients):
    cores = planning.available_cores()
    config = load_config(CONFIG, overrides(delay_ms, 0, gradients))
    machine = planning.Machine(n_ranks=n_ranks, cores=cores, ranks_per_node=n_ranks)
    return planning.plan(config, machine, times_from_run(source, n_ranks, cores))


def write(output, found):
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    lines = [
        "# Planned and measured",
        "",
        f"Made by `jobs/benchmarks/plan.py`; {found['mpi']}, {found['cores']} cores. Measured: median, and extremes.",
        "Each prediction with its ratio to that median.",
        "",
        "| ranks | straggler | | measured | from the same setting | ratio | from 2 ranks | ratio |",
        "|---" * 8 + "|",
    ]
    far = 0
    for setting in found["settings"]:
        for name in MEASURES:
            values = [run[name] for run in setting["measured"]]
            middle = statistics.median(values)
            cells = [f"{setting['n_ranks']}", f"{setting['delay_ms']} ms", name]
            cells.append(f"{middle:.4g} [{min(values):.4g}, {max(values):.4g}]")
            for predicted in setting["predicted"].values():
                ratio = predicted[name] / middle
                cells += [f"{predicted[name]:.4g}", f"{ratio:.2f}"]
                far += name == "S_avg" and abs(ratio - 1) > TOLERANCE
            lines.append(f"| {' | '.join(cells)} |")
    n_predictions = sum(len(setting["predicted"]) for setting in found["settings"])
    lines += ["", f"S_avg: {far} of {n_predictions} predictions are further than {TOLERANCE:.0%} from the median."]
    output.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
