"""Going on from checkpoints: with any number of ranks, any exchange, and files that are not what they were."""

import os
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest

import hpc_dasgd
from hpc_dasgd import objectives
from hpc_dasgd.storage import checkpoint_file, checkpoint_selection

N_PARAMS = 60
EXCHANGES = {
    "complete": {"kind": "read"},
    "every-3": {"kind": "read", "every": 3},
    "tree": {"kind": "read", "topology": "tree"},
    "accumulate": {"kind": "accumulate"},
    "server": {"kind": "server"},
    "average": {"kind": "gossip", "topology": "ring"},
    "push-sum": {"kind": "gossip", "topology": "ring", "mixing": "push-sum"},
    "allreduce": {"kind": "allreduce"},
}


def settings(gradients, optimizer=None, exchange=None, **sections):
    return {
        "objective": {"kind": "quadratic", "dimension": N_PARAMS, "noise": 1.0},
        "optimizer": {"stepsize": 0.05} | (optimizer or {}),
        "exchange": exchange or {"kind": "read"},
        "budget": {"gradients": gradients},
        "device": {"dtype": "float64"},
    } | sections


@pytest.fixture
def train_on(comm, tmp_path):
    """Train on the first `n_ranks` ranks, and return the result on every rank."""

    def run(n_ranks, config, **options):
        directory = comm.bcast(tmp_path / "run", root=0)
        with first_ranks(comm, n_ranks) as some:
            options = {"run": directory, "progress": False} | options
            result = some and hpc_dasgd.train(config, comm=some, **options)
        return comm.bcast(result, root=0)

    return run


@contextmanager
def first_ranks(comm, n_ranks):
    """A communicator of the first ranks; None on the others."""
    some = comm.Split(0 if comm.rank < n_ranks else 1)
    yield some if comm.rank < n_ranks else None
    some.Free()
    comm.Barrier()


@pytest.mark.parallel([4])
@pytest.mark.parametrize("ranks", [(3, 3), (4, 1), (2, 4), (3, 2)], ids=str)
@pytest.mark.parametrize("exchange", EXCHANGES.values(), ids=EXCHANGES)
def test_a_run_resumes_with_any_number_of_ranks(train_on, comm, exchange, ranks):
    first = train_on(ranks[0], settings(200, exchange=exchange))
    second = train_on(ranks[1], settings(400, exchange=exchange), resume=True)
    assert first.gradients >= 200
    assert first.missing == second.missing == []
    assert second.gradients >= 400
    if comm.rank:
        return
    later = first.run / "generation_00001" / "run.h5"
    with h5py.File(later) as file:
        attributes, x0 = dict(file.attrs), file["x0"][:]
    assert (attributes["generation"], attributes["parent"], attributes["n_ranks"]) == (1, 0, ranks[1])
    assert 0 < attributes["begun_s"] <= first.seconds + 5  # that of the last rank, and the first one's
    before = attributes["versions_before"]
    assert before.shape == (max(ranks),)
    if exchange["kind"] == "read":
        # The sum of all contributions is what every replica came to; on a tree it was added in another order.
        assert before.sum() == first.gradients
        tolerance = 1e-12 if "topology" in exchange else 0
        np.testing.assert_allclose(x0, first.parameters, rtol=0, atol=tolerance)
    else:
        # Replicas, as they were just before the last updates came in.
        assert first.gradients - 2 * ranks[0] <= before.sum() <= first.gradients
        assert np.linalg.norm(x0 - first.parameters) < np.linalg.norm(first.parameters)
    run = hpc_dasgd.open_run(first.run)
    assert (run.status, run.n_ranks) == ("complete", max(ranks))
    assert run.final.tobytes() == second.parameters.tobytes()
    assert run.counts.sum() == len(run.gradients) == second.gradients
    for rank in range(run.n_ranks):
        rows = run.gradients[run.rows(rank)]
        assert rows["version"].tolist() == list(range(len(rows)))
    assert run.staleness().as_dict()["gradients"] == second.gradients


# How checkpoints become parameters, as ``docs/file-format.md`` describes it.
COMBINES = dict.fromkeys(EXCHANGES, "newest") | {"complete": "sum", "every-3": "sum", "tree": "sum"}
COMBINES |= {"average": "mean", "push-sum": "mean"}


@pytest.mark.parallel([3])
@pytest.mark.parametrize("name", EXCHANGES)
def test_parameters_are_the_combination_of_the_checkpoints_of_all_ranks(train_on, comm, name):
    first = train_on(3, settings(200, exchange=EXCHANGES[name]))
    saved = newest_checkpoints(first.run) if comm.rank == 0 else []
    train_on(3, settings(400, exchange=EXCHANGES[name]), resume=True)
    if comm.rank:
        return
    assert {attributes["combines"] for attributes, _ in saved} == {COMBINES[name]}
    with h5py.File(first.run / "generation_00001" / "run.h5") as file:
        x0 = file["x0"][:]
    contributions = np.array([contribution for _, contribution in saved])
    if COMBINES[name] == "newest":
        gradients = [attributes["gradients"] for attributes, _ in saved]
        newest = [values for n, values in zip(gradients, contributions, strict=True) if n == max(gradients)]
        assert any(np.array_equal(x0, values) for values in newest)
    else:
        expected = contributions.sum(axis=0) if COMBINES[name] == "sum" else contributions.mean(axis=0)
        np.testing.assert_allclose(x0, expected, rtol=1e-12, atol=1e-13)


def newest_checkpoints(run):
    """Attributes and contribution of the newest checkpoint of each rank, as any HDF5 tool reads them."""
    newest = {}
    for path in (run / "checkpoint").glob("rank_*.h5"):
        with h5py.File(path) as file:
            attributes, contribution = dict(file.attrs), file["contribution"][:] if "contribution" in file else None
        rank = attributes["rank"]
        if rank not in newest or attributes["t_s"] > newest[rank][0]["t_s"]:
            newest[rank] = attributes, contribution
    return [newest[rank] for rank in sorted(newest)]


@pytest.mark.parallel([1])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("kind", ["sgd", "momentum", "adam"])
def test_a_run_on_one_rank_that_was_interrupted_twice_equals_an_uninterrupted_run(comm, tmp_path, kind, schedule):
    """Sampling, optimizer state and schedule continue, so the parameters agree bit for bit."""
    optimizer = {"kind": kind, "schedule": schedule}
    whole = hpc_dasgd.train(settings(90, optimizer), comm=comm, run=tmp_path / "whole")
    for gradients in (30, 60, 90):  # but the budget, a schedule's horizon, is that of the whole run
        objective = Stopping(30 if gradients < 90 else 0, N_PARAMS)
        parts = hpc_dasgd.train(
            settings(90, optimizer), objective=objective, comm=comm, run=tmp_path / "parts", resume=True
        )
        assert (parts.signal, parts.gradients) == ("SIGUSR1" if gradients < 90 else "", gradients)
    assert parts.parameters.tobytes() == whole.parameters.tobytes()


class Stopping:
    """The quadratic of `settings`, which sends this process a signal at its n-th gradient."""

    def __init__(self, n_gradients, n_params):
        self._quadratic = objectives.make("quadratic", {"dimension": n_params, "noise": 1.0}, None)
        self._left = n_gradients
        self.evaluate = self._quadratic.evaluate

    def initial(self, rng):
        return self._quadratic.initial(rng)

    def loss_and_gradient(self, parameters, batch, out):
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGUSR1)
        return self._quadratic.loss_and_gradient(parameters, batch, out)


@pytest.mark.parallel([3])
def test_a_signal_to_one_rank_stops_all_ranks_after_their_checkpoints(comm, tmp_path):
    objective = Stopping(20 if comm.rank == 1 else 0, N_PARAMS)
    result = hpc_dasgd.train(settings(10**6), objective=objective, comm=comm, run=tmp_path / "run")
    assert result.signal == "SIGUSR1"
    assert result.missing == []
    assert 20 <= result.gradients < 10**5
    if comm.rank == 0:
        run = hpc_dasgd.open_run(result.run)
        assert run.status == "stopped"
        assert run.final is None
        newest = [
            max(map(checkpoint_file.read_header, files), key=lambda h: h.t_s)
            for files in checkpoint_file.list_checkpoints(result.run).values()
        ]
        assert [header.version for header in newest] == run.counts.tolist()
        assert run.counts.sum() == result.gradients
    comm.Barrier()


def newest(run, rank):
    return max(checkpoint_file.list_checkpoints(run)[rank], key=lambda path: checkpoint_file.read_header(path).t_s)


def flip_one_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parallel([3])
@pytest.mark.parametrize("damage", [flip_one_bit, truncate, Path.unlink], ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_named_and_the_older_one_is_used(train_on, comm, capfd, damage):
    stopped = train_on(3, settings(150)).run
    if comm.rank == 0:
        path = newest(stopped, 1)
        damage(path)
    result = train_on(3, settings(300), resume=True)
    assert result.missing == []
    if comm.rank == 0:
        said = capfd.readouterr().err
        assert (path.name in said) == (damage is not Path.unlink)
        with h5py.File(stopped / "generation_00001" / "run.h5") as file:
            before = file.attrs["versions_before"]
        assert before[1] == 0  # its older one is of the start
        assert before[0] > 0
        assert before[2] > 0
        run = hpc_dasgd.open_run(stopped)
        assert run.counts.sum() == len(run.gradients) == result.gradients
        run.staleness()


@pytest.mark.parallel([3])
def test_without_a_good_checkpoint_of_every_rank_no_file_is_changed(train_on, comm):
    stopped = train_on(3, settings(150)).run
    if comm.rank == 0:
        for path in checkpoint_file.list_checkpoints(stopped)[2]:
            flip_one_bit(path)
    comm.Barrier()
    before = {path: path.read_bytes() for path in sorted(stopped.rglob("*.h5"))}
    comm.Barrier()
    with first_ranks(comm, 2) as some:
        if some:
            with pytest.raises(hpc_dasgd.ConfigError, match=r"a good checkpoint.*rank_00002.0.h5 is damaged"):
                hpc_dasgd.train(settings(300), comm=some, run=stopped, resume=True)
    assert {path: path.read_bytes() for path in sorted(stopped.rglob("*.h5"))} == before


@pytest.mark.parallel([3])
def test_a_checkpoint_of_another_run_is_not_used(train_on, comm, tmp_path, capfd):
    stopped = train_on(3, settings(150)).run
    other = comm.bcast(tmp_path / "other", root=0)
    train_on(3, settings(150, seed=1), run=other)
    if comm.rank == 0:
        shutil.copyfile(newest(other, 1), newest(stopped, 1))
    train_on(3, settings(300), resume=True)
    if comm.rank == 0:
        assert "belongs to another run" in capfd.readouterr().err


@pytest.mark.parallel([2])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"objective": {"kind": "quadratic", "dimension": 7}},
            "objective of 60 parameters of float64.*got 7 of float64",
        ),
        ({"device": {"dtype": "float32"}}, "of float64.*got 60 of float32"),
        ({"log": {"versions": "every 3"}}, "`log.versions` must stay 'full'"),
    ],
    ids=["other-size", "other-dtype", "other-log"],
)
def test_settings_that_do_not_fit_the_run_are_refused(train_on, comm, changes, message):
    run = train_on(2, settings(50)).run
    with pytest.raises(hpc_dasgd.ConfigError, match=message):
        hpc_dasgd.train(settings(100) | changes, comm=comm, run=run, resume=True)


@pytest.mark.parallel([1])
def test_a_run_file_whose_settings_cannot_be_read_is_named(comm, tmp_path):
    run = hpc_dasgd.train(settings(50), comm=comm, run=tmp_path / "run").run
    with h5py.File(run / "run.h5", "r+") as file:
        file.attrs["config"] = file.attrs["config"].replace('"read"', '"reed"')
    with pytest.raises(hpc_dasgd.ConfigError, match=r"needs the run\.h5 of .*`exchange.kind`.*'reed'"):
        hpc_dasgd.train(settings(100), comm=comm, run=run, resume=True)


@pytest.mark.parallel([2])
def test_a_run_is_never_overwritten_and_resume_needs_a_directory(train_on, comm):
    run = train_on(2, settings(50)).run
    with pytest.raises(hpc_dasgd.ConfigError, match="holds no"):
        hpc_dasgd.train(settings(100), comm=comm, run=run)
    with pytest.raises(hpc_dasgd.ConfigError, match="`resume` needs the directory"):
        hpc_dasgd.train(settings(100), comm=comm, resume=True)
    if comm.rank == 0:
        (run / "run.h5").unlink()
        for path in run.glob("rank_*.h5"):
            path.unlink()
    comm.Barrier()
    with pytest.raises(hpc_dasgd.ConfigError, match="holds no run yet"):
        hpc_dasgd.train(settings(100), comm=comm, run=run, resume=True)


@pytest.mark.parallel([2])
def test_a_run_that_was_killed_before_its_first_step_starts_again(train_on, comm):
    """Not every rank has a checkpoint then, and the same command must start the run."""
    directory = train_on(2, settings(100)).run
    if comm.rank == 0:
        for path in directory.glob("rank_*.h5"):
            path.unlink()
        shutil.rmtree(directory / "checkpoint")
    result = train_on(2, settings(150), resume=True)
    if comm.rank == 0:
        run = hpc_dasgd.open_run(directory)
        assert [(each.number, each.attributes["parent"]) for each in run.generations] == [(0, -1), (1, 0)]
        assert run.counts.sum() == len(run.gradients) == result.gradients >= 150
        for path in checkpoint_file.list_checkpoints(directory)[0]:
            path.unlink()
    comm.Barrier()
    with pytest.raises(hpc_dasgd.ConfigError, match="generation 1 has none of rank 0"):
        hpc_dasgd.train(settings(200), comm=comm, run=directory, resume=True)


@pytest.mark.parallel([2])
def test_a_run_without_exchange_cannot_resume_with_an_exchange(train_on, comm):
    run = train_on(2, settings(100, exchange={"kind": "none"})).run
    with pytest.raises(hpc_dasgd.ConfigError, match="must stay none to resume"):
        hpc_dasgd.train(settings(200), comm=comm, run=run, resume=True)
    second = train_on(2, settings(200, exchange={"kind": "none"}), resume=True)
    assert second.gradients >= 200


@pytest.mark.parallel([3])
@pytest.mark.parametrize("exchange", ["complete", "accumulate", "push-sum", "allreduce"])
def test_a_finished_run_can_be_continued(train_on, comm, exchange):
    """The parameters in its checkpoints can be exported."""
    first = train_on(
        3, settings(200, exchange=EXCHANGES[exchange] | ({"every": 5} if exchange == "accumulate" else {}))
    )
    if comm.rank == 0:
        run_id = hpc_dasgd.open_run(first.run).attributes["run_id"]
        saved = checkpoint_selection.read_parameters(first.run, run_id)
        np.testing.assert_allclose(saved, first.parameters, rtol=0, atol=1e-12)
    comm.Barrier()
    train_on(2, settings(250, exchange=EXCHANGES["complete"]), resume=True)
    if comm.rank == 0:
        with h5py.File(first.run / "generation_00001" / "run.h5") as file:
            np.testing.assert_allclose(file["x0"][:], first.parameters, rtol=0, atol=1e-12)
            assert file.attrs["versions_before"].sum() == first.gradients


@pytest.mark.parallel([2])
def test_a_generation_without_checkpoints_is_ignored(train_on, comm):
    """A job that died before its first checkpoints leaves a folder; the run continues from the generation before."""
    directory = train_on(2, settings(100)).run
    kept = directory.parent / "kept"
    if comm.rank == 0:
        shutil.copytree(directory / "checkpoint", kept)
    train_on(2, settings(200), resume=True)
    if comm.rank == 0:
        shutil.rmtree(directory / "checkpoint")
        shutil.copytree(kept, directory / "checkpoint")
    result = train_on(2, settings(200), resume=True)
    if comm.rank == 0:
        run = hpc_dasgd.open_run(directory)
        assert [generation.number for generation in run.generations] == [0, 2]
        assert run.counts.sum() == len(run.gradients) == result.gradients
