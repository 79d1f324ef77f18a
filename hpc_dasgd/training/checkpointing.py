"""Checkpoints of one rank while it trains."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from hpc_dasgd.config.settings import Config
from hpc_dasgd.exchange.interface import Exchange
from hpc_dasgd.storage import checkpoint_file, layout
from hpc_dasgd.storage.checkpoint_file import CheckpointHeader, RankState
from hpc_dasgd.storage.checkpoint_writer import CheckpointWriter
from hpc_dasgd.storage.log_writer import RankLog
from hpc_dasgd.training.resume import GenerationStart


class Checkpoints:
    """Writes this rank's state when due; see `checkpointwriter.Writer`.

    The first one is written here, and says where the generation begins. Once every rank has written it, no checkpoint
    of an earlier generation is needed any more.

    Parameters
    ----------
    directory : Path
        The run directory.
    config : Config
    start : Start
    replicas : Exchange
    optimizer : Sgd, Momentum or Adam
    log : RankLog
        Which is to be on the disk as far as a checkpoint counts.
    warn : callable
        See `checkpointwriter.Writer`.

    Raises
    ------
    ConfigError
        If the first one cannot be written.
    """

    def __init__(
        self,
        directory: Path,
        config: Config,
        start: GenerationStart,
        replicas: Exchange,
        optimizer,
        log: RankLog,
        warn: Callable[[str], None],
    ):
        self._config, self._replicas, self._optimizer, self._log = config, replicas, optimizer, log
        self._start = start.without_arrays
        self._rank = replicas.comm.rank
        # At the start, what rank 0 holds is all there is; only ranks that never hear of each other differ.
        says_all = self._rank == 0 or replicas.combines == "own"
        contribution = replicas.device.to_host(replicas.contribution) if says_all else None
        first = RankState(start.versions_before, contribution, start.optimizer_state)
        path = checkpoint_file.path_of(directory, self._rank, start.slot % config.checkpoint.keep)
        with layout.making("checkpoint", path):
            checkpoint_file.write_checkpoint(path, self._header(start.begun_s, contributes=says_all), first)
        settings = config.checkpoint
        self._writer = CheckpointWriter(
            directory, settings.every_s, settings.keep, start.slot + 1, warn, before_write=log.sync
        )
        self._writer.reserve(self._state(), start.begun_s)

    def due(self, now_s: float) -> bool:
        """Whether to begin one now."""
        return self._writer.due(now_s)

    def begin(self, now_s: float) -> None:
        """Begin to write one, between two steps; takes the time of a copy and of handing the log to its file."""
        self._log.flush()
        self._writer.begin(self._header(now_s), self._state())

    def save(self, now_s: float) -> None:
        """Write one, and wait until it is on the disk."""
        self.begin(now_s)
        self._writer.finish()

    @property
    def missing(self) -> list[str]:
        """What could not be written; empty where all is well."""
        return [] if self._writer.good else [f"the last checkpoint of rank {self._rank}"]

    @property
    def longest_stall_s(self) -> float:
        """The longest time that training waited for a copy."""
        return self._writer.longest_stall_s

    def _state(self) -> RankState:
        versions = self._start.versions_before.copy()
        versions[: self._replicas.versions.size] += self._replicas.versions
        return RankState(versions, self._replicas.contribution, self._optimizer.state)

    def _header(self, now_s: float, contributes: bool = True) -> CheckpointHeader:
        contribution = self._replicas.contribution
        return CheckpointHeader(
            run_id=self._start.run_id,
            generation=self._start.generation,
            rank=self._rank,
            n_ranks=self._replicas.comm.size,
            combines=self._replicas.combines,
            version=int(self._start.versions_before[self._rank]) + self._replicas.made,
            gradients=self._start.gradients + int(np.sum(self._replicas.versions)),
            t_s=now_s,
            optimizer=self._config.optimizer.kind,
            contributes=contributes,
            n_params=contribution.size,
            dtype=contribution.dtype.name,
        )
