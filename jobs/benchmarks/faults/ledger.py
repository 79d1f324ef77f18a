"""What is known of a run from outside, and its files held against that."""

import re
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from hpc_dasgd import ConfigError, open_run
from hpc_dasgd.storage import checkpoint_file, layout
from jobs.benchmarks.faults.counted import MAX_RANKS, times_of
from jobs.benchmarks.faults.expected import Generation, Model, Saved, Source, read_saved, source

_NOISE = re.compile(r"Traceback \(most|HDF5-DIAG|Segmentation|Fatal Python|core dumped")
_SLACK_S = 0.3  # in which a rank may not run: others have the cores


class Wrong(Exception):
    """What must not be."""


class Refused(Exception):
    """The run was rightly not resumed."""


class Lost(NamedTuple):
    """Work of a rank that was lost, and what is allowed, in seconds; None where there is no limit."""

    seconds: float
    allowed: float | None


class Ledger:
    """A run, as it has to be; every method but the first raises `Wrong` where it is not.

    Parameters
    ----------
    run : Path
        The run directory.
    model : Model
    every_s : float
        Setting ``checkpoint.every_s``.

    Attributes
    ----------
    bad : dict of Path to bytes or None
        Checkpoint files that were damaged, with what is in them since.
    destroyed : ndarray, shape (MAX_RANKS,)
        How many newest checkpoints of each rank were damaged since the last start.
    bad_log, bad_run_file, full : bool
        Whether a log or a ``run.h5`` was damaged, or the disk was full since the last start.
    lost : list of Lost
    n_resumed : int
    """

    def __init__(self, run: Path, model: Model, every_s: float):
        self.run, self._model, self._every_s = run, model, every_s
        self.bad: dict[Path, bytes | None] = {}
        self.destroyed = np.zeros(MAX_RANKS, int)
        self.bad_log = self.bad_run_file = self.full = False
        self.lost: list[Lost] = []
        self.n_resumed = 0
        self._run_id = ""
        self._records: dict[int, Path] = {}
        self._write_s = 0.0  # the longest time that a checkpoint took, of the generation that died last

    def next_number(self) -> int:
        """The number of the generation that a start would begin."""
        if not (self.run / layout.RUN_FILE).exists():
            return 0
        return 1 + max((int(path.name[-5:]) for path in self.run.glob(layout.GENERATIONS)), default=0)

    def source(self) -> Source | None:
        """What a start has to go on from; None where there is nothing."""
        if not self._run_id:
            return None
        good = self._good()
        found = source(good, self._run_id)
        if found is None and self._never_began(good):
            return Source(0, np.zeros(MAX_RANKS, np.int64), {}, None)
        return found

    def content(self) -> dict[Path, bytes]:
        """All files of the run."""
        return {path: path.read_bytes() for path in sorted(self.run.rglob("*.h5"))}

    def newest(self, rank: int) -> Path | None:
        """The newest checkpoint of a rank."""
        own = [saved for saved in self._good() if saved.header.rank == rank]
        return max(own, key=lambda saved: (saved.header.generation, saved.header.t_s)).path if own else None

    def check_ended(self, status: int | None, errors: str) -> None:
        """A job has come to its end, in a civil way."""
        require(status is not None, "the job hangs")
        require(not _NOISE.search(errors), f"exit status {status} with {errors[-2000:]}")

    def check_start(self, found: Source | None, number: int, n_ranks: int, record: Path, before: dict, job) -> None:
        """A start went on from where it should, or from nowhere and said so.

        Parameters
        ----------
        found, number, before
            `source`, `next_number` and `content` as they were.
        n_ranks : int
        record : Path
            Where the objective noted what it did.
        job : (int, str)
            Exit status and standard error.
        """
        status, errors = job
        path = layout.generation_directory(self.run, number) / layout.RUN_FILE
        resumes = bool(self._run_id)
        if status == 2:
            promised = "a good checkpoint" if found is None and resumes else layout.RUN_FILE
            rightly = promised in errors and ((resumes and found is None) or self.bad_run_file)
            require(rightly, f"refused with: {errors[-500:]}")
            require(self.content() == before, "a run that was refused was touched")
            raise Refused
        if not path.exists():
            require(status != 0, "done without a run.h5")
            return
        require(not resumes or found is not None, "went on without good checkpoints")
        begun = self._model.next(found, number, n_ranks)
        with h5py.File(path) as file:
            attributes, x0 = dict(file.attrs), file["x0"][:]
        versions = padded(attributes["versions_before"])
        require((versions == begun.before).all(), f"resumed at {versions}, must be {begun.before}")
        require(attributes["parent"] == (-1 if found is None else found.parent), "of another parent")
        parent = begun if found is None else self._model.generations[found.parent]
        require(not (text := self._model.difference(x0, parent, versions, at_end=False)), f"x0 of {number}: {text}")
        begun.x0 = x0  # of `accumulate` it may hold more than must be
        if found is not None:
            self.n_resumed += 1
            self._note_lost(parent, begun)
        self._run_id = attributes["run_id"]
        self._model.generations[number], self._records[number] = begun, record
        self.destroyed[:], self.full = 0, False
        self._write_s = max(
            (self._took_s(saved) for saved in self._good() if saved.header.generation == number), default=0.0
        )

    def check_logs(self) -> None:
        """The run opens, and says no other counts than there were updates."""
        if not self._run_id:
            return
        try:
            run = open_run(self.run)
        except ConfigError as error:
            require(self.bad_run_file, f"open_run: {error}")
            return
        newest = run.generations[-1].number
        require(newest in self._model.generations, f"open_run knows a generation {newest}")
        counts, record = padded(run.counts), self._records[newest]
        for saved in self._good() if not self.bad_log else ():
            if saved.header.generation == newest:
                least = saved.header.version
                require(least <= counts[saved.header.rank], f"a log of {counts} behind a checkpoint of {least}")
        most = [max(n_made(record, rank), self._model.generations[newest].before[rank]) for rank in range(MAX_RANKS)]
        require((counts <= most).all(), f"logs of {counts}, of {most} gradients")
        # A replica may hold updates of others that these had not logged yet.
        may_lack = self.bad_log or not self._model.sums
        require(may_lack or not run.lost.any(), f"logs lack {run.lost} gradients")
        try:
            rows = run.gradients
            for rank in range(0 if self.bad_log else run.n_ranks):
                require((rows[run.rows(rank)]["version"] == np.arange(run.counts[rank])).all(), "versions have gaps")
            run.staleness()
        except ConfigError as error:
            require(may_lack or not counts.any(), f"staleness: {error}")

    def check_complete(self) -> None:
        """The run has come to its end with the right parameters."""
        try:
            run = open_run(self.run)
        except ConfigError as error:
            require(self.bad_run_file, f"open_run: {error}")
            return
        require(run.status == "complete", f"the status is {run.status}")
        counts = padded(run.counts)
        require(int(run.attributes["gradients"]) == counts.sum() or self.bad_log, "gradients and counts differ")
        newest = run.generations[-1].number
        made = [
            max(n_made(self._records[newest], rank), self._model.generations[newest].before[rank])
            for rank in range(MAX_RANKS)
        ]
        require((counts == made).all() or self.bad_log, f"counts of {counts}, of {made} gradients")
        generation = self._model.generations[newest]
        text = self._model.difference(run.final, generation, np.array(made), at_end=True)
        require(not text, f"final: {text}")

    def _never_began(self, good: list[Saved]) -> bool:
        """Whether the run ended before its first step: not every rank has a checkpoint then, which is no damage."""
        n_files = sum(map(len, checkpoint_file.paths(self.run).values()))
        if len(good) < n_files or any(saved.header.generation or saved.header.version for saved in good):
            return False
        try:
            return not open_run(self.run).counts.any()
        except ConfigError:
            return False

    def _good(self) -> list[Saved]:
        """All checkpoint files that nobody damaged; they must be good."""
        found = []
        for path in (path for paths in checkpoint_file.paths(self.run).values() for path in paths):
            if path in self.bad and path.read_bytes() == self.bad[path]:
                continue
            try:
                found.append(read_saved(path))
            except checkpoint_file.CheckpointError as error:
                raise Wrong(f"a checkpoint that nobody damaged: {error}") from None
        return found

    def _note_lost(self, parent: Generation, child: Generation) -> None:
        newest = max(self._model.generations)
        n_destroyed = self.destroyed.sum() if self.destroyed.any() else 0
        times = [times_of(self._records[parent.number], rank) for rank in range(parent.n_ranks)]
        gap_s = max((np.diff(own[own > 0]).max(initial=0) for own in times), default=0)
        for rank, own in enumerate(times):
            made = np.flatnonzero(own)
            if not made.size or child.before[rank] > made[-1]:
                self.lost.append(Lost(0.0, None))
                continue
            held = max(int(child.before[rank]) - 1, made[0])
            limited = not self.full and parent.number == newest
            allowed = (1 + n_destroyed) * (self._every_s + self._write_s + gap_s + _SLACK_S)
            lost = Lost(float(own[made[-1]] - own[held]), float(allowed) if limited else None)
            self.lost.append(lost)
            require(not limited or lost.seconds <= allowed, f"rank {rank} lost {lost.seconds:.2f} s, of {allowed:.2f}")

    def _took_s(self, saved: Saved) -> float:
        """From the update that a checkpoint holds last until it had its name."""
        header = saved.header
        times = times_of(self._records[header.generation], header.rank)
        counted = times[header.version - 1] if header.version else 0.0
        return saved.path.stat().st_ctime - counted if counted else 0.0


def require(condition, text: str) -> None:
    if not condition:
        raise Wrong(text)


def padded(versions) -> np.ndarray:
    """Numbers by stream, for as many as there may be."""
    out = np.zeros(MAX_RANKS, np.int64)
    out[: len(versions)] = versions
    return out


def n_made(record: Path, rank: int) -> int:
    """One more than the version that a rank took last; 0 for one that took none."""
    made = np.flatnonzero(times_of(record, rank))
    return int(made[-1]) + 1 if made.size else 0
