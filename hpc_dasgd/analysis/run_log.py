"""The log of a run: the gradients, evaluations and version vectors in its rank files."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from hpc_dasgd.arrays.types import AnyArray, Float64s, Int64s, UInt32s
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.storage import layout
from hpc_dasgd.storage.generations import Generation
from hpc_dasgd.storage.log_index import Stream
from hpc_dasgd.storage.log_reader import VersionRows, read_events, read_gradients

_MAX_VERSIONS_BYTES = 1 << 30  # version vectors of a larger total size are read from the files in pieces

VersionRowsByRank: TypeAlias = Sequence[UInt32s] | Sequence[VersionRows]
"""For each rank its logged version vectors, in memory or read from the files when sliced."""


@dataclass(frozen=True, eq=False)
class RunLog:
    """The log of a run: the part of `hpc_dasgd.analysis.run.Run` that comes from the files of the ranks.

    Data are read when they are first used, and kept.

    Attributes
    ----------
    directory, attributes, generations
        As for `hpc_dasgd.analysis.run.Run`.
    """

    directory: Path
    attributes: dict[str, Any]
    generations: tuple[Generation, ...]
    _streams: list[Stream] = field(repr=False)

    @property
    def n_ranks(self) -> int:
        """Number of ranks; if it differs between generations, the largest."""
        return len(self._streams)

    @property
    def versions_every(self) -> int:
        """A rank logs the version vector of one gradient in this number; 0 if no vectors were logged."""
        return max(stream.versions_every for stream in self._streams)

    @property
    def has_versions(self) -> bool:
        """Whether version vectors are available, so that `version_rows` does not raise."""
        return bool(self.versions_every and self.counts.any() and not self.missing_counts.any())

    @cached_property
    def counts(self) -> Int64s:
        """Number of gradients of each rank, shape (n_ranks,), int64."""
        return np.array([stream.n_gradients for stream in self._streams], np.int64)

    @cached_property
    def missing_counts(self) -> Int64s:
        """Number of gradients of each rank that count but are missing from its log, shape (n_ranks,), int64."""
        return np.array([stream.n_lost for stream in self._streams], np.int64)

    @property
    def seconds(self) -> float:
        """Duration of the training in s; if the run did not end, from its first to its last gradient."""
        if "seconds" in self.attributes:
            return float(self.attributes["seconds"])
        gradients = self.gradients
        return float(gradients["t_end_s"].max() - gradients["t_start_s"].min()) if gradients.size else 0.0

    @cached_property
    def gradients(self) -> AnyArray:
        """All gradients, rank after rank: structured array, shape (n_gradients,).

        The fields are ``rank`` (int32) and those of ``/gradient`` in ``docs/file-format.md``: ``t_start_s``,
        ``t_end_s`` (s since the run began), ``loss``, ``gradient_norm``, ``stepsize`` (float64), ``version`` (uint32).
        A gradient that is missing from the log has its version and nan in the other fields; its times are the end of
        the gradient before it.
        """
        rows = np.empty(self.counts.sum(), layout.record_dtype((layout.RANK, *layout.GRADIENT_COLUMNS)))
        rows["rank"] = np.repeat(np.arange(self.n_ranks), self.counts)
        for rank, stream in enumerate(self._streams):
            read_gradients(stream, rank, self.generations, rows[self.rows(rank)])
        return rows

    def n_ranks_at(self, times_s: Float64s) -> Int64s:
        """Return the number of ranks at given times.

        Parameters
        ----------
        times_s : ndarray, shape (n_times,), float64, s since the run began

        Returns
        -------
        n_ranks : ndarray, shape (n_times,), int64
            Number of ranks of the generation that ran at that time; before the first generation, that of the first.
        """
        begun_s = [generation.begun_s for generation in self.generations]
        index = np.searchsorted(begun_s, times_s, side="right") - 1
        return np.array([generation.n_ranks for generation in self.generations])[np.maximum(index, 0)]

    def rows(self, rank: int) -> slice:
        """Return the rows of `gradients` that belong to `rank`."""
        end = int(self._ends[rank])
        return slice(end - int(self.counts[rank]), end)

    @cached_property
    def evaluation(self) -> AnyArray:
        """Evaluations in the order of time: structured array, shape (n_evaluations,).

        The fields are those of ``/evaluation`` in ``docs/file-format.md``: ``t_s`` (s since the run began), ``loss``,
        ``accuracy``, ``consensus_distance`` (float64), ``gradients`` (int64). Rank 0's replica is evaluated; after the
        death of that rank, the replica of the lowest surviving rank.
        """
        parts = []
        for rank, stream in enumerate(self._streams):
            parts.append(read_events(stream, self.generations, "evaluation", layout.EVALUATION_COLUMNS))
            if rank not in self.died:
                break
        rows = np.concatenate(parts)
        return rows[np.argsort(rows["t_s"], kind="stable")]

    @property
    def died(self) -> list[int]:
        """Ranks that died in any generation while the other ranks continued, ascending."""
        return sorted({rank for generation in self.generations for rank in generation.attributes.get("died", [])})

    @cached_property
    def exchange_intervals(self) -> AnyArray | None:
        """Changes of the number of steps between exchanges, rank after rank: structured array, shape (n_changes,).

        The fields are ``rank`` (int32) and those of ``/pace`` in ``docs/file-format.md``: ``t_s`` (s since the run
        began), ``version``, ``every`` (uint32), ``overhead`` (float64). None if ``exchange.every`` was a number.
        """
        if all(part.n_intervals is None for stream in self._streams for _, part in stream.segments):
            return None
        by_rank = [read_events(stream, self.generations, "pace", layout.INTERVAL_COLUMNS) for stream in self._streams]
        rows = np.empty(sum(map(len, by_rank)), layout.record_dtype((layout.RANK, *layout.INTERVAL_COLUMNS)))
        rows["rank"] = np.repeat(np.arange(self.n_ranks), [len(changes) for changes in by_rank])
        for column in layout.INTERVAL_COLUMNS:
            rows[column.name] = np.concatenate([changes[column.name] for changes in by_rank])
        return rows

    @cached_property
    def versions(self) -> list[UInt32s] | None:
        """For each rank its logged version vectors: ndarray, shape (n_vectors, n_ranks), uint32.

        Row ``r`` belongs to gradient ``r * versions_every`` of the rank. None if no vectors were logged. Raises like
        `version_rows` if some are missing.
        """
        if not self.versions_every:
            return None
        return [rows[:] for rows in self._rows_on_demand()]

    def version_rows(self) -> VersionRowsByRank:
        """Return `versions`, or objects that read them from the files when sliced, if they take more than 1 GiB.

        Raises
        ------
        ConfigError
            If no version vectors were logged, some are missing, or there are no gradients yet.
        """
        if not self.counts.any():
            raise ConfigError(f"{self.directory} holds no gradients yet")
        if not self.versions_every:
            raise ConfigError(
                f'{self.directory} holds no version vectors: its `log.versions` is "none"; '
                'staleness needs "full" or "every N"'
            )
        on_demand = self._rows_on_demand()
        n_bytes = sum(rows.shape[0] for rows in on_demand) * self.n_ranks * 4
        if n_bytes <= _MAX_VERSIONS_BYTES and self.versions is not None:
            return self.versions
        return on_demand

    def lost_work(self) -> list[int]:
        """Return, for each generation but the last, how many gradients in its log were lost when the run was resumed.

        These do not count: the checkpoints with which the next generation started did not contain them.
        """
        return [
            sum(
                max(0, part.end - int(child.versions_before[rank]))
                for rank, stream in enumerate(self._streams)
                for part in [part for place, part in stream.segments if place == number][-1:]
            )
            for number, child in enumerate(self.generations[1:])
        ]

    def n_holding_lost_work(self) -> int:
        """Return the number of gradients whose replica contained updates that were lost when the run was resumed.

        Raises like `version_rows`.
        """
        return sum(rows.n_limited() for rows in self._rows_on_demand())

    @cached_property
    def _ends(self) -> Int64s:
        return np.cumsum(self.counts)

    def _by_rank(self, name: str) -> list[AnyArray]:
        """Split a column of `gradients` by rank."""
        return np.split(self.gradients[name], self._ends[:-1])

    def _rows_on_demand(self) -> list[VersionRows]:
        for rank in np.flatnonzero(self.missing_counts):
            raise ConfigError(
                f"{self.directory} lacks {self.missing_counts[rank]} gradients of rank {rank} and their version "
                "vectors: its log could not be written"
            )
        limits = [*(generation.versions_before for generation in self.generations[1:]), None]
        return [VersionRows(stream, limits, self.n_ranks, self.versions_every) for stream in self._streams]
