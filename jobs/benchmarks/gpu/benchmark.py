"""Measure training on a GPU: gradients compared with PyTorch's, several ranks on one device, copies of windows.

    python -m jobs.benchmarks.gpu.benchmark results/gpu-NAME
    python -m jobs.benchmarks.gpu.benchmark results/gpu-NAME --device cpu --small

The first command is for a node with a GPU, CuPy and PyTorch, and takes up to 8 minutes; the second one tries everything
on a node without a GPU. Both write ``results/gpu-NAME.json`` (every sample) and ``.md`` after each part, and print the
latter at the end. Each part is a program of its own, in this package, with a time limit. Every result is compared with
NumPy in float64 before it is timed. Failures and wrong results are listed with their reason in the page, and make the
exit status 1.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import NamedTuple

from jobs.benchmarks.common import argument_parser, describe_machine, table, write_outcome
from jobs.benchmarks.gpu.rounds import hidden_share
from jobs.benchmarks.mpiexec import ENVIRONMENT, MPIEXEC

LEAST_S = 10  # a part is not started with less time left
GRACE_S = 5  # between SIGTERM and SIGKILL
GRADIENTS, RANKS, COPIES = "gradients", "ranks", "copies"
# Lowest acceptable ratios on an H200.
MARKS = {"mlp": 0.9, "cnn": 1 / 1.5, "deep cnn": 1 / 1.5, RANKS: 0.9, COPIES: 0.8}
MARKED_RANKS = 2
OWN, EAGER = "hpc_dasgd", "PyTorch eager"


class Part(NamedTuple):
    """A program with its time limit and its number of BLAS threads."""

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
            outcome = {
                "rows": [],
                "failed": f"the time limit of {options.minutes:g} minutes was reached before it started",
            }
        else:
            print(name, file=sys.stderr, flush=True)
            outcome = run(part, min(part.limit_s, left_s))
        found["parts"][name] = {"kind": part.kind, **outcome}
        write_outcome(options.output, found, text(found).splitlines())
    print(text(found))
    sys.exit(1 if failures(found) else 0)


def arguments():
    parser = argument_parser(__doc__)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="gpu", help="(default %(default)s)")
    parser.add_argument("--small", action="store_true", help="small networks and few ranks, to try the program")
    parser.add_argument(
        "--minutes", type=float, default=8, help="time limit of all parts together (default %(default)s)"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="PART",
        help="parts to run, such as 'mlp float32', '2 ranks', copies (default: all)",
    )
    options = parser.parse_args()
    unknown = set(options.only or []) - set(parts(options))
    if unknown:
        parser.error(f"unknown part {min(unknown)!r}; one of: {', '.join(parts(options))}")
    return options


def parts(options) -> dict[str, Part]:
    """Return the parts by name, the most important ones first, because the time limit may be reached."""
    python, package = sys.executable, "jobs.benchmarks.gpu"
    common = ["--device", options.device] + ["--small"] * options.small
    n_threads = 1 if options.device == "cpu" else len(os.sched_getaffinity(0))  # used on a GPU by the reference only

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
    """Run a part to its end or its time limit; return its ``rows``, and ``failed`` and ``log`` if it failed.

    All processes of the part have ended when this returns.
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
    """End the process group of a program that may still run. On SIGTERM the launcher of Open MPI ends its ranks too."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, number)
            process.wait(GRACE_S)


def reason(log: str) -> str:
    """Return the line of a log that names the last error, or else its last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"^[\w.]*(Error|Exception|Interrupt)\b|\bsignal \d|BY SIGNAL", line)]
    return (errors or lines or ["it printed nothing"])[-1]


def machine() -> dict[str, str]:
    from hpc_dasgd.arrays.devices import gpus

    gpu = ", ".join(name for name, _ in gpus() or [("none", "")])
    return {"gpu": gpu} | describe_machine("numpy", "mpi4py", "cupy-cuda13x", "cupy-cuda12x", "torch")


def failures(found: dict) -> list[str]:
    """Return one line for each failure."""
    lines = []
    for name, part in found["parts"].items():
        lines += [f"{name}: {part['failed']}"] if "failed" in part else []
        for row in part["rows"]:
            contender = f", {row['contender']}" if "contender" in row else ""
            lines += [f"{name}{contender}: {row['failed']}"] if "failed" in row else []
    return lines


def text(found: dict) -> str:
    """Return the Markdown page: medians, and their ratios to the baselines."""
    rows = {kind: [] for kind in (GRADIENTS, RANKS, COPIES)}
    for part in found["parts"].values():
        rows[part["kind"]] += part["rows"]
    on_gpu = found["device"] == "gpu"
    marked = on_gpu and not found["small"]
    lines = ["# Training on a GPU" if on_gpu else "# The benchmark of GPUs, tried without one", ""]
    lines += [f"Made by `{found['job']}`: medians of rounds in turns; every sample is in the `.json` beside this.", ""]
    lines += [f"- {name}: {value}" for name, value in found["machine"].items()]
    lines += ["- marks: the lowest ratios that are acceptable on an H200"] if marked else []
    for kind, (title, make_table, note) in SECTIONS.items():
        lines += ["", f"## {title}", "", *make_table(rows[kind], marked), "", note]
    failed = failures(found)
    lines += ["", f"## Failed: {len(failed)}", "", *(f"- {failure}" for failure in failed)] if failed else []
    return "\n".join(lines)


def gradient_table(rows: list[dict], marked: bool) -> list[str]:
    eager_s = {
        (row["network"], row["precision"]): median(row["seconds"])
        for row in rows
        if row["contender"] == EAGER and "seconds" in row
    }
    cells = []
    for row in rows:
        mark = MARKS[row["network"]] if marked and row["contender"] == OWN else None
        time_s = median(row["seconds"]) if "seconds" in row else None
        baseline_s = eager_s.get((row["network"], row["precision"]))
        speed = ratio(baseline_s and time_s and baseline_s / time_s, mark)
        names = [row[name] for name in ("network", "precision", "contender")]
        cells.append([*names, number(time_s and 1e3 * time_s, ".3f"), speed, number(row.get("error"), ".1e")])
    return table(["network", "precision", "by", "ms", "speed of PyTorch eager", "error"], cells)


def ranks_table(rows: list[dict], marked: bool) -> list[str]:
    cells = []
    for row in sorted(rows, key=lambda row: row["n_ranks"]):
        n_ranks, none, read = row["n_ranks"], median(row["none"]), median(row["read"])
        hidden = hidden_share(n_ranks / none, n_ranks / read, row["exchange_s"])
        mark = MARKS[RANKS] if marked and n_ranks == MARKED_RANKS else None
        cells.append(
            [
                str(n_ranks),
                f"{row['n_params']:,}",
                f"{none:.1f}",
                f"{read:.1f}",
                ratio(read / none, mark),
                *(f"{row[name]:.2f}" for name in ("S_avg", "S_max", "reads")),
                f"{1e3 * row['exchange_s']:.2f}",
                # One rank has no neighbour to read from; its publication costs less than its updates.
                f"{hidden:.2f}" if n_ranks > 1 else "-",
            ]
        )
    headings = ["ranks", "parameters", "gradients/s alone", "with read", "ratio", "S_avg", "S_max"]
    return table([*headings, "reads per gradient", "exchange alone, ms", "of it hidden"], cells)


def copies_table(rows: list[dict], marked: bool) -> list[str]:
    cells = []
    for row in rows:
        window, limit = (row["bytes"] / median(row[memory]) / 1e9 for memory in ("window", "limit"))
        rates = [f"{row['bytes'] / 1e6:.0f}", f"{window:.1f}", f"{limit:.1f}"]
        rates.append(ratio(window / limit, MARKS[COPIES] if marked else None))
        cells.append([row["direction"], *rates, "yes" if row["page_locked"] else "NO"])
    return table(["copy", "MB", "GB/s", "page-locked memory, GB/s", "ratio", "window page-locked"], cells)


SECTIONS = {
    GRADIENTS: (
        "One gradient",
        gradient_table,
        "Inputs are on the device. Error: norm of the difference from the gradient of NumPy in float64, relative to\n"
        "that gradient's norm.",
    ),
    RANKS: (
        "Ranks on one device",
        ranks_table,
        "Gradients/s are those of all ranks together. Reads per gradient are reads of whole models. Exchange alone:\n"
        "one publication and one read of each other rank, one after another. Of it hidden: the share of that time by\n"
        "which a step with `read` is not longer than one without; below 0 if sums and the like cost more than these\n"
        "copies.",
    ),
    COPIES: (
        "Copies",
        copies_table,
        "The limit of a copy's bandwidth is that of memory which was allocated page-locked.",
    ),
}


def number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def ratio(value: float | None, mark: float | None) -> str:
    """Format a ratio and, if there is a mark, whether it reaches the mark."""
    if value is None or mark is None:
        return number(value, ".2f")
    return f"{value:.2f} ({'reaches' if value >= mark else 'BELOW'} {mark:.2f})"


if __name__ == "__main__":
    main()
