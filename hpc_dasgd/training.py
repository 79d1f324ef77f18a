"""The training loop of one rank, from settings to files.

    mpiexec -n 4 hpc-dasgd train jobs/digits.toml

Everything collective stands before and after the loop; inside it no rank waits for another unless the
exchange is synchronous (`allreduce`).
"""

import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path

import h5py
import numpy as np

import hpc_dasgd
from hpc_dasgd import arrays, exchange, launch, machine, objectives, optimizers, ranklog, runfile, stepsize, straggler
from hpc_dasgd.clock import Clock
from hpc_dasgd.config import BudgetConfig, Config, load_config
from hpc_dasgd.data import Dataset, Sampler, open_dataset
from hpc_dasgd.errors import ConfigError, TrainingError
from hpc_dasgd.evaluation import Evaluation
from hpc_dasgd.exchange.interface import IDLE_S
from hpc_dasgd.pace import Pace
from hpc_dasgd.progress import Progress


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
        On the evaluation set, of rank 0's final parameters; nan where the objective does not say.
    drift : float
        See `exchange.interface.Settled`.
    stepsize : float
        That of the settings, or the one that was chosen for them.
    stepsize_by : str
        ``"settings"``, or the bound that it was chosen by.
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


def train(
    config: Config | Mapping | str | Path,
    objective=None,
    data: Dataset | str | Path | None = None,
    comm=None,
    *,
    overrides: Iterable[str] = (),
    run: str | Path | None = None,
    progress: bool = True,
) -> Result:
    """Train, and write the run directory. Collective over `comm`.

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
    progress : bool, optional
        Whether rank 0 shows on standard error how far it is.

    Raises
    ------
    ConfigError
        On every rank, where a setting or an input file is wrong on any.
    TrainingError
        On the rank that met a loss or gradient that is not finite. The other ranks go on, so the caller
        should end the job.
    """
    comm = launch.world() if comm is None else comm
    rank = comm.rank

    # What to train, on what: the same on every rank, or the same error.
    config = launch.agreed(comm, lambda: load_config(config, overrides))
    xp = launch.agreed(comm, lambda: arrays.select(config.device.kind))
    given, data_given = objective is not None, data is not None
    objective, data, x0 = _agree_on_problem(comm, config, objective, data)
    passed = {"objective_given": given, "data_path": str(Path(data.path).absolute()) if data_given else ""}
    chosen = None
    if config.optimizer.stepsize == "bound":
        chosen = stepsize.choose(comm, config, objective, data, x0, straggler.delays_s(config, rank))
        config = replace(config, optimizer=replace(config.optimizer, stepsize=chosen.stepsize))
    optimizer = optimizers.from_settings(config.optimizer, x0.size, x0.dtype, xp)
    stepsize_at = launch.agreed(comm, lambda: _make_schedule(config, comm.size))
    sampler = Sampler(config.seed, rank, None if data is None else data.train, config.data.batch_size)

    # Where it goes.
    host = platform.node()
    directory = comm.bcast(Path(run or _default_directory(config)) if rank == 0 else None, root=0)
    started = passed | _describe_launch(comm, host)
    started["stepsize_chosen"] = json.dumps(stepsize.as_dict(chosen)) if chosen else ""
    launch.agreed(comm, lambda: rank == 0 and _create_run(directory, config, started, objective, x0))
    pace = Pace(config.exchange.max_overhead) if config.exchange.every == "auto" else None
    log = launch.agreed(
        comm,
        lambda: ranklog.RankLog(directory, rank, comm.size, config.log.versions_every, paced=pace is not None),
    )

    replicas = exchange.make(config.exchange, comm, x0, config.seed)
    # Without exchange nobody would tell the other ranks that rank 0 has reached the target.
    alone = config.exchange.kind == "none" and config.budget.target_loss is not None
    evaluation = Evaluation(objective, data, config, log, evaluates=rank == 0 or alone)
    gradient = np.zeros_like(replicas.parameters)
    held = replicas.versions.copy()
    delays_s = straggler.delays_s(config, rank)
    done_s = pushed_s = begun_s = 0.0
    comm.Barrier()
    clock = Clock(comm, host)
    start_s = clock.now()

    # NumPy's warnings of overflow would come from every rank, ahead of the one error that says where.
    quiet = np.errstate(over="ignore", invalid="ignore")
    bar = Progress(config.budget.gradients, progress and rank == 0)
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
            if reached or _spent(config.budget, replicas.gradients, now_s):
                replicas.stop()
            if replicas.stopping:
                break
            if not replicas.computes:
                time.sleep(IDLE_S)
                continue

            # Compute a gradient at the replica as it is.
            version = replicas.made
            np.copyto(held, replicas.versions)
            begun_s = clock.now()
            loss = objective.loss_and_gradient(replicas.parameters, sampler.batch(version), gradient)
            if delays_s is not None:
                time.sleep(next(delays_s))
            done_s = clock.now()
            if not math.isfinite(loss):
                raise TrainingError(f"loss is {loss} at gradient {version} of rank {rank} ({_remedy(config)})")

            # Turn it into an update, apply it, publish it.
            stepsize_of = partial(stepsize_at, replicas.gradients, partial(replicas.missed, held))
            update = _Update(optimizer, gradient, stepsize_of, where=(version, config, rank))
            replicas.push(update)
            pushed_s = clock.now()
            log.append(begun_s, done_s, loss, update.norm, version, held, update.stepsize)
            if bar.shown:
                missed += replicas.missed(held)
            if bar.due(done_s):
                bar.show(done_s, steps=version + 1, gradients=replicas.gradients, missed=missed, loss=loss)

        seconds = clock.now() - start_s
        # Every update of every rank into every replica; then the last word on how good it is.
        settled = replicas.settle()
        evaluation.run(replicas, clock.now(), settled.consensus_distance)
    replicas.free()

    summary = _summarize(comm, replicas, settled, clock, seconds)
    final = replicas.parameters
    launch.agreed(comm, lambda: rank == 0 and runfile.complete_run(directory, final=final, attributes=summary))
    loss, accuracy = comm.bcast((evaluation.loss, evaluation.accuracy), root=0)
    return Result(
        parameters=final,
        run=directory,
        gradients=summary["gradients"],
        seconds=seconds,
        loss=loss,
        accuracy=accuracy,
        drift=settled.drift,
        stepsize=float(config.optimizer.stepsize),
        stepsize_by=f"bound {chosen.bound}" if chosen else "settings",
    )


class _Update:
    """An optimizer's update that takes the gradient's norm on the way, while each block is in cache.

    The stepsize is asked for when the exchange makes the update, which has read the others' news by then. A
    norm that is not finite ends the update before it is published.
    """

    def __init__(self, optimizer, gradient: np.ndarray, stepsize: Callable[[], float], where: tuple):
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


def _open_data(config: Config, data) -> Dataset | None:
    path = data if data is not None else config.data.path
    return path if path is None or isinstance(path, Dataset) else open_dataset(path, config.device.dtype)


def _agree_on_problem(comm, config: Config, objective, data) -> tuple[object, Dataset | None, np.ndarray]:
    """Objective, data set and first parameters, the same on every rank. Collective."""
    data = launch.agreed(comm, lambda: _open_data(config, data))
    if objective is None:
        options = dict(config.objective.options)
        objective = launch.agreed(comm, lambda: objectives.make(config.objective.kind, options, data))
    x0 = launch.agreed(comm, lambda: _initial(objective, config))
    launch.agreed(comm, lambda: _check(config, comm.size, objective, data))
    comm.Bcast(x0, root=0)
    return objective, data, x0


def _describe_launch(comm, host: str) -> dict:
    """What ``run.h5`` says of the ranks and their machines. Collective."""
    described = comm.allgather(machine.describe())
    return {
        "n_ranks": comm.size,
        "hosts": comm.allgather(host),
        "nodes": launch.nodes(comm),
        "cores": launch.cores(comm),
        **{name: "; ".join(sorted({other[name] for other in described})) for name in described[0]},
    }


def _summarize(comm, replicas, settled, clock: Clock, seconds: float) -> dict:
    """What ``run.h5`` says of how the run ended. Collective."""
    return {
        "gradients": comm.allreduce(replicas.made),
        "seconds": seconds,
        "drift": settled.drift,
        "dropped_reads": comm.allreduce(settled.dropped_reads),
        "consensus_distance": settled.consensus_distance,
        "transferred_bytes": comm.allgather(replicas.transferred_bytes),
        "clock_offset_s": comm.allgather(clock.offset_s),
        "clock_drift_s": comm.allgather(clock.drift_s()),
        "clock_error_s": max(comm.allgather(clock.error_s)),
    }


def _initial(objective, config: Config) -> np.ndarray:
    """The objective's first parameters, in the settings' dtype, checked."""
    x0 = np.ascontiguousarray(objective.initial(np.random.default_rng(config.seed)), config.device.dtype)
    if x0.ndim != 1 or x0.size == 0:
        raise ConfigError(f"`initial` of the objective must return a non-empty vector, got shape {x0.shape}")
    if not np.isfinite(x0).all():
        raise ConfigError("`initial` of the objective must return finite parameters")
    return x0


def _check(config: Config, n_ranks: int, objective, data: Dataset | None) -> None:
    """Hold the settings against what is known only now: the ranks, the objective, the data."""
    if config.exchange.kind == "server":
        server = config.exchange.server_rank
        if server >= n_ranks:
            raise ConfigError(f"`exchange.server_rank` must be below the number of ranks, {n_ranks}, got {server}")
        if n_ranks == 1 and not config.exchange.server_computes:
            raise ConfigError("`exchange.server_computes` must be true on a single rank, got false")
    beyond = [rank for rank in config.straggler.ranks if rank >= n_ranks]
    if beyond and config.straggler.delay_ms > 0:
        raise ConfigError(f"`straggler.ranks` must be below the number of ranks, {n_ranks}, got {beyond[0]}")
    if config.budget.target_loss is None:
        return
    # The run might never end otherwise.
    if not callable(getattr(objective, "evaluate", None)):
        raise ConfigError("`budget.target_loss` needs an objective with `evaluate`, got one without")
    if data is not None and data.test.n_rows == 0:
        raise ConfigError(f"`budget.target_loss` needs an evaluation set, got no rows in `/test/x` of {data.path}")


def _make_schedule(config: Config, n_ranks: int):
    settings = config.optimizer
    return optimizers.make_schedule(
        settings.schedule,
        settings.stepsize,
        config.budget.gradients,
        step_every=settings.step_every,
        step_factor=settings.step_factor,
        concurrency=n_ranks,
    )


def _default_directory(config: Config) -> Path:
    """Make a new directory ``runs/NAME-TIMESTAMP``; jobs that start in the same second get different ones."""
    first = Path("runs") / f"{config.name}-{datetime.now():%Y%m%d-%H%M%S}"
    for number in count(1):
        directory = first if number == 1 else first.with_name(f"{first.name}-{number}")
        try:
            directory.mkdir(parents=True)
        except OSError:
            if os.path.lexists(directory):
                continue
            # Else `create_run` will say what is wrong with the place.
        return directory


def _create_run(directory: Path, config: Config, started: Mapping, objective, x0: np.ndarray) -> None:
    import mpi4py
    from mpi4py import MPI

    attributes = {
        "seed": config.seed,
        **started,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv),
        "hpc_dasgd_version": hpc_dasgd.__version__,
        "python_version": platform.python_version(),
        "numpy_version": np.__version__,
        "h5py_version": h5py.__version__,
        "hdf5_version": h5py.version.hdf5_version,
        "mpi4py_version": mpi4py.__version__,
        "mpi_library": " ".join(MPI.Get_library_version().split("\n")[0].strip("\0").split()),
    }
    shapes = getattr(objective, "parameter_shapes", None)
    runfile.create_run(directory, config_toml=config.to_toml(), attributes=attributes, x0=x0, parameter_shapes=shapes)
