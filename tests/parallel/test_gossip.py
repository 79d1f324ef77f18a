"""Exchange `gossip`: replicas are mixed, no rank waits, and push-sum neither loses nor creates mass."""

import math
import os
import time
from pathlib import Path

import numpy as np
import pytest

from hpc_dasgd.config.settings import ExchangeConfig
from hpc_dasgd.exchange.gossip import mixing, running_sums
from hpc_dasgd.exchange.gossip.choice import MIXINGS
from hpc_dasgd.exchange.interface import ExchangeSetup
from hpc_dasgd.exchange.reader import DROPS_UNTIL_NOTICE
from hpc_dasgd.overlay import topology
from hpc_dasgd.window.memory import Transfer
from hpc_dasgd.window.publication import HEADER_LENGTH, HeaderField

SIZES = [1, 2, 4]
N_PARAMS = 150
both_kinds = pytest.mark.parametrize("kind", MIXINGS)
all_graphs = pytest.mark.parametrize("graph", ["ring", "torus", "exponential", "random-regular", "complete"])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Divide `N_PARAMS` parameters into several blocks, of which the last one is shorter."""
    monkeypatch.setattr("hpc_dasgd.exchange.interface.BLOCK_BYTES", 64 * 4)


def make(comm, kind, graph, dtype=np.float64, every=1, request_reads=None):
    settings = ExchangeConfig(kind="gossip", mixing=kind, topology=graph, degree=2, every=every)
    setup = ExchangeSetup(comm, np.arange(N_PARAMS, dtype=dtype), settings, seed=1)
    return MIXINGS[kind](setup, request_reads=request_reads)


def noise_of(rank):
    return np.random.default_rng(rank).normal(size=N_PARAMS)


def push(exchange, values):
    """Make an update of `values`, then mix in what has arrived."""
    values = np.broadcast_to(values, N_PARAMS)
    exchange.push(lambda lo, hi, out: np.copyto(out, values[lo:hi], casting="same_kind"))
    exchange.pull()


def start_apart(exchange):
    """Move each replica by a different noise before anything is mixed, and return the replicas of all ranks."""
    noise, dtype = noise_of(exchange.comm.rank), exchange.parameters.dtype

    def update(lo, hi, out):
        if lo == 0:
            exchange.comm.Barrier()  # all ranks have read, and none has published
        out[:] = noise[lo:hi]

    exchange.push(update)
    return np.array(
        [np.arange(N_PARAMS) + np.float64(noise_of(rank).astype(dtype)) for rank in range(exchange.comm.size)]
    )


def finish(transfer):
    while not transfer.done():
        pass


def spread(replicas):
    """Return the root mean square distance of replicas from their mean."""
    replicas = np.array(replicas, np.float64)
    return math.sqrt(((replicas - replicas.mean(axis=0)) ** 2).sum() / len(replicas))


@pytest.mark.parallel([*SIZES, 8])
@both_kinds
@all_graphs
@pytest.mark.parametrize("every, request_reads", [(1, True), (3, False)], ids=["requests", "every-3-get-and-flush"])
def test_after_settle_all_replicas_are_the_same(comm, kind, graph, every, request_reads):
    exchange = make(comm, kind, graph, np.float32, every=every, request_reads=request_reads)
    for _ in range(30 + comm.rank):
        push(exchange, noise_of(comm.rank))
    assert np.all(exchange.versions <= [30 + rank for rank in range(comm.size)])
    replicas = comm.allgather(exchange.parameters)
    settled = exchange.settle()
    assert exchange.versions.tolist() == [30 + rank for rank in range(comm.size)]
    assert len(set(comm.allgather(exchange.parameters.tobytes()))) == 1
    difference = np.subtract(replicas, exchange.parameters, dtype=np.float64)
    assert settled.drift == pytest.approx(np.abs(difference).max(), rel=1e-6, abs=1e-12)
    assert settled.consensus_distance == pytest.approx(spread(replicas), rel=1e-9, abs=1e-9)
    if kind == "average":
        mean = np.mean(replicas, axis=0, dtype=np.float64)
        np.testing.assert_allclose(exchange.parameters, mean, rtol=1e-6, atol=1e-6)
    exchange.free()


@pytest.mark.parallel(SIZES)
@both_kinds
@all_graphs
def test_replicas_that_started_apart_converge(comm, kind, graph):
    exchange = make(comm, kind, graph)
    starts = start_apart(exchange)
    start = spread(starts)
    for _ in range(1000):
        for _ in range(20):
            push(exchange, 0.0)
            os.sched_yield()
        end = spread(comm.allgather(exchange.parameters))
        if end <= 1e-6 * start:
            break
    assert end <= 1e-6 * start
    settled = exchange.settle()
    assert settled.consensus_distance <= end * (1 + 1e-9) + 1e-12
    assert np.all(exchange.parameters >= starts.min(axis=0) - 1e-9)
    assert np.all(exchange.parameters <= starts.max(axis=0) + 1e-9)
    if kind == "push-sum":
        np.testing.assert_allclose(exchange.parameters, starts.mean(axis=0), rtol=1e-12, atol=1e-12)
    exchange.free()


@pytest.mark.parallel(SIZES)
@both_kinds
@pytest.mark.parametrize("graph", ["ring", "exponential"])
def test_equal_replicas_move_by_the_update_all_make(comm, kind, graph):
    """All ranks read, then all publish. With up to two ranks no mass is in transit in between."""
    exchange = make(comm, kind, graph)
    for step in range(1, 11):

        def update(lo, hi, out):
            if lo == 0:
                comm.Barrier()
            out[:] = 0.5

        exchange.push(update)
        comm.Barrier()
        if kind == "average" or comm.size <= 2:
            np.testing.assert_allclose(exchange.parameters, np.arange(N_PARAMS) + 0.5 * step, rtol=1e-14, atol=1e-14)
        else:
            assert np.all(exchange.parameters <= np.arange(N_PARAMS) + 0.5 * step + 1e-12)
            assert np.all(exchange.parameters >= np.arange(N_PARAMS) + 0.25 * step - 1e-12)
    exchange.settle()
    exchange.free()


@pytest.mark.parallel(SIZES)
@all_graphs
@pytest.mark.parametrize("every", [1, 3])
def test_an_update_weighs_in_the_mean_what_its_rank_weighed(comm, graph, every):
    """After any run ``sum z = n x_0 + sum of w u``: no update is lost or counted twice, and weights sum to n."""
    exchange = make(comm, "push-sum", graph, every=every)
    values, weight_sum = noise_of(comm.rank), 0.0
    for step in range(60 + 30 * comm.rank):

        def update(lo, hi, out):
            nonlocal weight_sum, before
            if lo == 0:
                weight_sum += exchange.weight
                before = exchange.parameters.copy()
            out[:] = values[lo:hi]

        before = None
        exchange.push(update)
        np.testing.assert_allclose(exchange.parameters, before + values, rtol=1e-9, atol=1e-9)
        exchange.pull()
        if step % 10 == 0:
            os.sched_yield()
    exchange.settle()
    assert comm.allreduce(exchange.weight) == pytest.approx(comm.size, abs=1e-12)
    expected = np.arange(N_PARAMS) + sum(comm.allgather(weight_sum * values)) / comm.size
    np.testing.assert_allclose(exchange.parameters, expected, rtol=1e-12, atol=1e-10)
    exchange.free()


@pytest.mark.parallel([2, 4])
def test_no_mass_is_lost_with_float32_parameters(comm):
    """The number of gifts depends on the scheduling of ranks; a test of the arithmetic makes 50,000 gifts."""
    exchange = make(comm, "push-sum", "exponential", np.float32)
    starts = start_apart(exchange)
    for _ in range(10_000):
        push(exchange, 0.0)
    exchange.settle()
    total = np.empty(N_PARAMS + 1)
    comm.Allreduce(exchange._mass, total)
    np.testing.assert_allclose(total[:-1], starts.sum(axis=0), rtol=1e-11, atol=1e-10)
    assert total[-1] == pytest.approx(comm.size, abs=1e-11)
    exchange.free()


@pytest.mark.parallel([4])
@both_kinds
@pytest.mark.parametrize("graph", ["ring", "exponential"])
def test_replicas_stay_close_in_many_steps_with_random_delays(comm, kind, graph):
    exchange = make(comm, kind, graph, np.float32)
    n_steps, rng = 5_000, np.random.default_rng(comm.rank)
    for delay_s in np.where(rng.random(n_steps) < 0.002, rng.exponential(2e-3, n_steps), 0.0):
        push(exchange, rng.normal(size=N_PARAMS) * 0.01)
        if delay_s:
            time.sleep(delay_s)
            assert np.all(np.isfinite(exchange.parameters))
    settled = exchange.settle()
    assert exchange.versions.tolist() == [n_steps] * 4
    assert settled.consensus_distance < 0.01 * math.sqrt(n_steps * N_PARAMS)
    exchange.free()


@pytest.mark.parallel(SIZES)
@both_kinds
@all_graphs
@pytest.mark.parametrize("every", [1, 3])
def test_a_request_of_one_rank_stops_all_ranks(comm, kind, graph, every):
    exchange = make(comm, kind, graph, every=every)
    while not exchange.stopping:
        push(exchange, 1.0)
        if comm.rank == comm.size - 1 and exchange.made == 20:
            exchange.stop()
    exchange.settle()
    assert exchange.versions[-1] == 20
    exchange.free()


@pytest.mark.parallel([2, 4])
@both_kinds
def test_no_rank_waits_for_a_rank_with_a_long_gradient(comm, kind, tmp_path):
    """Rank 0 makes one step, and no call to MPI until each of the others has made a hundred steps."""
    folder = Path(comm.bcast(str(tmp_path), root=0))
    exchange = make(comm, kind, "ring")
    comm.Barrier()
    push(exchange, 1.0)
    if comm.rank == 0:
        while len(list(folder.glob("done-*"))) < comm.size - 1:
            time.sleep(0.001)
    else:
        for _ in range(99):
            push(exchange, 1.0)
        (folder / f"done-{comm.rank}").touch()
    exchange.settle()
    assert exchange.versions.tolist() == [1] + [100] * (comm.size - 1)
    exchange.free()


@pytest.mark.parallel([2, 4, 8])
@all_graphs
def test_a_rank_that_receives_nothing_keeps_some_weight(comm, graph):
    exchange = make(comm, "push-sum", graph)
    if comm.rank == 0:
        for _ in range(1000):
            push(exchange, 0.0)
        assert running_sums.MIN_WEIGHT / comm.size <= exchange.weight < running_sums.MIN_WEIGHT
        np.testing.assert_allclose(exchange.parameters, np.arange(N_PARAMS), rtol=1e-13)
    comm.Barrier()
    for _ in range(20 * comm.size):
        push(exchange, 0.0)
        comm.Barrier()
    assert exchange.weight > running_sums.MIN_WEIGHT / comm.size
    exchange.settle()
    np.testing.assert_allclose(exchange.parameters, np.arange(N_PARAMS), rtol=1e-12)
    assert comm.allreduce(exchange.weight) == pytest.approx(comm.size, abs=1e-12)
    exchange.free()


@pytest.mark.parallel([4])
def test_slow_reader_notices_reach_an_owner_that_does_not_read_the_sender(comm, monkeypatch):
    """Rank 1 reads rank 0, which reads only ranks 2 and 3, and publishes three times during each read of rank 1."""
    exchange = make(comm, "average", "exponential")
    if comm.rank == 0:
        assert 1 not in topology.exponential(0, 4).sources
        push(exchange, 1.0)
        comm.send(None, dest=1)
        for _ in range(DROPS_UNTIL_NOTICE):
            comm.recv(source=1)
            for _ in range(3):
                push(exchange, 1.0)
            comm.send(None, dest=1)
        comm.recv(source=1)
        assert exchange._throttle.interval == 1
        n_steps = 0
        while exchange._throttle.interval == 1 and n_steps < 100 * mixing.HEADER_INTERVAL:
            push(exchange, 1.0)
            n_steps += 1
        assert exchange._throttle.interval == 2
    elif comm.rank == 1:
        read_slot = exchange._window.read_slot

        def interrupted(target, *arguments):
            transfer = read_slot(target, *arguments)
            finish(transfer)
            comm.send(None, dest=0)
            comm.recv(source=0)
            return transfer

        comm.recv(source=0)
        monkeypatch.setattr(exchange._window, "read_slot", interrupted)
        while exchange._reader.dropped_reads < DROPS_UNTIL_NOTICE:
            push(exchange, 1.0)
        assert exchange.versions[0] == 0
        monkeypatch.undo()
        comm.send(None, dest=0)
    comm.Barrier()
    exchange.settle()
    exchange.free()


def header_word(exchange, rank, word):
    header = np.zeros(HEADER_LENGTH, np.int64)
    finish(exchange._window.read_header(rank, 0, header))
    return header[word]


def push_in_step(exchange, values, n_steps):
    """Make as many steps as a gift needs; after them the replica is the one in the last publication."""
    for _ in range(n_steps):
        exchange.push(lambda lo, hi, out: np.copyto(out, values[lo:hi]))


@pytest.mark.parallel([4])
@both_kinds
def test_consensus_distance_is_that_of_published_replicas(comm, kind):
    exchange = make(comm, kind, "ring")
    if comm.rank == 0:
        assert math.isnan(exchange.consensus_distance())
    for n_publishing in (3, 4):  # ranks that have not published yet are left out
        comm.Barrier()
        if comm.rank < n_publishing and exchange.made == 0:
            push_in_step(exchange, noise_of(comm.rank), n_steps=2)
        replicas = comm.gather(exchange.parameters, root=0)
        if comm.rank == 0:
            assert exchange.consensus_distance() == pytest.approx(spread(replicas[:n_publishing]), rel=1e-12)
            np.testing.assert_array_equal(exchange.parameters, replicas[0])
            assert exchange.made == 2
        comm.Barrier()
    exchange.settle()
    exchange.free()


@pytest.mark.parallel([4])
@both_kinds
def test_a_rank_that_publishes_during_a_measurement_is_left_out_without_a_slow_reader_notice(comm, kind, monkeypatch):
    exchange = make(comm, kind, "complete")
    push_in_step(exchange, noise_of(comm.rank), n_steps=3)
    replicas = comm.gather(exchange.parameters, root=0)
    n_publications = exchange._channel.publication
    if comm.rank == 0:
        read_slot = exchange._window.read_slot

        def interrupted(target, *arguments):
            transfer = read_slot(target, *arguments)
            if target == 1:
                finish(transfer)
                comm.send(True, dest=1)
                comm.recv(source=1)
            return transfer

        monkeypatch.setattr(exchange._window, "read_slot", interrupted)
        others = [replicas[0], *replicas[2:]]
        assert exchange.consensus_distance() == pytest.approx(spread(others), rel=1e-12)
        comm.send(False, dest=1)
        assert header_word(exchange, 0, HeaderField.DROPPED_READS) == 0
        monkeypatch.undo()
    elif comm.rank == 1:
        while comm.recv(source=0):
            for _ in range(3):  # publications without gifts
                exchange._channel.begin()
                exchange._channel.publish()
            comm.send(None, dest=0)
        assert exchange._channel.publication >= n_publications + 9
    comm.Barrier()
    exchange.free()


@pytest.mark.parallel([2])
@both_kinds
def test_a_measurement_gives_up_reads_that_do_not_arrive(comm, kind, monkeypatch):
    exchange = make(comm, kind, "ring")
    push_in_step(exchange, noise_of(comm.rank), n_steps=1)
    comm.Barrier()
    if comm.rank == 0:
        monkeypatch.setattr(mixing, "MEASUREMENT_S", 0.01)
        reads, arrived = [], []

        class Late:
            def Test(self):
                return bool(arrived)

        def late(*arguments):
            reads.append(arguments)
            return Transfer([Late()])

        monkeypatch.setattr(exchange._window, "read_header", late)
        assert math.isnan(exchange.consensus_distance())
        assert math.isnan(exchange.consensus_distance())
        assert len(reads) == 1  # its memory is not used again before it is complete
        arrived.append(True)
        monkeypatch.undo()
        assert exchange.consensus_distance() > 0
    comm.Barrier()
    exchange.settle()
    exchange.free()


@pytest.mark.parallel([2])
@both_kinds
def test_staleness_of_a_gradient_is_known_after_its_push(comm, kind):
    """Rank 1 makes three updates while rank 0 computes its gradient."""
    exchange = make(comm, kind, "ring", request_reads=False)
    for turn in range(5):
        exchange.pull()
        used = exchange.versions.copy()
        comm.Barrier()
        for _ in range(3 * comm.rank):
            push(exchange, 1.0)
        comm.Barrier()
        if comm.rank == 0:
            assert used.tolist() == [turn, 3 * turn]
            push(exchange, 1.0)
            assert exchange.missed(used) == 3
            assert exchange.versions.tolist() == [turn + 1, 3 * turn + 3]
        comm.Barrier()
    exchange.settle()
    exchange.free()


@pytest.mark.parallel([4, 8])
@both_kinds
def test_an_exchange_costs_one_payload_and_few_headers(comm, kind, monkeypatch):
    exchange = make(comm, kind, "complete")
    n_steps, n_read = 200, 0
    read_slot = exchange._window.read_slot

    def counted(*arguments):
        nonlocal n_read
        n_read += 1
        return read_slot(*arguments)

    monkeypatch.setattr(exchange._window, "read_slot", counted)
    for _ in range(n_steps):
        push(exchange, 1.0)
    assert n_read <= n_steps + exchange._reader.dropped_reads
    payload = n_read * exchange._sources[0].seen.memory.nbytes
    headers = (exchange.transferred_bytes - payload) / 64
    assert 0 <= headers <= n_steps * (comm.size + 1) + exchange._reader.dropped_reads
    exchange.settle()
    exchange.free()
