"""The training loop of one rank, from settings to files.

    mpiexec -n 4 hpc-dasgd train jobs/digits.toml

Everything collective stands before and after the loop; inside it no rank waits for another unless the
exchange is synchronous (`allreduce`).
"""

import json
import math
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from hpc_dasgd.config.settings import BudgetConfig, Config, load_config
from hpc_dasgd.console.progress import Progress
from hpc_dasgd.data.dataset import Dataset, Sampler
from hpc_dasgd.errors import TrainingError
from hpc_dasgd.exchange import registry
from hpc_dasgd.exchange.interface import IDLE_S
from hpc_dasgd.optim import optimizers, schedules
from hpc_dasgd.runtime import collective, launch_checks, mpi
from hpc_dasgd.runtime.clock import Clock
from hpc_dasgd.runtime.signals import Signals
from hpc_dasgd.storage import layout, log_writer
from hpc_dasgd.training import resume as resuming
from hpc_dasgd.training import run_record, running_statistics, setup, stepsize_from_theory, stragglers
from hpc_dasgd.training.checkpointing import Checkpoints
from hpc_dasgd.training.evaluation import Evaluation
from hpc_dasgd.training.exchange_interval import ExchangeInterval


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes
    ----------
    parameters : ndarray, shape (n_params,)
        Final parameters; the same bits on every rank (exchange `none`: each rank its own).
    run : Path
        The run directory.
    gradients : int
        Of all ranks together.
    seconds : float
        From the first step to the last of this rank.
    loss, accuracy : float
        On the evaluation set, of the final parameters of rank 0, or the lowest rank that lives; nan where the
        objective does not say.
    drift : float
        See `exchange.interface.Settled`.
    stepsize : float
        That of the settings, or the one that was chosen for them.
    stepsize_by : str
        ``"settings"``, or the bound that it was chosen by.
    signal : str
        Name of the signal that stopped the run early, with a checkpoint of every rank written; else empty.
    missing : list of str
        What should be in files and is not, on any rank; empty where all is well.
    died : tuple of int
        Ranks without which the others went on (``exchange.survive``), ascending.
    """

    parameters: np.ndarray
    run: Path
    gradients: int
    seconds: float
    loss: float
    accuracy: float
    drift: float
    stepsize: float
    stepsize_by: str
    signal: str = ""
    missing: list[str] = field(default_factory=list)
    died: tuple[int, ...] = ()


def train(
    config: Config | Mapping | str | Path,
    objective=None,
    data: Dataset | str | Path | None = None,
    comm=None,
    *,
    overrides: Iterable[str] = (),
    run: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Result:
    """Train, and write the run directory. Collective over `comm`.

    SIGTERM, SIGUSR1 and SIGINT on any rank end the run early, after every rank has written a checkpoint; a second
    signal ends the process at once. (Not where this is called from another than the main thread.)

    Parameters
    ----------
    config : Config, mapping, or path of a TOML file
    objective : optional
        An object with ``initial`` and ``loss_and_gradient`` in place of the one that `config` names.
    data : Dataset or path, optional
        In place of ``data.path``.
    comm : MPI.Intracomm, optional
        All ranks of the launch by default.
    overrides : iterable of str, optional
        ``section.key=value`` each.
    run : path, optional
        The run directory, not yet holding a run; ``runs/NAME-TIMESTAMP`` by default.
    resume : bool, optional
        Go on with the run in the directory `run`, from its newest good checkpoints; with none yet, begin it.
    progress : bool, optional
        Whether rank 0 shows on standard error how far it is.

    Raises
    ------
    ConfigError
        On every rank, where a setting or an input file is wrong on any.
    TrainingError
        On the rank that met a loss or gradient that is not finite. The other ranks go on, so the caller
        should end the job.
    LeftBehindError
        On a rank that the others took for dead (``exchange.survive``), once they have ended without it.
    """
    comm = mpi.comm_world() if comm is None else comm
    with Signals() as signals:  # behind the start of MPI: Intel MPI fails with handlers that were there before
        return _train(comm, signals, config, objective, data, overrides, run, resume, progress)


def _train(comm, signals: Signals, config, objective, data, overrides, run, resume: bool, progress: bool) -> Result:
    rank = comm.rank

    # What to train, on what: the same on every rank, or the same error.
    config = collective.raise_on_all_ranks(comm, lambda: load_config(config, overrides))
    given, data_given = objective is not None, data is not None
    objective, data, x0 = setup.agree_on_problem(comm, config, objective, data)
    device = setup.choose_device(comm, config, objective)
    passed = {"objective_given": given, "data_path": str(Path(data.path).absolute()) if data_given else ""}

    # From where: the objective's first parameters, or what earlier generations of the run have come to.
    directory, goes_on = run_record.choose_directory(comm, config, run, resume)
    start = resuming.resume_run(comm, directory, config, x0, mpi.warn) if goes_on else resuming.start_new_run(comm, x0)
    if goes_on:
        running_statistics.restore(comm, objective, directory)
    config, chosen = stepsize_from_theory.resolve_stepsize(
        comm, config, device, objective, data, start, stragglers.delays_s(config, rank)
    )
    optimizer = optimizers.from_settings(config.optimizer, x0.size, x0.dtype, device.xp)
    if start.optimizer_state is not None:
        optimizer.load_state(start.optimizer_state)
    stepsize_at = collective.raise_on_all_ranks(comm, lambda: _make_schedule(config, comm.size))
    data = data and data.on(device)
    sampler = Sampler(config.seed, rank, None if data is None else data.train, config.data.batch_size)

    # Where it goes.
    host = platform.node()
    started = passed | run_record.describe_launch(comm, host, device) | {"stepsize_chosen": chosen}
    collective.raise_on_all_ranks(
        comm, lambda: rank == 0 and run_record.create_record(directory, config, started, objective, start)
    )
    pace = ExchangeInterval(config.exchange.max_overhead) if config.exchange.every == "auto" else None
    log = collective.raise_on_all_ranks(
        comm,
        lambda: log_writer.RankLog(
            layout.generation_directory(directory, start.generation),
            rank,
            comm.size,
            config.log.versions_every,
            paced=pace is not None,
            before=start.versions_before,
            warn=mpi.warn,
        ),
    )

    replicas = registry.make_exchange(config.exchange, comm, start.x0, config.seed, device)
    evaluation = Evaluation(objective, data, config, log, evaluates=lambda: replicas.leads)
    gradient = device.zeros(x0.size, x0.dtype)
    held = replicas.versions.copy()
    first_version = int(start.versions_before[rank])
    delays_s = stragglers.delays_s(config, rank)
    done_s = pushed_s = begun_s = start.begun_s
    warnings = launch_checks.launch_warnings(comm)
    for text in warnings if progress and rank == 0 else ():
        mpi.warn(text)
    if device.pageable_bytes:
        mpi.warn(
            f"cannot page-lock {device.pageable_bytes / 1e6:.0f} MB of windows (see `ulimit -l`): training waits for"
            f" copies to and from {device.name}"
        )

    # From here on the checkpoints of this generation count.
    checkpoints = collective.raise_on_all_ranks(
        comm, lambda: Checkpoints(directory, config, start, replicas, optimizer, log, mpi.warn)
    )
    start, x0 = start.without_arrays, None
    clock = Clock(comm, host, start.begun_s)

    # NumPy's warnings of overflow would come from every rank, ahead of the one error that says where.
    quiet = np.errstate(over="ignore", invalid="ignore")
    bar = Progress(config.budget.gradients, progress and rank == 0, start.begun_s, start.gradients)
    missed = 0
    with log, quiet, bar:
        while True:
            # Take in what the others have published, and see whether somebody ended the run.
            resumed_s = clock.now()
            replicas.pull()
            now_s = clock.now()
            if pace is not None and replicas.made:
                exchange_s = pushed_s - done_s + now_s - resumed_s
                if pace.record(replicas.exchanging, exchange_s, done_s - begun_s):
                    log.append_pace(now_s, replicas.made, pace.chosen, pace.overhead)
                replicas.every = pace.every
            reached = evaluation.due(now_s) and evaluation.run(replicas, now_s)
            n_gradients = start.gradients + replicas.gradients
            if reached or signals.received:
                replicas.stop()
            elif _spent(config.budget, n_gradients, now_s):
                replicas.spent()
            if replicas.stopping:
                break
            if checkpoints.due(now_s):
                checkpoints.begin(now_s)
            if not replicas.computes:
                time.sleep(IDLE_S)
                continue

            # Compute a gradient at the replica as it is.
            version = replicas.made
            np.copyto(held, replicas.versions)
            begun_s = clock.now()
            batch = sampler.batch(first_version + version)
            loss = objective.loss_and_gradient(replicas.parameters, batch, gradient)
            device.poll_until_done(replicas.read_on)
            loss = float(loss)
            if delays_s is not None:
                time.sleep(next(delays_s))
            done_s = clock.now()
            if not math.isfinite(loss):
                where = f"gradient {first_version + version} of rank {rank}"
                raise TrainingError(f"loss is {loss} at {where} ({_remedy(config)})")

            # Turn it into an update, apply it, publish it.
            n_gradients = start.gradients + replicas.gradients
            stepsize_of = partial(stepsize_at, n_gradients, partial(replicas.missed, held))
            update = _Update(optimizer, gradient, stepsize_of, where=(first_version + version, config, rank))
            replicas.push(update)
            pushed_s = clock.now()
            log.append(begun_s, done_s, loss, update.norm, version, held, update.stepsize)
            if bar.shown:
                missed += replicas.missed(held)
            if bar.due(done_s):
                bar.show(
                    done_s, steps=version + 1, gradients=start.gradients + replicas.gradients, missed=missed, loss=loss
                )

        seconds = clock.now()
        # What this rank has done is safe first, where it holds just that; then every update into every replica.
        holds_own = replicas.combines in ("sum", "own")
        if holds_own:
            checkpoints.save(seconds)
        stopped = next(filter(None, replicas.allgather(signals.received)), "")
        settled = replicas.settle()
        if not holds_own:
            checkpoints.save(seconds)
        statistics = running_statistics.average_over_ranks(objective, replicas)
        if not stopped:
            evaluation.run(replicas, clock.now(), settled.consensus_distance)

    last = run_record.RankSummary(
        rank=rank,
        made=replicas.made,
        dropped_reads=settled.dropped_reads,
        transferred_bytes=replicas.transferred_bytes,
        clock_offset_s=clock.offset_s,
        clock_drift_s=0.0 if config.exchange.survive else clock.drift_s(),  # which would wait for ranks that died
        clock_error_s=clock.error_s,
        checkpoint_stall_s=checkpoints.longest_stall_s,
        loss=evaluation.loss,
        accuracy=evaluation.accuracy,
        missing=log.missing + checkpoints.missing,
    )
    ending = run_record.complete_record(directory, replicas, last, settled, start, seconds, stopped, statistics)
    final, died = device.to_host(replicas.parameters), replicas.died
    replicas.free()
    return Result(
        parameters=final,
        run=directory,
        gradients=ending.gradients,
        seconds=seconds,
        loss=ending.loss,
        accuracy=ending.accuracy,
        drift=settled.drift,
        stepsize=float(config.optimizer.stepsize),
        stepsize_by=f"bound {json.loads(chosen)['bound']}" if chosen else "settings",
        signal=stopped,
        missing=ending.missing,
        died=died,
    )


class _Update:
    """An optimizer's update that takes the gradient's norm on the way, while each block is in cache.

    The stepsize is asked for when the exchange makes the update, which has read the others' news by then. A
    norm that is not finite ends the update before it is published.
    """

    def __init__(self, optimizer, gradient, stepsize: Callable[[], float], where: tuple):
        self._optimizer, self._gradient, self._stepsize, self._where = optimizer, gradient, stepsize, where
        self._update = None
        self._squares = 0.0
        self.stepsize = math.nan

    def __call__(self, lo: int, hi: int, out: np.ndarray) -> None:
        if self._update is None:
            self.stepsize = self._stepsize()
            self._update = self._optimizer.update(self._gradient, self.stepsize)
        block = self._gradient[lo:hi]
        self._squares += float(block @ block)
        if not math.isfinite(self._squares):
            version, config, rank = self._where
            raise TrainingError(f"gradient norm is not finite at gradient {version} of rank {rank} ({_remedy(config)})")
        self._update(lo, hi, out)

    @property
    def norm(self) -> float:
        return math.sqrt(self._squares)


def _spent(budget: BudgetConfig, gradients: int, seconds: float) -> bool:
    return (budget.gradients is not None and gradients >= budget.gradients) or (
        budget.seconds is not None and seconds >= budget.seconds
    )


def _remedy(config: Config) -> str:
    return f"a smaller `optimizer.stepsize` than {config.optimizer.stepsize:g} may help"


def _make_schedule(config: Config, n_ranks: int):
    settings = config.optimizer
    return schedules.make_schedule(
        settings.schedule,
        settings.stepsize,
        config.budget.gradients,
        step_every=settings.step_every,
        step_factor=settings.step_factor,
        concurrency=n_ranks,
    )
