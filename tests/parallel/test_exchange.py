"""Exchanges `read`, `allreduce` and `none`: every update reaches every replica exactly once.

Updates are small integers, so that float32 sums are exact in any order, and a replica can be compared with its version
vector.
"""

import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from hpc_dasgd.config.settings import ExchangeConfig
from hpc_dasgd.exchange.baselines.allreduce import AllreduceExchange
from hpc_dasgd.exchange.baselines.none import NoExchange
from hpc_dasgd.exchange.interface import ExchangeSetup
from hpc_dasgd.exchange.read.exchange import ReadExchange
from hpc_dasgd.exchange.reader import DROPS_UNTIL_NOTICE, PUBLICATIONS_TO_SPEED_UP
from hpc_dasgd.overlay import topology
from hpc_dasgd.window.memory import Transfer
from hpc_dasgd.window.publication import HEADER_LENGTH, HeaderField
from tests.parallel.integer_updates import N_PARAMS, Updates

SIZES = [1, 2, 4, 8]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Divide `N_PARAMS` float32 parameters into three blocks, of which the last one is shorter."""
    monkeypatch.setattr("hpc_dasgd.exchange.interface.BLOCK_BYTES", 64 * 4)


def held_by(versions):
    """Return the replica that belongs to a version vector."""
    return np.arange(N_PARAMS) + sum(Updates(rank).sum_to(int(version)) for rank, version in enumerate(versions))


def random_tree(n_ranks, seed=5):
    """Return the neighbours of each rank on a tree with ranks in random order, some of which have many neighbours."""
    rng = np.random.default_rng(seed)
    names, neighbours = rng.permutation(n_ranks).tolist(), [set() for _ in range(n_ranks)]
    for child in range(1, n_ranks):
        parent = int(rng.integers(max(0, child - 3), child))
        neighbours[names[child]].add(names[parent])
        neighbours[names[parent]].add(names[child])
    return [tuple(sorted(others)) for others in neighbours]


OVERLAYS = {
    "complete": lambda n_ranks: None,
    "tree": lambda n_ranks: lambda rank: topology.tree(rank, [0] * n_ranks),
    "tree-of-nodes": lambda n_ranks: lambda rank: topology.tree(rank, [r % 3 for r in range(n_ranks)], 3),
    "chain": lambda n_ranks: lambda rank: topology.chain(rank, [0] * n_ranks),
    "star": lambda n_ranks: lambda rank: topology.star(rank, n_ranks),
    "random": lambda n_ranks: random_tree(n_ranks).__getitem__,
}
TREES = [name for name in OVERLAYS if name != "complete"]


def make_read(comm, overlay="complete", x0=None, device=None, request_reads=None, **settings):
    """Make an exchange `read`; `settings` are those of ``[exchange]``."""
    x0 = np.arange(N_PARAMS, dtype=np.float32) if x0 is None else x0
    setup = ExchangeSetup(comm, x0, ExchangeConfig(**settings), device=device)
    return ReadExchange(setup, tree=OVERLAYS[overlay](comm.size), request_reads=request_reads)


def finish(transfer):
    while not transfer.done():
        pass


def step(exchange, updates):
    exchange.pull()
    exchange.push(updates[int(exchange.versions[exchange.comm.rank])])


@pytest.mark.parallel(SIZES)
@pytest.mark.parametrize("consistency", ["snapshot", "elementwise"])
@pytest.mark.parametrize("request_reads", [True, False], ids=["requests", "get-and-flush"])
@pytest.mark.parametrize("every", [1, 3])
def test_after_settle_all_replicas_hold_every_update_once(comm, consistency, request_reads, every):
    exchange = make_read(comm, consistency=consistency, request_reads=request_reads, every=every)
    updates = Updates(comm.rank)
    n_steps = 200 + 50 * comm.rank + 1
    for _ in range(n_steps):
        step(exchange, updates)
    settled = exchange.settle()
    assert exchange.versions.tolist() == [201 + 50 * rank for rank in range(comm.size)]
    np.testing.assert_array_equal(exchange.parameters, held_by(exchange.versions))
    assert settled.drift == 0.0
    exchange.free()


@pytest.mark.parallel(SIZES)
@pytest.mark.parametrize("overlay", TREES)
@pytest.mark.parametrize(("consistency", "every"), [("snapshot", 1), ("snapshot", 3), ("elementwise", 1)])
def test_on_a_tree_every_update_is_held_once_at_any_time(comm, overlay, consistency, every):
    hold_every_update_once(comm, overlay, consistency, every)


@pytest.mark.parallel([16])
@pytest.mark.parametrize("overlay", ["tree", "random"])
def test_on_a_tree_of_16_ranks_every_update_is_held_once_at_any_time(comm, overlay):
    hold_every_update_once(comm, overlay, "snapshot", 1)


def hold_every_update_once(comm, overlay, consistency, every):
    exchange = make_read(comm, overlay, consistency=consistency, every=every)
    updates = Updates(comm.rank)
    for turn in range(60 + 5 * comm.rank):
        step(exchange, updates)
        exchange.pull()
        if consistency == "snapshot" and turn % 10 == 0:
            np.testing.assert_array_equal(exchange.parameters, held_by(exchange.versions))
    settled = exchange.settle()
    assert exchange.versions.tolist() == [60 + 5 * rank for rank in range(comm.size)]
    np.testing.assert_array_equal(exchange.parameters, held_by(exchange.versions))
    assert settled.drift == 0.0
    exchange.free()


@pytest.mark.parallel([4, 8])
@pytest.mark.parametrize("overlay", ["complete", *TREES])
def test_updates_cross_the_overlay_within_its_diameter_plus_two_steps(comm, overlay):
    """Updates pass one edge per step; two more steps are needed to publish the first and to read the last."""
    exchange = make_read(comm, overlay)
    updates = Updates(comm.rank)
    for _ in range(comm.size + 2):
        step(exchange, updates)
        comm.Barrier()
    exchange.pull()
    assert exchange.versions.min() > 0
    comm.Barrier()
    exchange.settle()
    exchange.free()


@pytest.mark.parallel([4, 8, 16, 32])
@pytest.mark.parametrize("overlay", ["tree", "complete"])
def test_traffic_and_memory_depend_on_the_number_of_neighbours_only(comm, overlay, monkeypatch):
    """Bytes that every rank reads per step, and memory, both in arrays of n_params."""
    monkeypatch.setattr("hpc_dasgd.exchange.interface.BLOCK_BYTES", 1 << 14)
    d, n_steps = 100_000, 5
    x0, tree = np.zeros(d, np.float32), OVERLAYS[overlay](comm.size)
    tracemalloc.start()
    exchange = make_read(comm, overlay, x0)
    held_bytes = tracemalloc.get_traced_memory()[0] + exchange._state.window._memory.memory.nbytes
    tracemalloc.stop()
    degree = comm.size - 1 if tree is None else len(tree(comm.rank))
    limit = comm.size + 4 if tree is None else 3 * degree + 4
    assert held_bytes / (4 * d) <= limit + 0.2  # plus memory that does not grow with d
    before = exchange.transferred_bytes
    for _ in range(n_steps):
        exchange.push(lambda lo, hi, out: out.fill(1.0))
        comm.Barrier()
        exchange.pull()
        comm.Barrier()
    read = (exchange.transferred_bytes - before) / (n_steps * 4 * d)
    assert read == pytest.approx(degree, rel=0.02)
    exchange.settle()
    exchange.free()


@pytest.mark.parallel(SIZES)
@pytest.mark.parametrize("overlay", ["complete", "tree"])
def test_final_replicas_have_the_same_bits_although_sums_are_rounded(comm, overlay):
    exchange = make_read(comm, overlay, np.linspace(0, 1, 1001))
    rng = np.random.default_rng(comm.rank)
    for _ in range(50):
        noise = rng.normal(size=1001)
        exchange.pull()
        exchange.push(lambda lo, hi, out, noise=noise: np.copyto(out, noise[lo:hi]))
    settled = exchange.settle()
    assert len(set(comm.allgather(exchange.parameters.tobytes()))) == 1
    total = np.linspace(0, 1, 1001)
    for rank in range(comm.size):
        rng = np.random.default_rng(rank)
        total += np.sum([rng.normal(size=1001) for _ in range(50)], axis=0)
    np.testing.assert_allclose(exchange.parameters, total, rtol=0, atol=1e-12)
    assert settled.drift < 1e-12
    exchange.free()


@pytest.mark.parallel([4])
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("overlay", "consistency", "n_steps"),
    [("complete", "snapshot", 100_000), ("complete", "elementwise", 50_000), ("chain", "snapshot", 50_000)],
)
def test_no_update_is_lost_in_100_000_steps_with_random_delays(comm, overlay, consistency, n_steps):
    exchange = make_read(comm, overlay, consistency=consistency)
    updates, rng = Updates(comm.rank), np.random.default_rng(100 + comm.rank)
    n_checked = 0
    delays_s = np.where(rng.random(n_steps) < 0.001, rng.exponential(2e-3, n_steps), 0.0)
    for delay_s in delays_s:
        step(exchange, updates)
        if delay_s:
            time.sleep(delay_s)
            exchange.pull()
            if consistency == "snapshot":
                np.testing.assert_array_equal(exchange.parameters, held_by(exchange.versions))
                n_checked += 1
    exchange.settle()
    assert exchange.versions.tolist() == [n_steps] * 4
    np.testing.assert_array_equal(exchange.parameters, held_by(exchange.versions))
    assert n_checked > 20 or consistency == "elementwise"
    exchange.free()


@pytest.mark.parallel([2, 4, 8])
@pytest.mark.parametrize("request_reads", [True, False], ids=["requests", "get-and-flush"])
def test_a_torn_snapshot_is_never_accepted(comm, request_reads, monkeypatch):
    """Rank 0 adds 1 to each of 300,000 elements as fast as it can, while the other ranks only read.

    Every fifth read is made in two halves, and the slot is overwritten in between.
    """
    monkeypatch.setattr("hpc_dasgd.exchange.interface.BLOCK_BYTES", 128 * 1024)
    exchange = make_read(comm, x0=np.zeros(300_000, np.float32), request_reads=request_reads)
    window, n_reads, n_torn = exchange._state.window, 0, 0
    read_slot = window.read_slot

    def publication():
        header = np.zeros(HEADER_LENGTH, np.int64)
        finish(window.read_header(0, 0, header))
        return header[HeaderField.PUBLICATION]

    def read_in_halves(target, channel, slot, out):
        nonlocal n_reads, n_torn
        n_reads += 1
        finish(read_slot(target, channel, slot, out))
        if target == 0 and n_reads % 5 == 0:
            first, begun = out.payload[:150_000].copy(), publication()
            while publication() < begun + 3:
                pass
            finish(read_slot(target, channel, slot, out))
            out.payload[:150_000] = first
        n_torn += np.ptp(out.payload) > 0
        return Transfer([])

    monkeypatch.setattr(window, "read_slot", read_in_halves)
    n_accepted = 0
    if comm.rank == 0:
        all_done = comm.Ibarrier()
        while not all_done.Test():
            exchange.push(lambda lo, hi, out: out.fill(1.0))
            exchange.pull()
    else:
        version = 0
        while n_accepted < 100:
            exchange.pull()
            if exchange.versions[0] != version:
                assert exchange.versions[0] > version
                version = exchange.versions[0]
                assert np.all(exchange.parameters == version)
                n_accepted += 1
        assert exchange._state.reader.dropped_reads >= n_torn > 0
        comm.Ibarrier().Wait()
    monkeypatch.undo()
    exchange.settle()
    assert np.all(exchange.parameters == exchange.versions[0])
    assert exchange.versions[1:].sum() == 0
    exchange.free()


@pytest.mark.parallel([2, 4])
@pytest.mark.parametrize("consistency", ["snapshot", "elementwise"])
def test_no_rank_waits_for_a_rank_with_a_long_gradient(comm, consistency, tmp_path):
    """Rank 0 makes one step, and no call to MPI until each of the others has made a hundred steps."""
    folder = Path(comm.bcast(str(tmp_path), root=0))
    exchange = make_read(comm, consistency=consistency)
    updates = Updates(comm.rank)
    comm.Barrier()
    step(exchange, updates)
    if comm.rank == 0:
        while len(list(folder.glob("done-*"))) < comm.size - 1:
            time.sleep(0.001)
    else:
        for _ in range(99):
            step(exchange, updates)
        (folder / f"done-{comm.rank}").touch()
    exchange.settle()
    assert exchange.versions.tolist() == [1] + [100] * (comm.size - 1)
    np.testing.assert_array_equal(exchange.parameters, held_by(exchange.versions))
    exchange.free()


@pytest.mark.parallel([2])
@pytest.mark.parametrize("request_reads", [True, False], ids=["requests", "get-and-flush"])
def test_an_owner_that_publishes_too_fast_for_its_reader_publishes_less_often(comm, request_reads, monkeypatch):
    """During each read by rank 1, rank 0 makes three steps; the read is dropped if all of them are published."""
    exchange = make_read(comm, request_reads=request_reads)
    updates = Updates(comm.rank)
    turns = 12
    if comm.rank == 0:
        for _ in range(turns):
            comm.recv(source=1)
            for _ in range(3):
                step(exchange, updates)
            comm.send(None, dest=1)
    else:
        window, versions = exchange._state.window, []
        read_slot = window.read_slot

        def interrupted(*arguments):
            transfer = read_slot(*arguments)
            while not transfer.done():
                pass
            comm.send(None, dest=0)
            comm.recv(source=0)
            return transfer

        monkeypatch.setattr(window, "read_slot", interrupted)
        comm.send(None, dest=0)  # rank 0 publishes something
        comm.recv(source=0)
        for _ in range(turns - 1):
            before = exchange.versions[0]
            while exchange.versions[0] == before and len(versions) < turns - 1:
                exchange.pull()
                versions.append(int(exchange.versions[0]))
                np.testing.assert_array_equal(exchange.parameters, held_by(exchange.versions))
        assert versions[:DROPS_UNTIL_NOTICE] == [0] * DROPS_UNTIL_NOTICE
        assert versions[-1] > 0
        assert exchange._state.reader.dropped_reads >= DROPS_UNTIL_NOTICE
        monkeypatch.undo()
    comm.Barrier()
    if comm.rank == 0:
        assert exchange._state.neighbourhood.throttles[0].interval > 1
        for _ in range(2 * exchange._state.neighbourhood.throttles[0].interval * PUBLICATIONS_TO_SPEED_UP):
            step(exchange, updates)
        assert exchange._state.neighbourhood.throttles[0].interval == 1
    exchange.settle()
    np.testing.assert_array_equal(exchange.parameters, held_by(exchange.versions))
    exchange.free()


@pytest.mark.parallel(SIZES)
@pytest.mark.parametrize("overlay", ["complete", "tree", "chain"])
@pytest.mark.parametrize("consistency", ["snapshot", "elementwise"])
def test_a_request_of_one_rank_stops_all_ranks(comm, overlay, consistency):
    exchange = make_read(comm, overlay, consistency=consistency)
    updates = Updates(comm.rank)
    while not exchange.stopping:
        step(exchange, updates)
        if comm.rank == comm.size - 1 and exchange.gradients >= 100:
            exchange.stop()
    exchange.settle()
    assert exchange.gradients >= 100
    np.testing.assert_array_equal(exchange.parameters, held_by(exchange.versions))
    exchange.free()


@pytest.mark.parallel([4])
@pytest.mark.parametrize("reads_in_flight", [1, 2, 9])
def test_replicas_are_correct_for_any_number_of_reads_in_flight(comm, reads_in_flight):
    exchange = make_read(comm, reads_in_flight=reads_in_flight)
    updates = Updates(comm.rank)
    for _ in range(300):
        step(exchange, updates)
        exchange.pull()
        np.testing.assert_array_equal(exchange.parameters, held_by(exchange.versions))
    exchange.settle()
    np.testing.assert_array_equal(exchange.parameters, held_by(exchange.versions))
    exchange.free()


@pytest.mark.parallel([4])
@pytest.mark.parametrize("consistency", ["snapshot", "elementwise"])
def test_staleness_of_a_gradient_is_known_after_its_push(comm, consistency):
    """Rank `r` makes `r` updates while rank 0 computes its gradient."""
    exchange = make_read(comm, consistency=consistency)
    updates = Updates(comm.rank)
    for turn in range(5):
        exchange.pull()
        used = exchange.versions.copy()
        comm.Barrier()
        for _ in range(comm.rank):
            exchange.push(updates[int(exchange.versions[comm.rank])])
        comm.Barrier()
        if comm.rank == 0:
            assert used.tolist() == [turn, turn, 2 * turn, 3 * turn]
            exchange.push(updates[turn])
            assert exchange.missed(used) == 1 + 2 + 3
        comm.Barrier()
    exchange.settle()
    exchange.free()


@pytest.mark.parallel([2, 8])
def test_there_may_be_fewer_parameters_than_ranks(comm):
    exchange = make_read(comm, x0=np.zeros(1, np.float32))
    exchange.pull()
    exchange.push(lambda lo, hi, out: out.fill(2.0**comm.rank))
    exchange.settle()
    assert exchange.parameters.tolist() == [2.0**comm.size - 1]
    exchange.free()


@pytest.mark.parallel(SIZES)
@pytest.mark.parametrize("yields", [False, True])
def test_allreduce_adds_the_mean_of_the_updates_of_all_ranks_at_each_step(comm, yields, monkeypatch):
    monkeypatch.setattr("hpc_dasgd.runtime.collective.is_oversubscribed", lambda comm: yields)
    exchange = AllreduceExchange(ExchangeSetup(comm, np.arange(N_PARAMS, dtype=np.float32)))
    updates = Updates(comm.rank)
    for done in range(1, 40):
        step(exchange, updates)
        assert exchange.versions.tolist() == [done] * comm.size
        assert exchange.gradients == done * comm.size
        sums = sum(Updates(rank).sum_to(done) for rank in range(comm.size))
        np.testing.assert_array_equal(exchange.parameters, np.arange(N_PARAMS) + sums / comm.size)
    assert exchange.settle().drift == 0.0


@pytest.mark.parallel(SIZES)
def test_allreduce_ranks_stop_after_the_same_step(comm):
    exchange = AllreduceExchange(ExchangeSetup(comm, np.zeros(N_PARAMS, np.float32)))
    updates = Updates(comm.rank)
    while not exchange.stopping:
        if comm.rank == 0 and exchange.versions[0] == 7:
            exchange.stop()
        step(exchange, updates)
    assert comm.allgather(int(exchange.versions[comm.rank])) == [8] * comm.size


@pytest.mark.parallel([1, 4])
def test_with_exchange_none_each_rank_trains_alone(comm):
    exchange = NoExchange(ExchangeSetup(comm, np.arange(N_PARAMS, dtype=np.float32)))
    updates = Updates(comm.rank)
    for _ in range(20):
        step(exchange, updates)
    exchange.settle()
    assert exchange.versions.tolist() == [20 * (rank == comm.rank) for rank in range(comm.size)]
    np.testing.assert_array_equal(exchange.parameters, np.arange(N_PARAMS) + updates.sum_to(20))
