"""Runs are killed, their files damaged, their disks filled, and resumed: is ever a wrong result accepted, or much lost?

    python -m jobs.benchmarks.faults.harness results/faults-NAME

performs 200 trials with the ``mpiexec`` beside this Python; writes ``results/faults-NAME.json`` (every trial) and
``.md``. Each is drawn from the seed and its number: ``--only 17 --keep`` repeats one, as far as its moments can be
repeated, and leaves its files. The exit status is 1 where anything was not as it must be:

- A run goes on from the newest checkpoints that nobody damaged, and from no others. Its parameters are the first ones
  and the updates that these count, all of them and no other (`counted`): to the bit with sgd, to rounding with others.
- No rank loses more than ``checkpoint.every_s``, the time that a checkpoint takes, the longest time that it did not
  run, and 0.3 s. For each newest checkpoint that was destroyed the same is allowed once more.
- What cannot be resumed is refused with exit status 2 and left as it is.
- The logs open and say as many gradients as there were updates; what is missing is named.
- Nothing hangs, and nothing ends with a traceback.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import mpi4py
import numpy as np

import hpc_dasgd
from jobs.benchmarks.faults import damage, trials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--trials", type=int, default=200, help="(default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default %(default)s)")
    parser.add_argument("--only", type=int, help="one trial")
    parser.add_argument("--keep", action="store_true", help="leave the files of trials")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no trial after these")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that disks are unmounted and jobs ended
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    mounts = damage.may_mount(folder / "tried")
    found, begun_s = [], time.monotonic()
    for number in range(options.trials) if options.only is None else [options.only]:
        if time.monotonic() - begun_s > options.seconds:
            break
        place = folder / f"trial_{number:03d}"
        found.append(trials.perform(number, options.seed, place, mounts))
        print(f"{number}: {found[-1]['kind']}: {found[-1]['wrong'] or 'as it must be'}", flush=True)
        if found[-1]["wrong"]:
            print(
                "to repeat it: python -m jobs.benchmarks.faults.harness OUTPUT"
                f" --seed {options.seed} --only {number} --keep",
                flush=True,
            )
        if not options.keep:
            shutil.rmtree(place, ignore_errors=True)
        write(options.output, options.seed, found)
    if options.keep:
        print(f"files: {folder}")
    else:
        shutil.rmtree(folder)
    if any(trial["wrong"] for trial in found):
        sys.exit(1)


def write(output: Path, seed: int, found: list[dict]) -> None:
    about = {
        "seed": seed,
        "mpi": _mpi_library(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "versions": {
            "hpc_dasgd": hpc_dasgd.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "h5py": h5py.__version__,
            "hdf5": h5py.version.hdf5_version,
            "mpi4py": mpi4py.__version__,
        },
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps(about | {"trials": found}, indent=1) + "\n")
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [
        "# Faults",
        "",
        f"Made by `jobs/benchmarks/faults/harness.py`, seed {seed}; {about['mpi']}; {about['machine']}; {versions}.",
        "Seconds of work that a rank lost in a resume, of all ranks; without those of which nothing is promised,",
        "because the disk was full or an older generation had to be taken.",
        "",
        "| fault | trials | resumed | refused | lost, median | lost, max | share of allowed, max | wrong |",
        "|---" * 8 + "|",
    ]
    for kind in (*trials.KINDS, "all"):
        lines.append(_line(kind, [trial for trial in found if kind in (trial["kind"], "all")]))
    skipped = {trial["skipped"] for trial in found if "skipped" in trial}
    lines += [f"\nNot done: {reason}." for reason in sorted(skipped)]
    lines += [f"\nTrial {trial['trial']}: {trial['wrong']}" for trial in found if trial["wrong"]]
    output.with_suffix(".md").write_text("\n".join(lines) + "\n")


def _line(kind: str, found: list[dict]) -> str:
    done = [trial for trial in found if "skipped" not in trial]
    lost = [
        pair for trial in done for pair in zip(trial["lost_s"], trial["allowed_s"], strict=True) if pair[1] is not None
    ]
    middle = f"{statistics.median(seconds for seconds, _ in lost):.2f}" if lost else "-"
    most = f"{max(seconds for seconds, _ in lost):.2f}" if lost else "-"
    share = f"{max(seconds / allowed for seconds, allowed in lost):.0%}" if lost else "-"
    numbers = [sum(trial[name] for trial in done) for name in ("resumed", "refused")]
    cells = [kind, len(done), *numbers, middle, most, share, sum(bool(trial["wrong"]) for trial in done)]
    return f"| {' | '.join(map(str, cells))} |"


def _mpi_library() -> str:
    """Which MPI it is; asked another process, since one in which MPI runs should start no mpiexec."""
    command = [sys.executable, "-m", "mpi4py", "--mpi-lib-version"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return " ".join(said.splitlines()[0].strip("\0").split())


if __name__ == "__main__":
    main()
