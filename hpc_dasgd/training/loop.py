"""The training loop of one rank, in the words of the algorithm.

Example of a launch::

    mpiexec -n 4 hpc-dasgd train jobs/digits.toml

All collective calls are in `setup` and `finish`. Inside the loop no rank waits for another, unless the exchange is
synchronous.
"""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hpc_dasgd.config.settings import Config
from hpc_dasgd.data.dataset import Dataset
from hpc_dasgd.exchange.interface import IDLE_S
from hpc_dasgd.objectives.interface import Objective
from hpc_dasgd.runtime import mpi
from hpc_dasgd.runtime.signals import StopSignals
from hpc_dasgd.training.finish import finish
from hpc_dasgd.training.gradients import GradientSource
from hpc_dasgd.training.request import RunRequest
from hpc_dasgd.training.result import Result
from hpc_dasgd.training.session import Session
from hpc_dasgd.training.setup import setup

if TYPE_CHECKING:
    from mpi4py import MPI


def train_until_stopped(session: Session, source: GradientSource) -> None:
    """Train this rank until the budget is spent or a rank ends the run. Not collective.

    Parameters
    ----------
    session : Session
        The run: replica, exchange, log, clock, and what happens beside the steps.
    source : GradientSource
        Computes the gradients, and the updates made from them.
    """
    while session.pull():
        if not session.computes:
            time.sleep(IDLE_S)
            continue
        step = session.begin_step()
        source.compute(step)
        session.push(step, source.update(step))
        session.record(step)


def train(
    config: Config | Mapping[str, object] | str | Path,
    objective: Objective | None = None,
    data: Dataset | str | Path | None = None,
    comm: "MPI.Intracomm | None" = None,
    *,
    overrides: Iterable[str] = (),
    run: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Result:
    """Train, and write the run directory. Collective over `comm`.

    SIGTERM, SIGUSR1 and SIGINT on any rank end the run early, after every rank has written a checkpoint; a second
    signal ends the process at once. Signals are handled only if `train` is called in the main thread.

    Parameters
    ----------
    config : Config, mapping, or path of a TOML file
        Settings of the run.
    objective : Objective, optional
        Used in place of the objective that `config` names.
    data : Dataset or path, optional
        Data set in place of ``data.path``.
    comm : MPI.Intracomm, optional
        The ranks that train; all ranks of the launch by default.
    overrides : iterable of str, optional
        Settings that replace those of `config`, each as ``section.key=value``.
    run : path, optional
        Run directory, which must not hold a run unless `resume` is true; ``runs/NAME-TIMESTAMP`` by default.
    resume : bool, optional
        Whether to continue the run in `run` from its newest good checkpoints, or to begin it if there is none.
    progress : bool, optional
        Whether rank 0 shows the progress of the run on standard error.

    Returns
    -------
    result : Result

    Raises
    ------
    ConfigError
        On every rank, if a setting or an input file is wrong.
    TrainingError
        On the rank whose loss or gradient is not finite. The other ranks continue, so the caller should end the job.
    LeftBehindError
        On a rank that the others took for dead (``exchange.survive``), after they have ended the run without it.

    Examples
    --------
    >>> result = train("jobs/digits.toml", overrides=["exchange.topology=tree"])  # doctest: +SKIP
    """
    comm = mpi.comm_world() if comm is None else comm
    request = RunRequest(config, objective, data, tuple(overrides), run, resume, progress)
    # After MPI_Init: Intel MPI fails if signal handlers were installed before.
    with StopSignals() as signals:
        session, source = setup(comm, signals, request)
        with session:
            train_until_stopped(session, source)
            return finish(session, source.objective)
