"""Kill ranks, damage files and fill disks, resume, and check that no wrong result is accepted and little work is lost.

    python -m jobs.benchmarks.faults.harness results/faults/harness-NAME

performs 200 trials; writes ``results/faults/harness-NAME.json`` (every trial) and ``.md``. Each trial is drawn from the
seed and its number: ``--only 17 --keep`` repeats one, as far as its moments can be repeated, and keeps its files. The
exit status is 1 if any of these conditions was violated:

- A run resumes from the newest undamaged checkpoints, and from no others. Its parameters are the first ones plus
  exactly the updates that these checkpoints count (see `counted`): bit for bit with sgd, up to rounding with others.
- No rank loses more work than that of ``checkpoint.every_s``, the time that writing a checkpoint takes, the longest
  time for which it did not run, and 0.3 s. For each newest checkpoint that was damaged the same is allowed once more.
- A run that cannot be resumed is refused with exit status 2, and its files are not changed.
- The logs open and contain as many gradients as there were updates; missing rows are reported.
- No job hangs, and none ends with a traceback.
"""

import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import h5py

from jobs.benchmarks.common import argument_parser, describe_machine, table, write_outcome
from jobs.benchmarks.faults import damage, trials
from jobs.benchmarks.mpiexec import mpi_library


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--trials", type=int, default=200, help="(default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default %(default)s)")
    parser.add_argument("--only", type=int, help="number of a single trial to perform")
    parser.add_argument("--keep", action="store_true", help="keep the files of the trials")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no trial after this time")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that disks are unmounted and jobs are ended
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    found = perform_all(options, folder)
    if options.keep:
        print(f"files: {folder}")
    else:
        shutil.rmtree(folder)
    if any(trial["wrong"] for trial in found):
        sys.exit(1)


def perform_all(options, folder: Path) -> list[dict]:
    """Perform the trials with files in `folder`; write the outcome after each."""
    can_mount = damage.can_mount(folder / "mount-test")
    about = {
        "seed": options.seed,
        "mpi": mpi_library(),
        "machine": describe_machine("hpc_dasgd", "numpy", "h5py", "mpi4py"),
        "hdf5": h5py.version.hdf5_version,
    }
    found, begun_s = [], time.monotonic()
    for number in range(options.trials) if options.only is None else [options.only]:
        if time.monotonic() - begun_s > options.seconds:
            break
        own_folder = folder / f"trial_{number:03d}"
        trial = trials.perform(number, options.seed, own_folder, can_mount)
        found.append(trial)
        print(f"{number}: {trial['kind']}: {trial['wrong'] or 'as expected'}", flush=True)
        if trial["wrong"]:
            arguments = f"OUTPUT --seed {options.seed} --only {number} --keep"
            print(f"to repeat it: python -m jobs.benchmarks.faults.harness {arguments}", flush=True)
        if not options.keep:
            shutil.rmtree(own_folder, ignore_errors=True)
        write_outcome(options.output, about | {"trials": found}, text(about, found))
    return found


def text(about: dict, found: list[dict]) -> list[str]:
    """Return the lines of the Markdown page."""
    machine = about["machine"]
    headings = ["fault", "trials", "resumed", "refused", "lost, median", "lost, max", "share of allowed, max", "wrong"]
    kinds = (*trials.KINDS, "all")
    groups = {kind: [trial for trial in found if kind in (trial["kind"], "all")] for kind in kinds}
    lines = [
        "# Faults",
        "",
        f"Made by `jobs/benchmarks/faults/harness.py`, seed {about['seed']}; {about['mpi']}; {machine['cpu']}; "
        f"{machine['kernel']}; {machine['versions']}, hdf5 {about['hdf5']}.",
        "Lost: seconds of work that a rank lost in a resume, over all ranks, except losses without a limit, which",
        "occur after a full disk or when an older generation had to be taken.",
        "",
        *table(headings, [table_row(kind, group) for kind, group in groups.items()]),
    ]
    skipped = {trial["skipped"] for trial in found if "skipped" in trial}
    lines += [f"\nSkipped: {reason}." for reason in sorted(skipped)]
    return lines + [f"\nTrial {trial['trial']}: {trial['wrong']}" for trial in found if trial["wrong"]]


def table_row(kind: str, found: list[dict]) -> list[object]:
    """Return the cells of one kind of fault."""
    done = [trial for trial in found if "skipped" not in trial]
    pairs = [pair for trial in done for pair in zip(trial["lost_s"], trial["allowed_s"], strict=True)]
    limited = [(lost_s, allowed_s) for lost_s, allowed_s in pairs if allowed_s is not None]
    lost = (
        [
            f"{median(lost_s for lost_s, _ in limited):.2f}",
            f"{max(lost_s for lost_s, _ in limited):.2f}",
            f"{max(lost_s / allowed_s for lost_s, allowed_s in limited):.0%}",
        ]
        if limited
        else ["-"] * 3
    )
    counts = [sum(trial[name] for trial in done) for name in ("resumed", "refused")]
    return [kind, len(done), *counts, *lost, sum(bool(trial["wrong"]) for trial in done)]


if __name__ == "__main__":
    main()
