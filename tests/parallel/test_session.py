"""A session serves a loop of the user's own as it serves `train`."""

import numpy as np
import pytest

import hpc_dasgd
from hpc_dasgd.analysis import replay
from hpc_dasgd.data.batches import Sampler
from hpc_dasgd.runtime.signals import StopSignals
from hpc_dasgd.training.finish import finish
from hpc_dasgd.training.request import RunRequest
from hpc_dasgd.training.setup import setup

STEPSIZE = 0.05


def settings(**changes):
    return {
        "name": "own-loop",
        "data": {"path": "digits", "batch_size": 16},
        "objective": {"kind": "softmax"},
        "optimizer": {"stepsize": STEPSIZE},
        "budget": {"gradients": 400},
        "log": {"evaluate_every_s": 1e9},
        **changes,
    }


def train_by_hand(comm, config, directory, resume=False):
    """Train with a loop that computes its own gradients and makes plain SGD updates of them."""
    with StopSignals() as signals:
        session, source = setup(comm, signals, RunRequest(config, run=directory, resume=resume, progress=False))
        parameters = session.exchange.parameters
        gradient = np.empty_like(parameters)
        split = hpc_dasgd.open_dataset("digits", parameters.dtype).train
        sampler = Sampler(0, comm.rank, split, 16)
        with session:
            while session.pull():
                step = session.begin_step()
                loss = source.objective.loss_and_gradient(parameters, sampler.batch(step.version_of_run), gradient)
                step.complete(loss)

                def update(lo, hi, out):
                    np.multiply(gradient[lo:hi], -STEPSIZE, out=out)

                step.stepsize, step.squared_norm = STEPSIZE, float(gradient @ gradient)
                session.push(step, update)
                session.record(step)
            return finish(session, source.objective)


@pytest.mark.parallel([1, 2])
def test_a_loop_of_the_users_own_writes_a_run_that_replays(comm, tmp_path):
    """The replay recomputes the run with the package's own sampler and optimizer, and must find the same bits."""
    directory = comm.bcast(tmp_path / "run", root=0)
    result = train_by_hand(comm, settings(), directory)
    assert result.gradients >= 400
    replicas = comm.allgather(result.parameters.tobytes())
    assert len(set(replicas)) == 1
    if comm.rank == 0:
        run = hpc_dasgd.open_run(directory)
        assert run.status == "complete" and run.counts.sum() == result.gradients
        assert replay.replay(run).agrees


@pytest.mark.parallel([2])
def test_a_loop_of_the_users_own_can_be_resumed(comm, tmp_path):
    directory = comm.bcast(tmp_path / "run", root=0)
    train_by_hand(comm, settings(), directory)
    result = train_by_hand(comm, settings(budget={"gradients": 800}), directory, resume=True)
    assert result.gradients >= 800
    if comm.rank == 0:
        run = hpc_dasgd.open_run(directory)
        assert len(run.generations) == 2
        assert replay.replay(run).agrees
