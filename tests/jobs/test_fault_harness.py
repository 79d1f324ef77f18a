"""The checks of ``jobs/benchmarks/faults`` detect parameters that contain wrong updates."""

import numpy as np
import pytest

from jobs.benchmarks.faults import expected


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("exchange", ["complete", "allreduce", "accumulate"])
def test_one_update_too_many_or_too_few_is_detected(exchange, optimizer):
    model = expected.ExpectedRun(exchange, optimizer)
    first = expected.Generation(n_ranks=4)
    versions = np.array([30, 20, 25, 1, 0])
    right = model.parameters(first, versions)
    assert not model.difference(right, first, versions, at_end=True)
    for rank, more in ((0, 1), (3, -1)):
        other = versions.copy()
        other[rank] += more
        assert "40 parameters are wrong" in model.difference(right, first, other, at_end=True)
    lost = right.copy()
    lost[7] = np.nextafter(lost[7], 0) if optimizer == "sgd" else lost[7] * (1 + 1e-6)
    assert "1 parameters are wrong; number 7" in model.difference(lost, first, versions, at_end=True)


def test_replica_of_accumulate_may_contain_later_updates_but_not_parts_of_them():
    model, first = expected.ExpectedRun("accumulate", "sgd"), expected.Generation(n_ranks=4)
    versions, ranks = np.array([30, 20, 25, 1, 0]), np.arange(5)
    more = model.parameters(first, versions + 2 * (ranks == 0))
    assert not model.difference(more, first, versions, at_end=False)
    assert model.difference(model.parameters(first, versions), first, versions + (ranks == 0), at_end=False)
    more[0] += 30
    assert model.difference(more, first, versions, at_end=False)
