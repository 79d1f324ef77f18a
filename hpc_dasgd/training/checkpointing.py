"""Checkpoints of one rank while it trains."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from hpc_dasgd.config.exchange_traits import traits_of
from hpc_dasgd.config.settings import Config
from hpc_dasgd.exchange.interface import Exchange
from hpc_dasgd.optim.interface import Optimizer
from hpc_dasgd.storage import checkpoint_file
from hpc_dasgd.storage.checkpoint_file import CheckpointHeader, RankState
from hpc_dasgd.storage.checkpoint_writer import CheckpointSchedule, CheckpointWriter
from hpc_dasgd.storage.hdf5_io import creation_errors
from hpc_dasgd.storage.log_writer import RankLog
from hpc_dasgd.training.generation_start import GenerationStart


class Checkpoints:
    """Writes the state of this rank when it is time; see `storage.checkpoint_writer.CheckpointWriter`. Not collective.

    The first checkpoint is written by the constructor, and says where the generation begins. As soon as every rank has
    written it, no checkpoint of an earlier generation is needed any more.

    Parameters
    ----------
    directory : Path
        The run directory.
    config : Config
    start : GenerationStart
    exchange : Exchange
        Holds the contribution that is saved.
    optimizer : Optimizer
    log : RankLog
        Flushed before a checkpoint is written, so that it never lacks a gradient that a checkpoint counts.
    warn : callable
        Called with one line of text if a checkpoint cannot be written.

    Raises
    ------
    ConfigError
        If the first checkpoint cannot be written.
    """

    def __init__(
        self,
        directory: Path,
        config: Config,
        start: GenerationStart,
        exchange: Exchange,
        optimizer: Optimizer,
        log: RankLog,
        warn: Callable[[str], None],
    ):
        self._config, self._exchange, self._optimizer, self._log = config, exchange, optimizer, log
        self._start = start.without_arrays
        self._rank = exchange.comm.rank
        self._combines = traits_of(config.exchange.kind).combines
        # At the start only rank 0 has a contribution, unless ranks train independently.
        contributes = self._rank == 0 or self._combines == "own"
        contribution = exchange.device.to_host(exchange.contribution) if contributes else None
        first = RankState(start.versions_before, contribution, start.optimizer_state)
        path = checkpoint_file.checkpoint_path(directory, self._rank, start.slot % config.checkpoint.keep)
        with creation_errors("checkpoint", path):
            checkpoint_file.write_checkpoint(path, self._header(start.begun_s, contributes), first)
        settings = config.checkpoint
        schedule = CheckpointSchedule(settings.every_s, settings.keep, start.slot + 1)
        self._writer = CheckpointWriter(directory, schedule, warn, before_write=log.sync)
        self._writer.reserve(self._state(), start.begun_s)

    def begin_if_due(self, now_s: float) -> None:
        """Start to write a checkpoint if it is time, between two steps.

        Training waits until the state is copied and the buffered log is written to its file.
        """
        if self._writer.due(now_s):
            self._begin(now_s)

    def save(self, now_s: float) -> None:
        """Write a checkpoint, and wait until it is on the disk."""
        self._begin(now_s)
        self._writer.finish()

    @property
    def missing(self) -> list[str]:
        """Descriptions of what could not be written; empty if everything was written."""
        return [] if self._writer.last_succeeded else [f"the last checkpoint of rank {self._rank}"]

    @property
    def longest_stall_s(self) -> float:
        """Longest time that training waited for a copy, in s."""
        return self._writer.longest_stall_s

    def _begin(self, now_s: float) -> None:
        self._log.flush()
        self._writer.begin(self._header(now_s), self._state())

    def _state(self) -> RankState:
        versions = self._start.versions_before.copy()
        versions[: self._exchange.versions.size] += self._exchange.versions
        return RankState(versions, self._exchange.contribution, self._optimizer.state)

    def _header(self, now_s: float, contributes: bool = True) -> CheckpointHeader:
        contribution = self._exchange.contribution
        return CheckpointHeader(
            run_id=self._start.run_id,
            generation=self._start.generation,
            rank=self._rank,
            n_ranks=self._exchange.comm.size,
            combines=self._combines,
            version=int(self._start.versions_before[self._rank]) + self._exchange.made,
            gradients=self._start.gradients + int(np.sum(self._exchange.versions)),
            t_s=now_s,
            optimizer=self._config.optimizer.kind,
            contributes=contributes,
            n_params=contribution.size,
            dtype=contribution.dtype.name,
        )
