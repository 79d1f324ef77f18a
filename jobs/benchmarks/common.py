"""Functions shared by benchmarks: arguments, samples taken in turns, tables, result files, and the machine."""

import argparse
import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import TypeVar

from hpc_dasgd.runtime import hardware

Name = TypeVar("Name")
Sample = TypeVar("Sample")


def argument_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser whose help is the docstring `description`, with the argument ``output``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="where to write, without suffix; a folder if there are several files")
    return parser


def sample_in_turns(
    measurements: Mapping[Name, Callable[[], Sample]], n_rounds: int, n_warm_up: int = 0
) -> dict[Name, list[Sample]]:
    """Call each measurement once per round, so that a temporary slowdown of a shared machine affects all alike.

    Returns the samples by name, in the order of the rounds, without those of the first `n_warm_up` rounds.
    """
    samples = {name: [] for name in measurements}
    for _ in range(n_warm_up + n_rounds):
        for name, measure in measurements.items():
            samples[name].append(measure())
    return {name: found[n_warm_up:] for name, found in samples.items()}


def median_of(rows: Iterable[Mapping[str, float]], name: str) -> float:
    """Return the median of one entry of each row."""
    return median(row[name] for row in rows)


def spread_text(values: Sequence[float], form: str = ".4g") -> str:
    """Format values as their median and, in brackets, the smallest and the largest; "-" if there are none."""
    if not values:
        return "-"
    return f"{median(values):{form}} [{min(values):{form}}, {max(values):{form}}]"


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return [_table_line(headings), "|---" * len(headings) + "|", *map(_table_line, rows)]


def _table_line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def write_outcome(output: Path, found: object, lines: Sequence[str]) -> None:
    """Write `found` to ``OUTPUT.json`` and `lines` to ``OUTPUT.md``. Creates the folder."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    output.with_suffix(".md").write_text("\n".join(lines) + "\n")


def read_runs(folder: Path) -> list[dict]:
    """Return the rows of ``runs.jsonl``; an empty list if there is no such file."""
    path = folder / "runs.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append_run(folder: Path, run: Mapping[str, object]) -> None:
    """Append a row to ``runs.jsonl``. Creates folder and file."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "runs.jsonl").open("a") as file:
        print(json.dumps(run), file=file)


def describe_machine(*packages: str) -> dict[str, str]:
    """Return processor, kernel, versions of Python and of those `packages` that are installed, and the time now."""
    cpu, n_cores = hardware.describe_hardware()["cpu"], len(os.sched_getaffinity(0))
    n_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    versions = {"python": platform.python_version()}
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "cpu": f"{cpu}, {n_cores} cores, {n_bytes / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "measured": datetime.now(UTC).isoformat(timespec="minutes"),
    }
