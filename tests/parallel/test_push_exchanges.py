"""Exchanges that push: every update that is added to models of other ranks or of the server arrives exactly once.

Updates are small non-negative integers: float32 sums are exact in any order, the sum of a rank only grows, and a
replica can be compared with the least that its version vector permits.
"""

import time
from pathlib import Path

import numpy as np
import pytest

from hpc_dasgd.config.settings import ExchangeConfig
from hpc_dasgd.exchange.interface import ExchangeSetup
from hpc_dasgd.exchange.push.accumulate import AccumulateExchange
from hpc_dasgd.exchange.push.server import ServerExchange
from tests.parallel.integer_updates import N_PARAMS
from tests.parallel.integer_updates import Updates as IntegerUpdates

SIZES = [1, 2, 4]
# The rank of the server and whether it computes gradients; None if there is no server.
KINDS = {
    "accumulate": None,
    "server-first": (0, True),
    "server-last": (-1, True),
    "idle-server-first": (0, False),
    "idle-server-last": (-1, False),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Divide `N_PARAMS` float32 parameters into three blocks, of which the last one is shorter."""
    monkeypatch.setattr("hpc_dasgd.exchange.interface.BLOCK_BYTES", 64 * 4)


class Updates(IntegerUpdates):
    """Non-negative updates, so that the sum in a replica only grows."""

    def __init__(self, rank):
        super().__init__(rank, 0, 3)


class Reference:
    """The replicas that belong to version vectors."""

    def __init__(self, n_ranks):
        self._updates = [Updates(rank) for rank in range(n_ranks)]

    def held_by(self, versions):
        sums = (updates.sum_to(int(version)) for updates, version in zip(self._updates, versions, strict=True))
        return np.arange(N_PARAMS) + sum(sums)


class Late:
    """A transfer that starts only after several polls, with the content that its buffers have at that time."""

    def __init__(self, begin, may_begin, buffers):
        self._begin, self._may_begin, self.buffers = begin, may_begin, buffers
        self._transfer, self._done = None, False

    def done(self):
        if self._transfer is None and self._may_begin():
            self._transfer = self._begin()
        self._done = self._done or (self._transfer is not None and self._transfer.done())
        return self._done

    @property
    def under_way(self):
        return not self._done


class Network:
    """Delays the calls of an exchange to windows of other ranks, and checks their buffers.

    ``lateness()`` is called for each call to another rank. It returns a function that tells at each poll whether the
    call may start.
    """

    def __init__(self, exchange, monkeypatch, lateness=lambda: lambda: True):
        self._memory, self._lateness = exchange._window._memory, lateness
        self._add, self._read = self._memory.add, self._memory.read
        self.calls = {target: [] for target in range(exchange.comm.size)}  # under way, of those that add
        self.n_calls = dict.fromkeys(self.calls, 0)
        self.most_under_way = 0
        monkeypatch.setattr(self._memory, "add", self.add)
        monkeypatch.setattr(self._memory, "read", self.read)

    def add(self, target, source, values, fetched):
        begin = lambda: self._add(target, source, values, fetched)  # noqa: E731
        transfer = Late(begin, self._may_begin(target), (values, fetched))
        for calls in self.calls.values():
            calls[:] = [call for call in calls if call.under_way]
        under_way = [buffer for calls in self.calls.values() for call in calls for buffer in call.buffers]
        assert not any(np.shares_memory(fetched, buffer) for buffer in (values, *under_way))
        written = [call.buffers[1] for calls in self.calls.values() for call in calls]
        assert not any(np.shares_memory(values, buffer) for buffer in written)
        self.calls[target].append(transfer)
        self.n_calls[target] += 1
        self.most_under_way = max(self.most_under_way, len(self.calls[target]))
        return transfer

    def read(self, target, source, out):
        return Late(lambda: self._read(target, source, out), self._may_begin(target), (out,))

    def _may_begin(self, target):
        return (lambda: True) if target == self._memory.comm.rank else self._lateness()


def random_lateness(rng):
    """Let calls start at once or at one of the first eight polls."""

    def lateness():
        polls = iter(range(int(rng.integers(0, 8)) * int(rng.integers(0, 2))))
        return lambda: next(polls, None) is None

    return lateness


def make(comm, kind, every=1, x0=None):
    x0 = np.arange(N_PARAMS, dtype=np.float32) if x0 is None else x0
    if KINDS[kind] is None:
        return AccumulateExchange(ExchangeSetup(comm, x0, ExchangeConfig(kind="accumulate", every=every)))
    server, computes = KINDS[kind]
    if comm.size == 1 and not computes:
        pytest.skip("no rank would compute gradients")
    settings = ExchangeConfig(kind="server", server_rank=server % comm.size, server_computes=computes, every=every)
    return ServerExchange(ExchangeSetup(comm, x0, settings))


def make_step(exchange, updates):
    exchange.pull()
    if exchange.computes:
        exchange.push(updates[exchange.made])


def check(exchange, reference):
    """Check that a replica holds at least its version vector, and with `accumulate` all own updates."""
    assert np.all(exchange.parameters >= reference.held_by(exchange.versions))
    if isinstance(exchange, AccumulateExchange):
        assert exchange.versions[exchange.comm.rank] == exchange.made


def check_settled(exchange, settled, reference, counts):
    assert exchange.versions.tolist() == counts
    assert exchange.made == counts[exchange.comm.rank]
    assert exchange.gradients == sum(counts)
    np.testing.assert_array_equal(exchange.parameters, reference.held_by(counts))
    assert settled.drift == 0.0
    assert settled.dropped_reads == 0


def counts_of(exchange, made):
    """Return ``made(rank)`` for each rank, 0 for ranks that do not compute."""
    computes = exchange.comm.allgather(exchange.computes)
    return [made(rank) * computes[rank] for rank in range(exchange.comm.size)]


@pytest.mark.parallel([*SIZES, 8])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("every", [1, 3])
def test_after_settle_all_replicas_hold_every_update_once(comm, kind, every):
    exchange, updates, reference = make(comm, kind, every), Updates(comm.rank), Reference(comm.size)
    replica = exchange.parameters
    for _ in range(200 + 50 * comm.rank + 1):
        make_step(exchange, updates)
        exchange.pull()
        check(exchange, reference)
    settled = exchange.settle()
    check_settled(exchange, settled, reference, counts_of(exchange, lambda rank: 201 + 50 * rank))
    assert exchange.parameters is replica
    exchange.free()


@pytest.mark.parallel(SIZES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("every", [1, 3])
def test_slow_calls_are_made_one_at_a_time_and_lose_no_update(comm, kind, every, monkeypatch):
    exchange, updates, reference = make(comm, kind, every), Updates(comm.rank), Reference(comm.size)
    network = Network(exchange, monkeypatch, random_lateness(np.random.default_rng(comm.rank)))
    for _ in range(200 + 50 * comm.rank + 1):
        make_step(exchange, updates)
        exchange.pull()
        check(exchange, reference)
    settled = exchange.settle()
    check_settled(exchange, settled, reference, counts_of(exchange, lambda rank: 201 + 50 * rank))
    assert network.most_under_way <= 1
    assert not any(call.under_way for calls in network.calls.values() for call in calls)
    monkeypatch.undo()
    exchange.free()


@pytest.mark.parallel([2, 4])
@pytest.mark.parametrize("every", [1, 3])
def test_updates_are_summed_while_calls_are_under_way(comm, every, monkeypatch):
    """No call to another rank starts until all ranks have made 99 steps; two sums then hold all updates."""
    exchange, updates, reference = make(comm, "accumulate", every), Updates(comm.rank), Reference(comm.size)
    opened = False
    network = Network(exchange, monkeypatch, lambda: lambda: opened)
    for version in range(1, 100):
        make_step(exchange, updates)
        exchange.pull()
        assert exchange.versions.tolist() == [version * (rank == comm.rank) for rank in range(comm.size)]
        np.testing.assert_array_equal(exchange.parameters, np.arange(N_PARAMS) + updates.sum_to(version))
    others = [rank for rank in range(comm.size) if rank != comm.rank]
    assert [network.n_calls[rank] for rank in others] == [1] * len(others)
    comm.Barrier()
    opened = True
    check_settled(exchange, exchange.settle(), reference, [99] * comm.size)
    # One sum under way, one that waits for the others, one for the own window, and previous elements of the others.
    assert 3 <= len(exchange._outbox._buffers.models._spare) <= 3 + len(others)
    monkeypatch.undo()
    exchange.free()


@pytest.mark.parallel([4])
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["accumulate", "server-first"])
def test_no_update_is_lost_in_many_steps_with_random_delays(comm, kind):
    exchange, updates, reference = make(comm, kind), Updates(comm.rank), Reference(comm.size)
    rng = np.random.default_rng(100 + comm.rank)
    n_steps = 20_000
    delays_s = np.where(rng.random(n_steps) < 0.005, rng.exponential(2e-3, n_steps), 0.0)
    for delay_s in delays_s:
        make_step(exchange, updates)
        if delay_s:
            time.sleep(delay_s)
            exchange.pull()
            check(exchange, reference)
    settled = exchange.settle()
    check_settled(exchange, settled, reference, [n_steps] * comm.size)
    exchange.free()


@pytest.mark.parallel([2, 4, 8])
@pytest.mark.parametrize("kind", ["accumulate", "server-first"])
def test_no_update_is_lost_if_all_ranks_add_to_the_same_elements(comm, kind, monkeypatch):
    monkeypatch.setattr("hpc_dasgd.exchange.interface.BLOCK_BYTES", 128 * 1024)
    exchange = make(comm, kind, x0=np.zeros(300_000, np.float32))
    for _ in range(60):
        exchange.pull()
        assert np.all(exchange.parameters >= exchange.gradients)
        exchange.push(lambda lo, hi, out: out.fill(1.0))
    settled = exchange.settle()
    assert exchange.versions.tolist() == [60] * comm.size
    assert np.all(exchange.parameters == 60 * comm.size)
    assert settled.drift == 0.0
    exchange.free()


@pytest.mark.parallel([2, 4])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("busy", ["first", "last"])
def test_no_rank_waits_for_a_rank_with_a_long_gradient(comm, kind, every, busy, tmp_path):
    """One rank makes one step, and no call to MPI until each of the others has made a hundred steps."""
    folder = Path(comm.bcast(str(tmp_path), root=0))
    busy = {"first": 0, "last": comm.size - 1}[busy]
    exchange, updates, reference = make(comm, kind, every), Updates(comm.rank), Reference(comm.size)
    comm.Barrier()
    make_step(exchange, updates)
    if comm.rank == busy:
        while len(list(folder.glob("done-*"))) < comm.size - 1:
            time.sleep(0.001)
    else:
        for _ in range(99):
            make_step(exchange, updates)
        (folder / f"done-{comm.rank}").touch()
    settled = exchange.settle()
    check_settled(exchange, settled, reference, counts_of(exchange, lambda rank: 1 if rank == busy else 100))
    exchange.free()


@pytest.mark.parallel(SIZES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("every", [1, 3])
def test_a_request_of_one_rank_stops_all_ranks(comm, kind, every):
    exchange, updates, reference = make(comm, kind, every), Updates(comm.rank), Reference(comm.size)
    while not exchange.stopping:
        make_step(exchange, updates)
        if comm.rank == comm.size - 1 and exchange.gradients >= 100:
            exchange.stop()
    settled = exchange.settle()
    assert exchange.gradients >= 100
    check_settled(exchange, settled, reference, comm.allgather(exchange.made))
    exchange.free()


@pytest.mark.parallel(SIZES)
@pytest.mark.parametrize("kind", ["accumulate", "server-first", "server-last"])
def test_the_replica_changes_only_in_pull(comm, kind):
    """All ranks push while rank 0 computes."""
    exchange, updates, reference = make(comm, kind), Updates(comm.rank), Reference(comm.size)
    for turn in range(10):
        exchange.pull()
        comm.Barrier()
        kept, versions = exchange.parameters.copy(), exchange.versions.copy()
        exchange.push(updates[turn])
        comm.Barrier()
        np.testing.assert_array_equal(exchange.parameters, kept)
        np.testing.assert_array_equal(exchange.versions, versions)
        exchange._outbox.finish()  # a worker's replica takes updates that have to wait
    check_settled(exchange, exchange.settle(), reference, [10] * comm.size)
    exchange.free()


@pytest.mark.parallel([1, 2, 4])
def test_push_may_follow_push_without_a_pull(comm):
    """With `every` = 2 the replica takes in each second update alone with its first; after a third it holds three."""
    exchange, updates, reference = make(comm, "accumulate", every=2), Updates(comm.rank), Reference(comm.size)
    for _ in range(50):
        for _ in range(3):
            exchange.push(updates[exchange.made])
            assert np.all(exchange.parameters >= reference.held_by(exchange.versions))
        comm.Barrier()
        exchange.pull()
        check(exchange, reference)
    check_settled(exchange, exchange.settle(), reference, [150] * comm.size)
    exchange.free()


@pytest.mark.parallel([2, 4])
def test_between_exchanges_only_own_updates_are_added_to_the_model_of_the_server(comm):
    exchange, updates = make(comm, "server-first", every=3), Updates(comm.rank)
    for turn in range(10):
        while exchange.versions[comm.rank] < 3 * turn:
            exchange.pull()
        kept, versions = exchange.parameters.copy(), exchange.versions.copy()
        for version in (3 * turn + 1, 3 * turn + 2):
            exchange.push(updates[exchange.made])
            assert not exchange.exchanging
            exchange.pull()
            own = updates.sum_to(version) - updates.sum_to(3 * turn)
            np.testing.assert_array_equal(exchange.parameters, kept + own)
            versions[comm.rank] += 1
            np.testing.assert_array_equal(exchange.versions, versions)
        exchange.push(updates[exchange.made])
        assert exchange.exchanging
        exchange.pull()
    exchange.settle()
    exchange.free()


@pytest.mark.parallel([2, 4])
@pytest.mark.parametrize("kind", ["server-first", "idle-server-last"])
def test_updates_that_wait_for_the_server_are_in_the_replica(comm, kind, monkeypatch):
    """No call to the server starts: the first update is under way, the others wait."""
    exchange, updates, reference = make(comm, kind), Updates(comm.rank), Reference(comm.size)
    opened = False
    network = Network(exchange, monkeypatch, lambda: lambda: opened)
    server = KINDS[kind][0] % comm.size
    if comm.rank != server:
        for version in range(1, 20):
            make_step(exchange, updates)
            waiting = updates.sum_to(version) - updates.sum_to(1)
            np.testing.assert_array_equal(exchange.parameters, np.arange(N_PARAMS) + waiting)
            assert exchange.versions.tolist() == [0] * comm.size
        assert network.n_calls[server] == 1
    comm.Barrier()
    opened = True
    check_settled(exchange, exchange.settle(), reference, [19 * (rank != server) for rank in range(comm.size)])
    monkeypatch.undo()
    exchange.free()


@pytest.mark.parallel([4])
@pytest.mark.parametrize("kind", ["accumulate", "server-first", "server-last"])
def test_staleness_of_a_gradient_is_known_after_its_push(comm, kind):
    """Rank `r` makes `r` updates while rank 0 computes its gradient."""
    exchange, updates = make(comm, kind), Updates(comm.rank)

    def pull_until(counts):
        while exchange.versions.tolist() != counts:
            exchange.pull()
        all_there = comm.Ibarrier()
        while not all_there.Test():
            exchange._outbox.send()  # the others wait for these updates; the replica does not change

    for turn in range(5):
        pull_until([turn, turn, 2 * turn, 3 * turn])
        used = exchange.versions.copy()
        for _ in range(comm.rank):
            exchange.push(updates[exchange.made])
        if comm.rank == 0:
            # Only updates that have arrived are known.
            while exchange.versions.tolist() != [turn, turn + 1, 2 * turn + 2, 3 * turn + 3]:
                exchange.pull()
            exchange.push(updates[turn])
            assert exchange.missed(used) == 1 + 2 + 3
    exchange.settle()
    exchange.free()


@pytest.mark.parallel([1, 2])
def test_own_updates_that_a_replica_of_the_server_lacks_count_as_missed(comm):
    exchange, updates = make(comm, "server-first", every=4), Updates(comm.rank)
    used = exchange.versions.copy()
    for version in range(3):
        exchange.push(updates[version])
        assert exchange.missed(used) == version
    exchange.settle()
    exchange.free()


@pytest.mark.parallel(SIZES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("every", [1, 3])
def test_final_replicas_have_the_same_bits_although_sums_are_rounded(comm, kind, every):
    exchange = make(comm, kind, every, x0=np.linspace(0, 1, 1001))
    rng = np.random.default_rng(comm.rank)
    for _ in range(50):
        noise = rng.normal(size=1001)
        exchange.pull()
        if exchange.computes:
            exchange.push(lambda lo, hi, out, noise=noise: np.copyto(out, noise[lo:hi]))
    settled = exchange.settle()
    assert len(set(comm.allgather(exchange.parameters.tobytes()))) == 1
    total = np.linspace(0, 1, 1001)
    for rank, count in enumerate(exchange.versions.tolist()):
        rng = np.random.default_rng(rank)
        total += np.sum([rng.normal(size=1001) for _ in range(count)], axis=0)
    np.testing.assert_allclose(exchange.parameters, total, rtol=0, atol=1e-12)
    assert settled.drift < 1e-12
    if kind != "accumulate":
        assert settled.drift == 0.0
    exchange.free()


@pytest.mark.parallel([2, 8])
@pytest.mark.parametrize("kind", ["accumulate", "server-first", "server-last"])
def test_there_may_be_fewer_parameters_than_ranks(comm, kind):
    exchange = make(comm, kind, x0=np.zeros(1, np.float32))
    exchange.pull()
    exchange.push(lambda lo, hi, out: out.fill(2.0**comm.rank))
    exchange.settle()
    assert exchange.parameters.tolist() == [2.0**comm.size - 1]
    exchange.free()


@pytest.mark.parallel(SIZES)
@pytest.mark.parametrize("every", [1, 3])
def test_transferred_bytes_are_counted(comm, every):
    """Update and counter are sent to each other rank, and the previous elements are transferred back."""
    exchange, updates = make(comm, "accumulate", every), Updates(comm.rank)
    for version in range(every):
        assert exchange.transferred_bytes == 0
        exchange.push(updates[version])
    exchange.settle()
    assert exchange.transferred_bytes == (comm.size - 1) * 2 * (N_PARAMS * 4 + 8)
    exchange.free()


@pytest.mark.parallel([1, 4])
@pytest.mark.parametrize("kind", ["accumulate", "server-last"])
def test_an_exchange_may_be_freed_twice_and_made_again(comm, kind):
    for _ in range(20):
        exchange, updates = make(comm, kind), Updates(comm.rank)
        make_step(exchange, updates)
        exchange.settle()
        exchange.free()
        exchange.free()
