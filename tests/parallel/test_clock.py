"""The common clock: here all ranks read the same hardware clock, so that every true offset is 0."""

import pytest

from hpc_dasgd.runtime.clock import Clock


@pytest.mark.parallel([1, 2, 4, 8])
@pytest.mark.parametrize("ranks_per_node", [1, 2])
def test_offsets_are_within_their_bounds_and_equal_on_all_ranks_of_a_node(comm, ranks_per_node):
    node = comm.rank // ranks_per_node
    clock = Clock(comm, f"node{node}")
    assert abs(clock.offset_s) <= clock.error_s
    estimates = comm.allgather((node, clock.offset_s, clock.error_s))
    assert len(set(estimates)) == len({node for node, _, _ in estimates})
    assert estimates[0] == (0, 0.0, 0.0)
    assert all(error_s > 0 for node, _, error_s in estimates if node > 0)
    drift_s = clock.drift_s()
    assert abs(drift_s) <= 2 * clock.error_s
    assert clock.error_s >= estimates[comm.rank][2]


@pytest.mark.parallel([1, 4])
def test_no_message_arrives_before_it_was_sent_up_to_the_clock_error(comm):
    clock = Clock(comm, f"node{comm.rank}")
    begun_s = comm.bcast(clock.now(), root=0)
    errors_s = comm.allgather(clock.error_s)
    assert begun_s >= 0
    assert clock.now() >= begun_s - max(errors_s)
