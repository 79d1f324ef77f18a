"""Training on a GPU: gradients against PyTorch's, several ranks on one device, copies to and from windows.

    python -m jobs.benchmarks.gpu.benchmark results/gpu-NAME
    python -m jobs.benchmarks.gpu.benchmark results/gpu-NAME --device cpu --small

The first line is for a node with a GPU, CuPy and PyTorch, and takes up to 8 minutes; the second tries out everything on
one without. Writes ``results/gpu-NAME.json`` (every sample) and ``.md`` after each part, and prints the latter at the
end. Each part is a program of its own, in this package, with a time limit. All is compared with NumPy in float64 before
it is timed. Whatever fails or is wrong stands in the table with its reason, and makes the exit status 1.
"""

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import NamedTuple

from jobs.benchmarks.gpu.rounds import hidden_share
from jobs.benchmarks.mpiexec import ENVIRONMENT, MPIEXEC

LEAST_S = 10  # a part is not begun with less time left
GRACE_S = 5
GRADIENTS, RANKS, COPIES = "gradients", "ranks", "copies"
# What is wanted on an H200.
MARKS = {"mlp": 0.9, "cnn": 1 / 1.5, "deep cnn": 1 / 1.5, RANKS: 0.9, COPIES: 0.8}
MARKED_RANKS = 2
OWN, EAGER = "hpc_dasgd", "PyTorch eager"


class Part(NamedTuple):
    """A program, and how long it may take."""

    kind: str
    command: list[str]
    limit_s: float
    n_threads: int = 1


def main():
    options = arguments()
    found = {
        "job": "jobs/benchmarks/gpu/benchmark.py",
        "device": options.device,
        "small": options.small,
        "machine": machine(),
    }
    found["parts"] = {}
    ends_s = time.monotonic() + 60 * options.minutes
    for name, part in parts(options).items():
        if options.only and name not in options.only:
            continue
        left_s = ends_s - time.monotonic()
        if left_s < LEAST_S:
            outcome = {"rows": [], "failed": f"no time was left of {options.minutes:g} minutes"}
        else:
            print(name, file=sys.stderr, flush=True)
            outcome = run(part, min(part.limit_s, left_s))
        found["parts"][name] = {"kind": part.kind, **outcome}
        write(options.output, found)
    print(text(found))
    sys.exit(1 if failures(found) else 0)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="gpu", help="(default %(default)s)")
    parser.add_argument("--small", action="store_true", help="small networks and few ranks: to try it out")
    parser.add_argument("--minutes", type=float, default=8, help="for everything together (default %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="PART", help="such as 'mlp float32', '2 ranks', copies")
    options = parser.parse_args()
    unknown = set(options.only or []) - set(parts(options))
    if unknown:
        parser.error(f"unknown part {min(unknown)!r}; one of: {', '.join(parts(options))}")
    return options


def parts(options) -> dict[str, Part]:
    """The parts by name, the more important ones first, since the time may not suffice."""
    python, package = sys.executable, "jobs.benchmarks.gpu"
    common = ["--device", options.device] + ["--small"] * options.small
    n_threads = 1 if options.device == "cpu" else len(os.sched_getaffinity(0))  # else for the reference alone

    def gradients(network, precision):
        command = [python, "-m", f"{package}.gradients", "OUTPUT", network, precision, *common]
        return Part(GRADIENTS, command, 90, n_threads)

    def launched(kind, n_ranks, limit_s):
        program = [python, "-m", "mpi4py", "-m", f"{package}.{kind}", "OUTPUT", *common]
        return Part(kind, [MPIEXEC or "mpiexec", "-n", str(n_ranks), *program], limit_s)

    found = {"mlp float32": gradients("mlp", "float32"), "copies": launched(COPIES, 2, 60)}
    found["2 ranks"] = launched(RANKS, 2, 120)
    found |= {f"{network} float32": gradients(network, "float32") for network in ("cnn", "deep cnn")}
    if not options.small:
        found |= {f"{n} ranks": launched(RANKS, n, 120) for n in (4, 8)}
    found["1 rank"] = launched(RANKS, 1, 120)
    if options.device == "gpu":
        found |= {f"{network} tf32": gradients(network, "tf32") for network in ("mlp", "cnn", "deep cnn")}
    return found


def run(part: Part, limit_s: float) -> dict:
    """Run a part to its end or its time limit: its ``rows``, and ``failed`` and ``log`` where something went wrong.

    All of its processes end with it.
    """
    begun_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        output, log = Path(folder, "rows.json"), Path(folder, "log")
        command = [str(output) if word == "OUTPUT" else word for word in part.command]
        environment = ENVIRONMENT | {"OMP_NUM_THREADS": str(part.n_threads)}
        with open(log, "w") as file:
            streams = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT}
            try:
                process = subprocess.Popen(command, env=environment, start_new_session=True, **streams)
            except OSError as error:
                return {"rows": [], "failed": f"cannot be started: {error}"}
        try:
            status = process.wait(limit_s)
            failed = f"exit status {status}: {reason(log.read_text(errors='replace'))}" if status else ""
        except subprocess.TimeoutExpired:
            failed = f"took longer than {limit_s:.0f} s"
        finally:
            end(process)
        rows = json.loads(output.read_text()) if output.exists() else []
        outcome = {"rows": rows, "took_s": round(time.monotonic() - begun_s, 1)}
        return outcome | ({"failed": failed, "log": log.read_text(errors="replace")[-4000:]} if failed else {})


def end(process: subprocess.Popen) -> None:
    """End a program that may still run, and all that it started; what asks Open MPI nicely ends its ranks too."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, number)
            process.wait(GRACE_S)


def reason(log: str) -> str:
    """The line of a log that says best why the program failed: of the last error, else the last one."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"^[\w.]*(Error|Exception|Interrupt)\b|\bsignal \d|BY SIGNAL", line)]
    return (errors or lines or ["it said nothing"])[-1]


def machine() -> dict[str, str]:
    from hpc_dasgd.arrays.devices import gpus
    from hpc_dasgd.runtime import hardware as of_package

    versions = {"python": platform.python_version()}
    for package in ("numpy", "mpi4py", "cupy-cuda13x", "cupy-cuda12x", "torch"):
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    cpu = of_package.describe_hardware()["cpu"]
    return {
        "gpu": ", ".join(name for name, _ in gpus() or [("none", "")]),
        "cpu": f"{cpu}, {len(os.sched_getaffinity(0))} cores",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "measured": datetime.now(UTC).isoformat(timespec="minutes"),
    }


def write(output: Path, found: dict) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    output.with_suffix(".md").write_text(text(found) + "\n")


def failures(found: dict) -> list[str]:
    """One line for each thing that failed."""
    lines = []
    for name, part in found["parts"].items():
        lines += [f"{name}: {part['failed']}"] if "failed" in part else []
        for row in part["rows"]:
            who = f", {row['contender']}" if "contender" in row else ""
            lines += [f"{name}{who}: {row['failed']}"] if "failed" in row else []
    return lines


def text(found: dict) -> str:
    """Medians, and what they are held against, as Markdown."""
    rows = {kind: [] for kind in (GRADIENTS, RANKS, COPIES)}
    for part in found["parts"].values():
        rows[part["kind"]] += part["rows"]
    on_gpu = found["device"] == "gpu"
    marked = on_gpu and not found["small"]
    lines = ["# Training on a GPU" if on_gpu else "# The benchmark of GPUs, tried out without one", ""]
    lines += [f"Made by `{found['job']}`: medians of rounds in turns; every sample is in the `.json` beside this.", ""]
    lines += [f"- {name}: {value}" for name, value in found["machine"].items()]
    lines += ["- marks: those wanted on an H200"] if marked else []
    for kind, (title, table, note) in SECTIONS.items():
        lines += ["", f"## {title}", "", *table(rows[kind], marked), "", note]
    failed = failures(found)
    lines += ["", f"## Failed: {len(failed)}", "", *(f"- {line}" for line in failed)] if failed else []
    return "\n".join(lines)


def gradient_table(rows: list[dict], marked: bool) -> list[str]:
    eager = {(row["network"], row["precision"]): row for row in rows if row["contender"] == EAGER}
    lines = header("network", "precision", "by", "ms", "speed of PyTorch eager", "error")
    for row in rows:
        mark = MARKS[row["network"]] if marked and row["contender"] == OWN else None
        time_s = median(row["seconds"]) if "seconds" in row else None
        of = eager.get((row["network"], row["precision"]), {}).get("seconds")
        speed = ratio(of and time_s and median(of) / time_s, mark)
        cells = [row["network"], row["precision"], row["contender"], number(time_s and 1e3 * time_s, ".3f")]
        lines.append(line(*cells, speed, number(row.get("error"), ".1e")))
    return lines


def ranks_table(rows: list[dict], marked: bool) -> list[str]:
    names = "ranks", "parameters", "gradients/s alone", "with read", "ratio", "S_avg", "S_max", "reads per gradient"
    lines = header(*names, "exchange alone, ms", "of it hidden")
    for row in sorted(rows, key=lambda row: row["n_ranks"]):
        none, read = median(row["none"]), median(row["read"])
        hidden = hidden_share(row["n_ranks"] / none, row["n_ranks"] / read, row["exchange_s"])
        mark = MARKS[RANKS] if marked and row["n_ranks"] == MARKED_RANKS else None
        cells = [str(row["n_ranks"]), f"{row['n_params']:,}", f"{none:.1f}", f"{read:.1f}", ratio(read / none, mark)]
        cells += [f"{row[name]:.2f}" for name in ("S_avg", "S_max", "reads")]
        # One rank has nobody to read; what it publishes costs next to nothing, and its updates more than that.
        lines.append(line(*cells, f"{1e3 * row['exchange_s']:.2f}", f"{hidden:.2f}" if row["n_ranks"] > 1 else "-"))
    return lines


def copies_table(rows: list[dict], marked: bool) -> list[str]:
    lines = header("copy", "MB", "GB/s", "page-locked memory, GB/s", "ratio", "window page-locked")
    for row in rows:
        window, limit = (row["bytes"] / median(row[place]) / 1e9 for place in ("window", "limit"))
        cells = [row["direction"], f"{row['bytes'] / 1e6:.0f}", f"{window:.1f}", f"{limit:.1f}"]
        cells += [ratio(window / limit, MARKS[COPIES] if marked else None), "yes" if row["page_locked"] else "NO"]
        lines.append(line(*cells))
    return lines


SECTIONS = {
    GRADIENTS: (
        "One gradient",
        gradient_table,
        "Inputs are on the device. Error: of the gradient, against NumPy in float64, relative to its norm.",
    ),
    RANKS: (
        "Ranks on one device",
        ranks_table,
        "Gradients/s are of all ranks together. Reads per gradient: of whole models. Exchange alone: a publication\n"
        "and a reading of each other rank, one after another. Hidden is what of it a step with `read` is not longer\n"
        "than one without; below 0 where sums and the like cost more than these copies.",
    ),
    COPIES: ("Copies", copies_table, "Page-locked memory, allocated as such, is the limit of what a copy can reach."),
}


def header(*names: str) -> list[str]:
    return [line(*names), "|---" * len(names) + "|"]


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def ratio(value: float | None, mark: float | None) -> str:
    """A ratio, and whether it reaches the mark, if there is one."""
    if value is None or mark is None:
        return number(value, ".2f")
    return f"{value:.2f} ({'reaches' if value >= mark else 'BELOW'} {mark:.2f})"


if __name__ == "__main__":
    main()
