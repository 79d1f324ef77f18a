"""One trial: a run is killed or damaged, resumed, and held against what it must be."""

import os
import shutil
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np

from hpc_dasgd.storage import checkpoint_file, layout
from jobs.benchmarks.faults import damage
from jobs.benchmarks.faults.counted import has_begun
from jobs.benchmarks.faults.expected import STEPSIZES, Model
from jobs.benchmarks.faults.launched import Job
from jobs.benchmarks.faults.ledger import Ledger, Refused, Wrong, require

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
_MORE_GRADIENTS = 800  # of the last start, about half a second


def perform(number: int, seed: int, folder: Path, mounts: bool, every_s: tuple[float, float] = (0.3, 1.0)) -> dict:
    """One trial, all of it drawn from `(seed, number)`.

    Parameters
    ----------
    number, seed : int
    folder : Path
        Empty, for all its files.
    mounts : bool
        Whether small disks can be mounted.
    every_s : (float, float)
        From where to where ``checkpoint.every_s`` is.

    Returns
    -------
    dict
        ``wrong`` in it is a text; empty where all is as it must be.
    """
    kind = KINDS[number % len(KINDS)]
    if kind == "disk full" and not mounts:
        return {"trial": number, "kind": kind, "skipped": "mounting a small disk needs root", "wrong": ""}
    trial, wrong, refused = _Trial(kind, np.random.default_rng([seed, number]), folder, every_s), "", False
    begun_s = time.monotonic()
    try:
        with damage.small_disk(trial.disk) if kind == "disk full" else nullcontext():
            trial.run()
    except Refused:
        refused = True
    except Wrong as error:
        wrong = str(error)
    except Exception as error:  # of reading what the run left, which must not fail either
        wrong = f"{type(error).__name__}: {error}"
    return trial.settings | {
        "trial": number,
        "kind": kind,
        "what": trial.what,
        "starts": trial.n_starts,
        "resumed": trial.ledger.n_resumed,
        "refused": refused,
        "lost_s": [round(lost.seconds, 4) for lost in trial.ledger.lost],
        "allowed_s": [lost.allowed and round(lost.allowed, 4) for lost in trial.ledger.lost],
        "seconds": round(time.monotonic() - begun_s, 1),
        "wrong": wrong,
    }


class _Trial:
    def __init__(self, kind: str, rng: np.random.Generator, folder: Path, every_s: tuple[float, float]):
        self._kind, self._rng, self._folder = kind, rng, folder
        exchange, optimizer = _SETTINGS[rng.integers(len(_SETTINGS))]
        self._every_s = round(float(rng.uniform(*every_s)), 3)
        self.settings = {"exchange": exchange, "optimizer": optimizer, "every_s": self._every_s}
        self.disk = folder / "disk"
        self.disk.mkdir(parents=True)
        self.ledger = Ledger(self.disk / "run", Model(exchange, optimizer), self._every_s)
        self.n_starts = 0
        self.what = []  # happened

    def run(self) -> None:
        """Interrupt the run, do damage, resume it until it is complete."""
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
        found = self.ledger.source()
        n_before = 0 if found is None else int(found.versions.sum())
        status, errors = self._start(self._n_ranks(), lambda job: None, gradients=n_before + _MORE_GRADIENTS)
        missing = status == 1 and "missing: " in errors and self.ledger.bad_run_file
        require(status == 0 or missing, f"exit status {status} at the end: {errors[-1000:]}")
        if status == 0:
            self.ledger.check_complete()

    def _start(self, n_ranks: int, end, seconds: float = 60.0, gradients: int = 10**7) -> tuple[int, str]:
        """Start the run, or go on with it, until `end` ends it; returns exit status and standard error."""
        ledger = self.ledger
        found, number, before = ledger.source(), ledger.next_number(), ledger.content()
        self._record = self._folder / f"record_{self.n_starts}"
        self._record.mkdir()
        config = self._folder / f"config_{self.n_starts}.toml"
        config.write_text(self._toml(seconds, gradients))
        self.n_starts += 1
        with Job(n_ranks, config, ledger.run, config.with_suffix(".err")) as job:
            end(job)
            status, errors = job.wait(), job.errors
        self.what.append(f"{n_ranks} ranks, exit status {status}")
        if end == self._fill_the_disk and status != 0:
            ledger.bad_log = True  # it lacks at least what had waited for room
        ledger.check_ended(status, errors)
        ledger.check_start(found, number, n_ranks, self._record, before, (status, errors))
        ledger.check_logs()
        if self._kind == "stopped by a signal" and end == self._stop:
            require(status == 75, f"exit status {status} after a signal: {errors[-500:]}")
        if end == self._fill_the_disk:
            ledger.full = True
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

    # What ends a job.

    def _kill_later(self, job: Job) -> None:
        self._computes(job)
        self._pause(job, float(self._rng.uniform(0, 3 * self._every_s)))
        job.kill(None)

    def _kill_one(self, job: Job) -> None:
        self._computes(job)
        self._pause(job, float(self._rng.uniform(0, 3 * self._every_s)))
        job.kill(int(self._rng.integers(job.n_ranks)))

    def _kill_in_a_checkpoint(self, job: Job) -> None:
        self._computes(job)
        self._pause(job, float(self._rng.uniform(0, 2 * self._every_s)))
        folder, ends_s = self.ledger.run / checkpoint_file.DIRECTORY, time.monotonic() + 3 * self._every_s
        while time.monotonic() < ends_s and not any(name.endswith(".part") for name in os.listdir(folder)):
            pass
        self._kill_some(job)

    def _kill_at_the_start(self, job: Job) -> None:
        self._runs(job)
        if self._rng.random() < 0.5:
            self._pause(job, float(self._rng.uniform(0, 2.5)))
        else:
            self._appears(job, self.ledger.run / self._rng.choice([".", layout.RUN_FILE, checkpoint_file.DIRECTORY]))
        self._kill_some(job)

    def _kill_in_a_resume(self, job: Job) -> None:
        folder = layout.generation_directory(self.ledger.run, self.ledger.next_number())
        self._runs(job)
        if self._rng.random() < 0.4:
            self._pause(job, float(self._rng.uniform(0, 2.5)))
        else:
            self._appears(job, folder)
            self._pause(job, float(self._rng.choice([0.0, 0.003, 0.01, 0.05])))
        self._kill_some(job)

    def _stop(self, job: Job) -> None:
        self._computes(job)
        self._pause(job, float(self._rng.uniform(0, 2 * self._every_s)))
        job.stop(int(self._rng.integers(job.n_ranks)))

    def _fill_the_disk(self, job: Job) -> None:
        self._computes(job)
        self._pause(job, float(self._rng.uniform(0, 1)))
        damage.fill(self.disk / "ballast")
        self._full_end = str(self._rng.choice(["freed", "killed", "left full"]))
        self.what.append(f"disk full, {self._full_end}")
        self._pause(job, float(self._rng.uniform(0, 1)))
        if self._full_end == "freed":
            (self.disk / "ballast").unlink()
        elif self._full_end == "killed":
            job.kill(None)

    _ends = {  # noqa: RUF012, by kind of trial
        "one rank killed": _kill_one,
        "killed in a checkpoint": _kill_in_a_checkpoint,
        "killed at the start": _kill_at_the_start,
        "stopped by a signal": _stop,
    }

    def _check_full(self, status: int, errors: str) -> None:
        """Training went on; each rank said once what was wrong, and the end is honest."""
        promised = {"freed": status == 0, "left full": status == 1 and "missing: " in errors}
        require(
            promised.get(self._full_end, status not in (0, 2)), f"disk {self._full_end}, {status}: {errors[-1500:]}"
        )
        for rank in range(N_RANKS):
            for warning in (f"log of rank {rank} in", f"cannot write checkpoint checkpoint/rank_{rank:05d}"):
                n_said = sum(warning in line for line in errors.splitlines())
                require(n_said <= 1, f"{n_said} times {warning!r}")

    def _kill_some(self, job: Job) -> None:
        job.kill(int(self._rng.integers(job.n_ranks)) if self._rng.random() < 0.5 else None)

    def _runs(self, job: Job) -> None:
        while job.goes_on and len(job.ranks()) < job.n_ranks:
            time.sleep(1e-3)

    def _computes(self, job: Job) -> None:
        while job.goes_on and not all(has_begun(self._record, rank) for rank in range(job.n_ranks)):
            time.sleep(1e-3)

    def _appears(self, job: Job, path: Path) -> None:
        while job.goes_on and not path.exists():
            time.sleep(1e-4)

    def _pause(self, job: Job, seconds: float) -> None:
        ends_s = time.monotonic() + seconds
        while job.goes_on and (left := ends_s - time.monotonic()) > 0:
            time.sleep(min(left, 0.01))

    # What happens to the files of a dead run.

    def _damage(self) -> None:
        ledger, rng = self.ledger, self._rng
        cut_or_flip = damage.cut if rng.random() < 0.5 else damage.flip
        if self._kind == "log damaged":
            paths = [
                path for path in ledger.run.rglob(layout.RANK_FILES) if path.parent.name != checkpoint_file.DIRECTORY
            ]
            self._change(cut_or_flip, paths)
            ledger.bad_log = True
        elif self._kind == "run.h5 damaged":
            self._change(cut_or_flip, ledger.run.rglob(layout.RUN_FILE))
            ledger.bad_run_file = True
        elif self._kind in _DAMAGES:
            for _ in range(1 + int(rng.random() < 0.3)):
                files = checkpoint_file.paths(ledger.run)
                newest = {rank: ledger.newest(rank) for rank in files}
                path = self._change(_DAMAGES[self._kind], [path for rank in files for path in files[rank]])
                ledger.bad[path] = path.read_bytes() if path.exists() else None
                for rank in newest:
                    ledger.destroyed[rank] += newest[rank] == path

    def _change(self, how, paths) -> Path:
        paths = sorted(paths)
        path = paths[self._rng.integers(len(paths))]
        how(path, self._rng)
        self.what.append(f"{how.__name__}: {path.relative_to(self.ledger.run)}")
        return path


def _swap(path: Path, rng: np.random.Generator) -> None:
    """Put a good checkpoint of another run or of another rank in the place of a file."""
    if rng.random() < 0.5:
        others = [other for other in sorted(path.parent.glob(layout.RANK_FILES)) if other.name[:10] != path.name[:10]]
        shutil.copyfile(others[rng.integers(len(others))], path)
        return
    with checkpoint_file.SavedCheckpoint(path) as saved, h5py.File(path) as file:
        contribution = file["contribution"][:] if "contribution" in file else None
        state = checkpoint_file.RankState(saved.versions, contribution, saved.optimizer_state)
    checkpoint_file.write_checkpoint(path, replace(checkpoint_file.read_header(path), run_id="of another run"), state)


_DAMAGES = {
    "checkpoint cut short": damage.cut,
    "bit flipped in a checkpoint": damage.flip,
    "checkpoint removed": damage.remove,
    "checkpoint of another run or rank": _swap,
}
