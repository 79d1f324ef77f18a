"""Batches: the rows that a rank draws, compared with direct use of Philox."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_dasgd.data.batches import Batch, Sampler


class Rows:
    """A split whose examples are their own row numbers."""

    def __init__(self, n_rows):
        self.n_rows = n_rows

    def rows(self, indices):
        return indices, -indices


def drawn(seed, rank, version, n_rows=1000, batch_size=8):
    return Sampler(seed, rank, Rows(n_rows), batch_size).batch(version).x


def reference(seed, rank, version, n_rows, batch_size):
    """Return the rows of one batch: raw numbers of Philox, four per increment of its counter, modulo `n_rows`.

    Key: the words seed and rank. Counter: version times the counts of one batch in the lowest word, the
    stream (0) in the highest.
    """
    counts = (batch_size + 3) // 4
    key = np.array([seed, rank], dtype=np.uint64)
    counter = np.array([version * counts % 2**64, version * counts // 2**64, 0, 0], dtype=np.uint64)
    raw = np.random.Philox(key=key, counter=counter).random_raw(batch_size)
    return [int(number) % n_rows for number in raw]


WORD = st.integers(0, 2**64 - 1)


@settings(max_examples=60)
@given(WORD, WORD, st.integers(0, 2**40), st.integers(1, 10**9), st.sampled_from([1, 3, 4, 5, 32, 1000]))
def test_batch_equals_direct_use_of_philox(seed, rank, version, n_rows, batch_size):
    expected = reference(seed, rank, version, n_rows, batch_size)
    assert drawn(seed, rank, version, n_rows, batch_size).tolist() == expected


def test_batch_equals_recorded_numbers():
    # Philox is specified bit for bit, and replays of old runs depend on these numbers.
    assert reference(7, 3, 11, 1000, 4) == drawn(7, 3, 11, 1000, 4).tolist() == [543, 967, 565, 0]


def test_batch_does_not_depend_on_earlier_calls_or_other_samplers():
    versions = [0, 1, 63, 64, 65, 200, 64, 0, 10**6, 127, 128]
    one, other = Sampler(1, 2, Rows(1000), 8), Sampler(1, 3, Rows(1000), 8)
    in_order = {version: drawn(1, 2, version).tolist() for version in sorted(versions)}
    for version in versions:
        other.batch(version + 5)
        assert one.batch(version).x.tolist() == in_order[version]


@pytest.mark.parametrize("batch_size", [1, 5, 1024, 65536, 100_000])
def test_batches_next_to_a_block_boundary(batch_size):
    # Blocks are of at most 64 versions, and of one where a batch is large.
    sampler = Sampler(5, 1, Rows(10**6), batch_size)
    for version in (0, 1, 2, 62, 63, 64, 65, 127, 128):
        assert sampler.batch(version).x.tolist() == reference(5, 1, version, 10**6, batch_size)


def test_random_numbers_of_a_batch_do_not_depend_on_the_split():
    for version in (0, 1, 100):
        assert (drawn(1, 2, version, n_rows=6000) % 1000 == drawn(1, 2, version, n_rows=1000)).all()


def test_seeds_ranks_and_versions_draw_different_batches():
    sources = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (2**63, 0, 0), (0, 2**63, 0)]
    assert len({tuple(drawn(*source, n_rows=10**9)) for source in sources}) == len(sources)


def test_features_and_targets_belong_together():
    batch = Sampler(0, 0, Rows(50), 16).batch(3)
    assert (batch.y == -batch.x).all()
    assert batch.x.min() >= 0 and batch.x.max() < 50
    assert batch.source == (0, 0, 3)


def test_rows_are_drawn_uniformly():
    n_rows, n_ranks, n_versions, batch_size = 50, 4, 100, 32
    rows = [drawn(9, rank, v, n_rows, batch_size) for rank in range(n_ranks) for v in range(n_versions)]
    counts = np.bincount(np.concatenate(rows), minlength=n_rows)
    expected = n_ranks * n_versions * batch_size / n_rows
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    # 49 degrees of freedom: 99.8 percent of uniform samples lie between these.
    assert 23.98 < chi_squared < 85.35


def test_generator_of_a_batch_is_a_function_of_its_source():
    first = Sampler(1, 2, Rows(100), 8).batch(5).rng.standard_normal(4)
    sampler = Sampler(1, 2, Rows(7), 3)
    sampler.batch(9).rng.random(1000)
    assert (sampler.batch(5).rng.standard_normal(4) == first).all()
    assert (Batch(None, None, (1, 2, 5)).rng.standard_normal(4) == first).all()
    for source in [(0, 2, 5), (1, 0, 5), (1, 2, 6), (0, 0, 0)]:
        assert (Batch(None, None, source).rng.standard_normal(4) != first).all()


def test_generator_of_a_batch_is_philox_on_a_separate_stream():
    # The version is the second word of the counter, the stream (1) the highest: no two batches meet,
    # however many numbers one takes, and none meets the stream of the rows.
    counter = np.array([0, 5, 0, 1], dtype=np.uint64)
    key = np.array([1, 2], dtype=np.uint64)
    expected = np.random.Generator(np.random.Philox(key=key, counter=counter)).random(6)
    assert (Batch(None, None, (1, 2, 5)).rng.random(6) == expected).all()


def test_the_seed_of_a_batch_is_a_function_of_its_source():
    # As blake2b of eight bytes, lowest first, makes it of the text "1 2 5".
    assert (
        Sampler(1, np.int64(2), Rows(100), 8).batch(5).seed == Batch(None, None, (1, 2, 5)).seed == 0xE61DEDCAB441FB16
    )
    seeds = {Batch(None, None, (a, b, c)).seed for a in range(12) for b in range(12) for c in range(12)}
    assert len(seeds) == 12**3 and min(seeds) >= 0 and 2**63 < max(seeds) < 2**64


def test_batch_creates_its_generator_once():
    batch = Sampler(1, 2, Rows(100), 8).batch(0)
    assert batch.rng is batch.rng
    assert batch.rng.random() != batch.rng.random()


def test_drawing_from_the_generator_of_a_batch_does_not_change_the_next_batch():
    sampler = Sampler(1, 2, Rows(1000), 8)
    sampler.batch(0).rng.random(10_000)
    assert sampler.batch(1).x.tolist() == drawn(1, 2, 1).tolist()


def test_versions_may_be_integers_of_numpy():
    # A shift of NumPy's integers drops the high bits without an error.
    for kind in (np.uint32, np.int64):
        batch = Sampler(1, 2, Rows(1000), 8).batch(kind(5))
        assert batch.x.tolist() == drawn(1, 2, 5).tolist()
        assert batch.rng.random() == Batch(None, None, (1, 2, 5)).rng.random()
        assert Batch(None, None, (1, 2, kind(5))).rng.random() == Batch(None, None, (1, 2, 5)).rng.random()


def test_batch_without_a_split_has_a_generator_only():
    batch = Sampler(3, 4, None, 8).batch(6)
    assert batch.x is None and batch.y is None
    assert batch.source == (3, 4, 6)
    assert batch.rng.random() == Batch(None, None, (3, 4, 6)).rng.random()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((-1, 0, None, 1), "seed"),
        ((2**64, 0, None, 1), "seed"),
        ((0, -1, None, 1), "rank"),
        ((0, 2**64, None, 1), "rank"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, name):
    with pytest.raises(ValueError, match=rf"`{name}` must be in \[0, 2\*\*64\), got"):
        Sampler(*arguments)


@pytest.mark.parametrize("split", [None, Rows(10)])
def test_a_version_out_of_range_is_refused(split):
    sampler = Sampler(0, 0, split, 4)
    for version in (-1, 2**64):
        with pytest.raises(ValueError, match=r"`version` must be"):
            sampler.batch(version)
    with pytest.raises(TypeError, match="integer"):
        sampler.batch(1.0)
