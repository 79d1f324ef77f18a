"""Set-up of a run: from a request to a session that is ready for its first step.

Everything here is collective, in the same order on all ranks.
"""

import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hpc_dasgd.arrays.devices import Device
from hpc_dasgd.config.settings import Config
from hpc_dasgd.console.progress import Progress
from hpc_dasgd.data.dataset import Dataset, Sampler
from hpc_dasgd.exchange import registry
from hpc_dasgd.exchange.interface import ExchangeSetup
from hpc_dasgd.optim import optimizers, schedules
from hpc_dasgd.optim.schedules import Schedule
from hpc_dasgd.runtime import mpi
from hpc_dasgd.runtime.clock import Clock
from hpc_dasgd.runtime.collective import raise_on_all_ranks
from hpc_dasgd.runtime.launch_checks import launch_warnings
from hpc_dasgd.runtime.signals import StopSignals
from hpc_dasgd.runtime.terminal import is_terminal
from hpc_dasgd.storage import layout
from hpc_dasgd.storage.log_segment import LogSettings
from hpc_dasgd.storage.log_writer import RankLog
from hpc_dasgd.training import run_record, running_statistics, stragglers
from hpc_dasgd.training.checkpointing import Checkpoints
from hpc_dasgd.training.evaluation import Evaluation
from hpc_dasgd.training.exchange_interval import IntervalTuner
from hpc_dasgd.training.generation_start import GenerationStart, start_new_run
from hpc_dasgd.training.gradients import GradientSource, Method
from hpc_dasgd.training.problem import Problem, agree_on_problem
from hpc_dasgd.training.progress import StepProgress
from hpc_dasgd.training.request import RunRequest
from hpc_dasgd.training.resume import resume_run
from hpc_dasgd.training.session import RunContext, Session, StepRecords
from hpc_dasgd.training.stepsize_from_theory import resolve_stepsize

if TYPE_CHECKING:
    from mpi4py import MPI


def setup(comm: "MPI.Intracomm", signals: StopSignals, request: RunRequest) -> tuple[Session, GradientSource]:
    """Prepare a run: agree on it, resume it if requested, create its files and its exchange. Collective over `comm`.

    Parameters
    ----------
    comm : MPI.Intracomm
    signals : StopSignals
        Signal handlers, already installed.
    request : RunRequest

    Returns
    -------
    session : Session
        To be entered as a context manager.
    source : GradientSource

    Raises
    ------
    ConfigError
        On every rank, if something is wrong on any. The checkpoints of an existing run are not changed then.
    """
    begin = _agree_on_start(comm, request)
    problem, start, directory, chosen = begin
    config, host = problem.config, platform.node()
    data = None if problem.data is None else problem.data.to_device(problem.device)
    method = _make_method(comm, problem, data, start)
    log = _create_files(comm, begin, host)
    exchange = registry.make_exchange(
        ExchangeSetup(comm, start.first_parameters, config.exchange, config.seed, problem.device)
    )
    source = GradientSource(method, exchange, problem.device, config)
    evaluation = Evaluation(problem.objective, data, config, log, evaluates=lambda: exchange.leads)
    tunes = config.exchange.every == "auto"
    interval = IntervalTuner(exchange, log, config.exchange.max_overhead) if tunes else None
    _warn_of_launch(comm, problem.device, request.progress)
    # From here on the checkpoints of this generation are the newest.
    checkpoints = raise_on_all_ranks(
        comm, lambda: Checkpoints(directory, config, start, exchange, method.optimizer, log, mpi.print_warning)
    )
    clock = Clock(comm, host, start.begun_s)
    shown = request.progress and comm.rank == 0
    progress = StepProgress(
        Progress(
            config.budget.gradients,
            shown,
            start.begun_s,
            start.gradients,
            on_terminal=shown and is_terminal(sys.stderr),
        )
    )
    context = RunContext(comm, config, directory, start.without_arrays, problem.device, chosen)
    records = StepRecords(log, evaluation, checkpoints, interval, progress)
    return Session(context, exchange, clock, records, signals), source


class _Start(NamedTuple):
    """Where a run begins: the problem with settings whose stepsize is a number, and the start of the generation."""

    problem: Problem
    start: GenerationStart
    directory: Path
    stepsize_chosen: str


def _agree_on_start(comm: "MPI.Intracomm", request: RunRequest) -> _Start:
    """Agree on what to train, in which directory, and from which parameters. Collective over `comm`."""
    problem = agree_on_problem(comm, request)
    config = problem.config
    directory, resumes = run_record.choose_directory(comm, config, request.run, request.resume)
    if resumes:
        start = resume_run(comm, directory, config, problem.x0, mpi.print_warning)
        running_statistics.restore(comm, problem.objective, directory)
    else:
        start = start_new_run(comm, problem.x0)
    config, chosen = resolve_stepsize(comm, problem, start)
    return _Start(problem.with_config(config), start, directory, chosen)


def _make_method(comm: "MPI.Intracomm", problem: Problem, data: Dataset | None, start: GenerationStart) -> Method:
    """Make the method that turns batches of `data`, which is on the device, into updates. Collective over `comm`."""
    config, device, x0 = problem.config, problem.device, problem.x0
    optimizer = optimizers.from_settings(config.optimizer, x0.size, x0.dtype, device.xp)
    if start.optimizer_state is not None:
        optimizer.load_state(start.optimizer_state)
    stepsize_at = raise_on_all_ranks(comm, lambda: _make_schedule(config, comm.size))
    sampler = Sampler(config.seed, comm.rank, None if data is None else data.train, config.data.batch_size)
    return Method(problem.objective, sampler, optimizer, stepsize_at, stragglers.delays_s(config, comm.rank))


def _create_files(comm: "MPI.Intracomm", begin: _Start, host: str) -> RankLog:
    """Create ``run.h5`` and the log of this rank. Collective over `comm`."""
    problem, start = begin.problem, begin.start
    described = run_record.describe_launch(comm, host, problem.device)
    attributes = problem.provenance | described | {"stepsize_chosen": begin.stepsize_chosen}
    raise_on_all_ranks(
        comm,
        lambda: (
            run_record.create_record(begin.directory, problem.config, attributes, problem.objective, start)
            if comm.rank == 0
            else None
        ),
    )
    config = problem.config
    settings = LogSettings(
        comm.rank, comm.size, config.log.versions_every, logs_intervals=config.exchange.every == "auto"
    )
    return raise_on_all_ranks(
        comm,
        lambda: RankLog(
            layout.generation_directory(begin.directory, start.generation),
            settings,
            start.versions_before,
            warn=mpi.print_warning,
        ),
    )


def _warn_of_launch(comm: "MPI.Intracomm", device: Device, shown: bool) -> None:
    """Print warnings about what makes this launch slow. Collective over `comm`."""
    for text in launch_warnings(comm):
        if shown and comm.rank == 0:
            mpi.print_warning(text)
    if device.pageable_bytes:
        mpi.print_warning(
            f"cannot page-lock {device.pageable_bytes / 1e6:.0f} MB of windows (see `ulimit -l`): training waits for "
            f"copies to and from {device.name}"
        )


def _make_schedule(config: Config, n_ranks: int) -> Schedule:
    settings = config.optimizer
    return schedules.make_schedule(
        settings.schedule,
        float(settings.stepsize),
        config.budget.gradients,
        step_every=settings.step_every,
        step_factor=settings.step_factor,
        concurrency=n_ranks,
    )
