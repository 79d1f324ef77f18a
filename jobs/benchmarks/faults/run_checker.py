"""Checks the files of a run against the result expected from its kills, its damage and its recorded gradients."""

import re
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from hpc_dasgd import ConfigError, open_run
from hpc_dasgd.analysis.run import Run
from hpc_dasgd.storage import checkpoint_file, layout
from jobs.benchmarks.faults.counted import MAX_RANKS, times_of
from jobs.benchmarks.faults.expected import (
    ExpectedRun,
    Generation,
    ResumePoint,
    UndamagedCheckpoint,
    newest_resume_point,
    read_undamaged,
)

_CRASH_TEXTS = re.compile(r"Traceback \(most|HDF5-DIAG|Segmentation|Fatal Python|core dumped")
_SLACK_S = 0.3  # a rank may be idle for this time while others use the cores


class WrongOutcome(Exception):
    """An outcome that is not allowed."""


class ResumeRefused(Exception):
    """The job refused to resume the run, as it must."""


class Lost(NamedTuple):
    """Lost work of a rank and the allowed loss, in seconds; None if there is no limit."""

    seconds: float
    allowed: float | None


class BeforeStart(NamedTuple):
    """A run before a start: where it must resume from, the number of the next generation, the content of all files."""

    resume_point: ResumePoint | None
    number: int
    content: dict[Path, bytes]


class RunChecker:
    """Follows a run through its starts; the methods ``check_...`` raise `WrongOutcome` if something is not as expected.

    Parameters
    ----------
    run : Path
        The run directory.
    model : ExpectedRun
        Expected state of the run.
    every_s : float, s
        Setting ``checkpoint.every_s``.

    Attributes
    ----------
    damaged : dict of Path to bytes or None
        Content of the checkpoint files that were damaged, None if the file was removed.
    n_newest_damaged : ndarray, shape (MAX_RANKS,)
        For each rank, how often its newest checkpoint was damaged since the last start.
    log_damaged, run_file_damaged : bool
        True if a log or a ``run.h5`` was damaged.
    disk_was_full : bool
        True if the disk was full at some time since the last start.
    lost : list of Lost
        One entry for each rank and each resumed start.
    n_resumed : int
        Number of resumed starts.
    """

    def __init__(self, run: Path, model: ExpectedRun, every_s: float):
        self.run, self._model, self._every_s = run, model, every_s
        self.damaged: dict[Path, bytes | None] = {}
        self.n_newest_damaged = np.zeros(MAX_RANKS, int)
        self.log_damaged = self.run_file_damaged = self.disk_was_full = False
        self.lost: list[Lost] = []
        self.n_resumed = 0
        self._run_id = ""
        self._records: dict[int, Path] = {}
        self._write_s = 0.0  # longest time of writing a checkpoint in the generation that ended last

    def next_number(self) -> int:
        """Return the number of the generation that the next start begins."""
        if not (self.run / layout.RUN_FILE).exists():
            return 0
        return 1 + max((int(path.name[-5:]) for path in self.run.glob(layout.GENERATION_PATTERN)), default=0)

    def resume_point(self) -> ResumePoint | None:
        """Return the state that the next start must resume from; None if there is none."""
        if not self._run_id:
            return None
        good = self._undamaged()
        found = newest_resume_point(good, self._run_id)
        if found is None and self._has_no_gradients(good):
            return ResumePoint(0, np.zeros(MAX_RANKS, np.int64), {}, None)
        return found

    def content(self) -> dict[Path, bytes]:
        """Return the content of all files of the run."""
        return {path: path.read_bytes() for path in sorted(self.run.rglob("*.h5"))}

    def newest(self, rank: int) -> Path | None:
        """Return the path of the newest undamaged checkpoint of a rank; None if there is none."""
        own = [saved for saved in self._undamaged() if saved.header.rank == rank]
        return max(own, key=lambda saved: (saved.header.generation, saved.header.t_s)).path if own else None

    def before_start(self) -> BeforeStart:
        """Return what `check_start` needs to know about the files before a start."""
        return BeforeStart(self.resume_point(), self.next_number(), self.content())

    def check_ended(self, status: int | None, errors: str) -> None:
        """Check that a job ended without hanging, crashing or printing a traceback."""
        require(status is not None, "the job hangs")
        require(not _CRASH_TEXTS.search(errors), f"exit status {status} with {errors[-2000:]}")

    def check_start(self, before: BeforeStart, n_ranks: int, record: Path, status: int, errors: str) -> None:
        """Check that a start resumed from the right checkpoints, or refused to.

        Parameters
        ----------
        before : BeforeStart
            Result of `before_start`.
        n_ranks : int
            Number of ranks of the job.
        record : Path
            Folder in which the objective recorded the times of gradients.
        status, errors
            Exit status and standard error of the job.

        Raises
        ------
        ResumeRefused
            If the job refused to resume the run, as it must.
        WrongOutcome
            If something is not as expected.
        """
        if status == 2:
            self._check_refusal(before, errors)
            raise ResumeRefused
        path = layout.generation_directory(self.run, before.number) / layout.RUN_FILE
        if not path.exists():
            require(status != 0, "exit status 0 without a run.h5")
            return
        source = before.resume_point
        require(not self._run_id or source is not None, "resumed without undamaged checkpoints")
        begun = self._model.next(source, before.number, n_ranks)
        with h5py.File(path) as file:
            attributes, x0 = dict(file.attrs), file["x0"][:]
        parent = begun if source is None else self._model.generations[source.parent]
        self._check_first_state(attributes, x0, source, begun, parent)
        begun.x0 = x0  # with `accumulate` it may contain more updates than it must
        if source is not None:
            self.n_resumed += 1
            self._record_loss(parent, begun)
        self._run_id = attributes["run_id"]
        self._model.generations[before.number], self._records[before.number] = begun, record
        self.n_newest_damaged[:], self.disk_was_full = 0, False
        written = [saved for saved in self._undamaged() if saved.header.generation == before.number]
        self._write_s = max((self._write_time_s(saved) for saved in written), default=0.0)

    def _check_refusal(self, before: BeforeStart, errors: str) -> None:
        must_refuse = bool(self._run_id) and before.resume_point is None
        named = "a good checkpoint" if must_refuse else layout.RUN_FILE
        require(named in errors and (must_refuse or self.run_file_damaged), f"wrongly refused: {errors[-500:]}")
        require(self.content() == before.content, "files of a refused run were changed")

    def _check_first_state(
        self, attributes: dict, x0: np.ndarray, source: ResumePoint | None, begun: Generation, parent: Generation
    ) -> None:
        versions = padded(attributes["versions_before"])
        require((versions == begun.before).all(), f"resumed at {versions}, must be {begun.before}")
        expected = -1 if source is None else source.parent
        require(attributes["parent"] == expected, f"resumed from generation {attributes['parent']}, must be {expected}")
        error = self._model.difference(x0, parent, versions, at_end=False)
        require(not error, f"x0 of {begun.number}: {error}")

    def check_logs(self) -> None:
        """Check that the run opens and that its counts match the recorded gradients."""
        run = self._open() if self._run_id else None
        if run is None:
            return
        newest = run.generations[-1].number
        require(newest in self._model.generations, f"open_run returns generation {newest}, which was not started")
        counts = padded(run.counts)
        for saved in self._undamaged() if not self.log_damaged else ():
            if saved.header.generation == newest:
                least = saved.header.version
                require(
                    least <= counts[saved.header.rank],
                    f"a log has {counts} gradients, fewer than the {least} in a checkpoint",
                )
        computed = self._computed(newest)
        require((counts <= computed).all(), f"logs have {counts} gradients, but {computed} were computed")
        # A replica may contain updates of other ranks that those ranks had not logged yet.
        may_lack = self.log_damaged or not self._model.sums
        require(may_lack or not run.missing_counts.any(), f"logs lack {run.missing_counts} gradients")
        try:
            rows = run.gradients
            for rank in range(0 if self.log_damaged else run.n_ranks):
                require((rows[run.rows(rank)]["version"] == np.arange(run.counts[rank])).all(), "versions have gaps")
            run.staleness()
        except ConfigError as error:
            require(may_lack or not counts.any(), f"staleness: {error}")

    def check_complete(self) -> None:
        """Check that the run is complete and that its final parameters are right."""
        run = self._open()
        if run is None:
            return
        require(run.status == "complete", f"the status is {run.status}")
        counts = padded(run.counts)
        require(int(run.attributes["gradients"]) == counts.sum() or self.log_damaged, "gradients and counts differ")
        newest = run.generations[-1].number
        computed = self._computed(newest)
        is_right = (counts == computed).all() or self.log_damaged
        require(is_right, f"the counts are {counts}, but {computed} gradients were computed")
        error = self._model.difference(run.final, self._model.generations[newest], computed, at_end=True)
        require(not error, f"final: {error}")

    def _open(self) -> Run | None:
        """Return the run, or None if its ``run.h5`` was damaged and it cannot be opened."""
        try:
            return open_run(self.run)
        except ConfigError as error:
            require(self.run_file_damaged, f"open_run: {error}")
            return None

    def _computed(self, number: int) -> np.ndarray:
        """Return for each rank how many gradients it had computed by the end of a generation, earlier ones included."""
        before = self._model.generations[number].before
        return np.array([max(n_computed(self._records[number], rank), before[rank]) for rank in range(MAX_RANKS)])

    def _has_no_gradients(self, good: list[UndamagedCheckpoint]) -> bool:
        """Return True if the run ended before its first step; then a missing checkpoint of a rank is no damage."""
        n_files = sum(map(len, checkpoint_file.list_checkpoints(self.run).values()))
        if len(good) < n_files or any(saved.header.generation or saved.header.version for saved in good):
            return False
        try:
            return not open_run(self.run).counts.any()
        except ConfigError:
            return False

    def _undamaged(self) -> list[UndamagedCheckpoint]:
        """Return all checkpoint files that were not damaged; they must be readable."""
        found = []
        for path in (path for paths in checkpoint_file.list_checkpoints(self.run).values() for path in paths):
            if path in self.damaged and path.read_bytes() == self.damaged[path]:
                continue
            try:
                found.append(read_undamaged(path))
            except checkpoint_file.CheckpointError as error:
                raise WrongOutcome(f"an undamaged checkpoint: {error}") from None
        return found

    def _record_loss(self, parent: Generation, child: Generation) -> None:
        newest = max(self._model.generations)
        n_destroyed = self.n_newest_damaged.sum() if self.n_newest_damaged.any() else 0
        times = [times_of(self._records[parent.number], rank) for rank in range(parent.n_ranks)]
        gap_s = max((np.diff(own[own > 0]).max(initial=0) for own in times), default=0)
        for rank, own in enumerate(times):
            made = np.flatnonzero(own)
            if not made.size or child.before[rank] > made[-1]:
                self.lost.append(Lost(0.0, None))
                continue
            last_kept = max(int(child.before[rank]) - 1, made[0])
            limited = not self.disk_was_full and parent.number == newest
            allowed = (1 + n_destroyed) * (self._every_s + self._write_s + gap_s + _SLACK_S)
            lost = Lost(float(own[made[-1]] - own[last_kept]), float(allowed) if limited else None)
            self.lost.append(lost)
            require(not limited or lost.seconds <= allowed, f"rank {rank} lost {lost.seconds:.2f} s, of {allowed:.2f}")

    def _write_time_s(self, saved: UndamagedCheckpoint) -> float:
        """Return the seconds between the last update in a checkpoint and the renaming of its file."""
        header = saved.header
        times = times_of(self._records[header.generation], header.rank)
        counted = times[header.version - 1] if header.version else 0.0
        return saved.path.stat().st_ctime - counted if counted else 0.0


def require(condition, text: str) -> None:
    if not condition:
        raise WrongOutcome(text)


def padded(versions) -> np.ndarray:
    """Return `versions` followed by zeros, shape (MAX_RANKS,)."""
    out = np.zeros(MAX_RANKS, np.int64)
    out[: len(versions)] = versions
    return out


def n_computed(record: Path, rank: int) -> int:
    """Return the last version that a rank computed plus one; 0 if it computed none."""
    made = np.flatnonzero(times_of(record, rank))
    return int(made[-1]) + 1 if made.size else 0
