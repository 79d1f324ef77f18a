"""One trial: a run is killed or damaged, resumed, and compared with the expected result."""

import os
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from hpc_dasgd.storage import checkpoint_file, layout
from jobs.benchmarks.faults import damage
from jobs.benchmarks.faults.counted import has_begun
from jobs.benchmarks.faults.expected import STEPSIZES, ExpectedRun
from jobs.benchmarks.faults.launched import Job
from jobs.benchmarks.faults.run_checker import ResumeRefused, RunChecker, WrongOutcome, require

KINDS = (
    "one rank killed",
    "all ranks killed",
    "killed in a checkpoint",
    "killed at the start",
    "killed in a resume",
    "stopped by a signal",
    "checkpoint cut short",
    "bit flipped in a checkpoint",
    "checkpoint removed",
    "checkpoint of another run or rank",
    "log damaged",
    "run.h5 damaged",
    "disk full",
)
N_RANKS = 4
_SETTINGS = [
    *[(exchange, optimizer) for exchange in ("complete", "tree") for optimizer in ("sgd", "sgd", "momentum", "adam")],
    *[("accumulate", "sgd")] * 2,
    *[("allreduce", optimizer) for optimizer in ("sgd", "momentum")],
]
_STEP_MS = 1.0
_MORE_GRADIENTS = 800  # computed by the last start, in about half a second


def perform(number: int, seed: int, folder: Path, can_mount: bool, every_s: tuple[float, float] = (0.3, 1.0)) -> dict:
    """Perform one trial, which is drawn from `(seed, number)`.

    Parameters
    ----------
    number, seed : int
        Number of the trial and seed of the series.
    folder : Path
        Created for all files of the trial.
    can_mount : bool
        True if small disks can be mounted.
    every_s : (float, float), s
        Range of ``checkpoint.every_s``.

    Returns
    -------
    dict
        The trial and its outcome; ``wrong`` is an error text, empty if everything is as expected.
    """
    kind = KINDS[number % len(KINDS)]
    if kind == "disk full" and not can_mount:
        return {"trial": number, "kind": kind, "skipped": "mounting a small disk needs root", "wrong": ""}
    trial, wrong, refused = _Trial(kind, np.random.default_rng([seed, number]), folder, every_s), "", False
    begun_s = time.monotonic()
    try:
        with damage.small_disk(trial.disk) if kind == "disk full" else nullcontext():
            trial.run()
    except ResumeRefused:
        refused = True
    except WrongOutcome as error:
        wrong = str(error)
    except Exception as error:  # reading the files of the run must not fail either
        wrong = f"{type(error).__name__}: {error}"
    return trial.settings | {
        "trial": number,
        "kind": kind,
        "what": trial.what,
        "starts": trial.n_starts,
        "resumed": trial.checker.n_resumed,
        "refused": refused,
        "lost_s": [round(lost.seconds, 4) for lost in trial.checker.lost],
        "allowed_s": [lost.allowed and round(lost.allowed, 4) for lost in trial.checker.lost],
        "seconds": round(time.monotonic() - begun_s, 1),
        "wrong": wrong,
    }


class _Trial:
    """A run, and the random generator that determines its faults."""

    def __init__(self, kind: str, rng: np.random.Generator, folder: Path, every_s: tuple[float, float]):
        self._kind, self._rng, self._folder = kind, rng, folder
        exchange, optimizer = _SETTINGS[rng.integers(len(_SETTINGS))]
        self._every_s = round(float(rng.uniform(*every_s)), 3)
        self.settings = {"exchange": exchange, "optimizer": optimizer, "every_s": self._every_s}
        self.disk = folder / "disk"
        self.disk.mkdir(parents=True)
        self.checker = RunChecker(self.disk / "run", ExpectedRun(exchange, optimizer), self._every_s)
        self.n_starts = 0
        self.what = []  # one text for each event

    def run(self) -> None:
        """Interrupt the run, damage its files, and resume it until it is complete."""
        if self._kind == "disk full":
            self._start(N_RANKS, self._fill_the_disk, seconds=float(self._rng.uniform(2, 4)))
            (self.disk / "ballast").unlink(missing_ok=True)
        else:
            self._start(N_RANKS, self._ends.get(self._kind, type(self)._kill_later).__get__(self))
            if self._kind == "killed in a resume":
                self._start(self._n_ranks(), self._kill_in_a_resume)
            elif self._rng.random() < 0.2:
                self._start(self._n_ranks(), self._kill_later)
            self._damage()
            if self._rng.random() < 0.2:
                self._start(self._n_ranks(), self._kill_later)
        self._complete()

    def _complete(self) -> None:
        found = self.checker.resume_point()
        n_before = 0 if found is None else int(found.versions.sum())
        status, errors = self._start(self._n_ranks(), lambda job: None, gradients=n_before + _MORE_GRADIENTS)
        missing = status == 1 and "missing: " in errors and self.checker.run_file_damaged
        require(status == 0 or missing, f"exit status {status} at the end: {errors[-1000:]}")
        if status == 0:
            self.checker.check_complete()

    def _start(self, n_ranks: int, end, seconds: float = 60.0, gradients: int = 10**7) -> tuple[int, str]:
        """Start or resume the run and call `end`, which may end it; return exit status and standard error."""
        checker = self.checker
        before = checker.before_start()
        self._record = self._folder / f"record_{self.n_starts}"
        self._record.mkdir()
        config = self._folder / f"config_{self.n_starts}.toml"
        config.write_text(self._toml(seconds, gradients))
        self.n_starts += 1
        with Job(n_ranks, config, checker.run, config.with_suffix(".err")) as job:
            end(job)
            status, errors = job.wait(), job.errors
        self.what.append(f"{n_ranks} ranks, exit status {status}")
        if end == self._fill_the_disk and status != 0:
            checker.log_damaged = True  # the log lacks at least the rows that were not written yet
        checker.check_ended(status, errors)
        checker.check_start(before, n_ranks, self._record, status, errors)
        checker.check_logs()
        if self._kind == "stopped by a signal" and end == self._stop:
            require(status == 75, f"exit status {status} instead of 75 after a signal: {errors[-500:]}")
        if end == self._fill_the_disk:
            checker.disk_was_full = True
            self._check_full(status, errors)
        return status, errors

    def _toml(self, seconds: float, gradients: int) -> str:
        exchange = {
            "complete": 'kind = "read"',
            "tree": 'kind = "read"\ntopology = "tree"',
        }.get(self.settings["exchange"], f'kind = "{self.settings["exchange"]}"')
        kind = self.settings["optimizer"]
        return f"""
[objective]
kind = "jobs.benchmarks.faults.counted:make"
record = "{self._record}"
step_ms = {_STEP_MS}
[optimizer]
kind = "{kind}"
stepsize = {STEPSIZES[kind]}
[exchange]
{exchange}
[budget]
seconds = {seconds}
gradients = {gradients}
[device]
dtype = "float64"
[checkpoint]
every_s = {self._every_s}
"""

    def _n_ranks(self) -> int:
        return int(self._rng.choice([4, 4, 4, 2, 3, 5]))

    # Ways to end a job.

    def _kill_later(self, job: Job) -> None:
        self._wait_for_gradients(job)
        self._pause(job, float(self._rng.uniform(0, 3 * self._every_s)))
        job.kill(None)

    def _kill_one(self, job: Job) -> None:
        self._wait_for_gradients(job)
        self._pause(job, float(self._rng.uniform(0, 3 * self._every_s)))
        job.kill(int(self._rng.integers(job.n_ranks)))

    def _kill_in_a_checkpoint(self, job: Job) -> None:
        self._wait_for_gradients(job)
        self._pause(job, float(self._rng.uniform(0, 2 * self._every_s)))
        folder, ends_s = self.checker.run / checkpoint_file.DIRECTORY, time.monotonic() + 3 * self._every_s
        while time.monotonic() < ends_s and not any(name.endswith(".part") for name in os.listdir(folder)):
            pass
        self._kill_one_or_all(job)

    def _kill_at_the_start(self, job: Job) -> None:
        self._wait_for_ranks(job)
        if self._rng.random() < 0.5:
            self._pause(job, float(self._rng.uniform(0, 2.5)))
        else:
            self._wait_for_file(
                job, self.checker.run / self._rng.choice([".", layout.RUN_FILE, checkpoint_file.DIRECTORY])
            )
        self._kill_one_or_all(job)

    def _kill_in_a_resume(self, job: Job) -> None:
        folder = layout.generation_directory(self.checker.run, self.checker.next_number())
        self._wait_for_ranks(job)
        if self._rng.random() < 0.4:
            self._pause(job, float(self._rng.uniform(0, 2.5)))
        else:
            self._wait_for_file(job, folder)
            self._pause(job, float(self._rng.choice([0.0, 0.003, 0.01, 0.05])))
        self._kill_one_or_all(job)

    def _stop(self, job: Job) -> None:
        self._wait_for_gradients(job)
        self._pause(job, float(self._rng.uniform(0, 2 * self._every_s)))
        job.stop(int(self._rng.integers(job.n_ranks)))

    def _fill_the_disk(self, job: Job) -> None:
        self._wait_for_gradients(job)
        self._pause(job, float(self._rng.uniform(0, 1)))
        damage.fill(self.disk / "ballast")
        self._full_end = str(self._rng.choice(["freed", "killed", "left full"]))
        self.what.append(f"disk full, {self._full_end}")
        self._pause(job, float(self._rng.uniform(0, 1)))
        if self._full_end == "freed":
            (self.disk / "ballast").unlink()
        elif self._full_end == "killed":
            job.kill(None)

    _ends = {  # noqa: RUF012 - by kind of trial
        "one rank killed": _kill_one,
        "killed in a checkpoint": _kill_in_a_checkpoint,
        "killed at the start": _kill_at_the_start,
        "stopped by a signal": _stop,
    }

    def _check_full(self, status: int, errors: str) -> None:
        """Check that training continued, that each rank warned once, and that the exit status is right."""
        promised = {"freed": status == 0, "left full": status == 1 and "missing: " in errors}
        require(
            promised.get(self._full_end, status not in (0, 2)), f"disk {self._full_end}, {status}: {errors[-1500:]}"
        )
        for rank in range(N_RANKS):
            for warning in (f"log of rank {rank} in", f"cannot write checkpoint checkpoint/rank_{rank:05d}"):
                n_warnings = sum(warning in line for line in errors.splitlines())
                require(n_warnings <= 1, f"{n_warnings} warnings {warning!r}, at most one is allowed")

    def _kill_one_or_all(self, job: Job) -> None:
        job.kill(int(self._rng.integers(job.n_ranks)) if self._rng.random() < 0.5 else None)

    def _wait_for_ranks(self, job: Job) -> None:
        while job.is_running and len(job.ranks()) < job.n_ranks:
            time.sleep(1e-3)

    def _wait_for_gradients(self, job: Job) -> None:
        while job.is_running and not all(has_begun(self._record, rank) for rank in range(job.n_ranks)):
            time.sleep(1e-3)

    def _wait_for_file(self, job: Job, path: Path) -> None:
        while job.is_running and not path.exists():
            time.sleep(1e-4)

    def _pause(self, job: Job, seconds: float) -> None:
        ends_s = time.monotonic() + seconds
        while job.is_running and (left := ends_s - time.monotonic()) > 0:
            time.sleep(min(left, 0.01))

    # Damage to the files of a run that has ended.

    def _damage(self) -> None:
        checker, rng = self.checker, self._rng
        cut_or_flip = damage.cut if rng.random() < 0.5 else damage.flip
        if self._kind == "log damaged":
            paths = [
                path
                for path in checker.run.rglob(layout.RANK_FILE_PATTERN)
                if path.parent.name != checkpoint_file.DIRECTORY
            ]
            self._change(cut_or_flip, paths)
            checker.log_damaged = True
        elif self._kind == "run.h5 damaged":
            self._change(cut_or_flip, checker.run.rglob(layout.RUN_FILE))
            checker.run_file_damaged = True
        elif self._kind in _DAMAGES:
            for _ in range(1 + int(rng.random() < 0.3)):
                files = checkpoint_file.list_checkpoints(checker.run)
                newest = {rank: checker.newest(rank) for rank in files}
                path = self._change(_DAMAGES[self._kind], [path for rank in files for path in files[rank]])
                checker.damaged[path] = path.read_bytes() if path.exists() else None
                for rank in newest:
                    checker.n_newest_damaged[rank] += newest[rank] == path

    def _change(self, how, paths) -> Path:
        paths = sorted(paths)
        path = paths[self._rng.integers(len(paths))]
        how(path, self._rng)
        self.what.append(f"{how.__name__}: {path.relative_to(self.checker.run)}")
        return path


_DAMAGES = {
    "checkpoint cut short": damage.cut,
    "bit flipped in a checkpoint": damage.flip,
    "checkpoint removed": damage.remove,
    "checkpoint of another run or rank": damage.swap_checkpoint,
}
