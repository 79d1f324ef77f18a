"""Data set files: the rules of the format, and reading of valid files."""

import os
import tracemalloc

import h5py
import numpy as np
import pytest

from hpc_dasgd.data import dataset as dataset_module
from hpc_dasgd.data.batches import Sampler
from hpc_dasgd.data.dataset import Split, open_dataset
from hpc_dasgd.errors import ConfigError

LABELS = np.array([0, 1, 2, 1, 0, 2, 1, 0])


def arrays(**changes):
    """Return the arrays of a valid file of 8 and 4 examples, with some replaced; None removes one."""
    rng = np.random.default_rng(0)
    parts = {
        "train/x": rng.integers(0, 256, (8, 2, 3), dtype=np.uint8),
        "train/y": LABELS.astype(np.uint8),
        "test/x": rng.integers(0, 256, (4, 2, 3), dtype=np.uint8),
        "test/y": LABELS[:4].astype(np.uint8),
    }
    return parts | {name.replace("_", "/"): value for name, value in changes.items()}


def write(path, attributes=None, **changes):
    with h5py.File(path, "w") as file:
        for name, value in arrays(**changes).items():
            if value is not None:
                file[name] = value
        file.attrs.update(attributes or {})
    return path


@pytest.fixture
def opened():
    """Return a function that opens a data set file until the test ends."""
    datasets = []

    def open_one(*arguments, **options):
        datasets.append(open_dataset(*arguments, **options))
        return datasets[-1]

    yield open_one
    for dataset in datasets:
        dataset.close()


def refusal(path, dtype=np.float32, **options):
    with pytest.raises(ConfigError) as caught:
        open_dataset(path, dtype, **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def everything(split, n_rows):
    batches = list(split.batches(n_rows))
    return np.concatenate([p.x for p in batches]), np.concatenate([p.y for p in batches])


def test_shipped_data_set_digits_opens(opened):
    digits = opened("digits", np.float32)
    assert (digits.train.n_rows, digits.test.n_rows) == (1437, 360)
    assert digits.feature_shape == (8, 8)
    assert (digits.n_features, digits.n_classes, digits.n_targets) == (64, 10, None)
    assert digits.attributes["license"] == "CC BY 4.0"
    assert {"classes", "description", "source", "license", "scale"} <= set(digits.attributes)
    for split in (digits.train, digits.test):
        x, y = everything(split, 100)
        assert (x.min(), x.max()) == (0.0, 1.0)
        assert np.unique(y).tolist() == list(range(10))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_features_are_scaled_and_converted(tmp_path, opened, dtype):
    path = write(tmp_path / "a.h5", {"scale": 0.25, "classes": 5})
    dataset = opened(path, dtype)
    x, y = everything(dataset.train, 3)
    assert x.dtype == dtype and y.dtype == np.int64
    np.testing.assert_array_equal(x, arrays()["train/x"] / 4.0)
    np.testing.assert_array_equal(y, LABELS)
    assert (dataset.feature_shape, dataset.n_features, dataset.n_classes) == ((2, 3), 6, 5)
    assert dataset.path == path


def test_scale_is_one_and_classes_are_counted_by_default(tmp_path, opened):
    dataset = opened(write(tmp_path / "a.h5", test_y=np.array([0, 1, 4, 0])), np.float64)
    np.testing.assert_array_equal(everything(dataset.train, 8)[0], arrays()["train/x"])
    assert dataset.n_classes == 5


@pytest.mark.parametrize("kind", ["|b1", "|i1", "<u2", ">i4", "<i8", "<f2", ">f4", "<f8"])
def test_features_may_have_any_numeric_dtype(tmp_path, opened, kind):
    x = np.array([[0, 1], [1, 1], [1, 0], [0, 0]]).astype(kind)
    path = write(tmp_path / "a.h5", {"scale": 0.5}, test_x=x, train_x=np.concatenate([x, x]))
    for cache_bytes in (0, 1 << 20):
        held = everything(opened(path, np.float32, cache_bytes=cache_bytes).test, 3)[0]
        assert held.dtype == np.dtype("=f4")
        np.testing.assert_array_equal(held, x.astype(float) / 2)


def test_float_targets_are_converted_but_not_scaled(tmp_path, opened):
    y = np.random.default_rng(1).normal(size=(8, 3))
    dataset = opened(write(tmp_path / "a.h5", {"scale": 0.5}, train_y=y, test_y=y[:4]), np.float32)
    assert (dataset.n_classes, dataset.n_targets) == (None, 3)
    np.testing.assert_array_equal(everything(dataset.train, 8)[1], y.astype(np.float32))


def test_a_file_without_test_examples_is_accepted(tmp_path, opened):
    path = write(tmp_path / "a.h5", test_x=np.zeros((0, 2, 3)), test_y=np.zeros(0, int))
    dataset = opened(path, np.float32)
    assert dataset.test.n_rows == 0
    assert list(dataset.test.batches(4)) == []


BROKEN = {
    "no train/x": ({"train_x": None}, {}, "`/train/x`", "must be a data set, got nothing"),
    "no train/y": ({"train_y": None}, {}, "`/train/y`", "must be a data set, got nothing"),
    "no test": ({"test_x": None, "test_y": None}, {}, "`/test/x`", "must be a data set, got nothing"),
    "no rows": (
        {"train_x": np.zeros((0, 2, 3)), "train_y": np.zeros(0, int)},
        {},
        "`/train/x`",
        "at least 1 row, got 0",
    ),
    "features a scalar": ({"train_x": 3.0}, {}, "`/train/x`", "have shape (n, ...)"),
    "features empty": (
        {"train_x": np.zeros((8, 0, 3))},
        {},
        "`/train/x`",
        "no empty dimension, got (8, 0, 3)",
    ),
    "features null": (
        {"train_x": h5py.Empty("f4")},
        {},
        "`/train/x`",
        "hold numbers, got float32 of shape None",
    ),
    "features text": ({"train_x": np.array([b"a"] * 8)}, {}, "`/train/x`", "hold numbers, got |S1"),
    "features complex": (
        {"train_x": np.zeros((8, 2), complex)},
        {},
        "`/train/x`",
        "hold numbers, got complex128",
    ),
    "features a group": (
        {"train_x": None, "train_x_part": np.zeros(8)},
        {},
        "`/train/x`",
        "be a data set, got <HDF5 group",
    ),
    "labels text": ({"train_y": ["a"] * 8}, {}, "`/train/y`", "hold numbers, got object"),
    "labels float": (
        {"train_y": LABELS * 1.0},
        {},
        "`/train/y`",
        "(n,) integers or (n, k) floats, got (8,) float64",
    ),
    "labels 2-D": (
        {"train_y": LABELS.reshape(8, 1)},
        {},
        "`/train/y`",
        "(n,) integers or (n, k) floats, got (8, 1) int64",
    ),
    "targets empty": ({"train_y": np.zeros((8, 0))}, {}, "`/train/y`", "(n,) integers or (n, k) floats"),
    "labels too few": ({"train_y": LABELS[:7]}, {}, "`/train/y`", "have 8 rows, as x has, got 7"),
    "test labels too many": ({"test_y": LABELS}, {}, "`/test/y`", "have 4 rows, as x has, got 8"),
    "label negative": ({"train_y": LABELS - 1}, {}, "`/train/y`", "got -1"),
    "label too large": ({}, {"classes": 2}, "`/train/y`", "be in 0..1, got 2"),
    "test label too large": (
        {"test_y": np.array([0, 9, 1, 2])},
        {"classes": 9},
        "`/test/y`",
        "be in 0..8, got 9",
    ),
    "test shape": (
        {"test_x": np.zeros((4, 3, 2))},
        {},
        "`/test/x`",
        "rows of shape (2, 3), as /train/x has, got (3, 2)",
    ),
    "test targets": ({"test_y": np.zeros((4, 1))}, {}, "`/test/y`", "as /train/y has, got (1,)"),
    "test classes": (
        {"train_y": np.zeros((8, 1))},
        {},
        "`/test/y`",
        "rows of shape (1,), as /train/y has, got ()",
    ),
    "classes zero": ({}, {"classes": 0}, "`classes`", "be a positive integer, got 0"),
    "classes float": ({}, {"classes": 3.0}, "`classes`", "be a positive integer, got 3.0"),
    "classes several": ({}, {"classes": [3, 3]}, "`classes`", "be a positive integer, got [3 3]"),
    "scale zero": ({}, {"scale": 0.0}, "`scale`", "positive, finite float32, got 0.0"),
    "scale negative": ({}, {"scale": -1}, "`scale`", "got -1"),
    "scale nan": ({}, {"scale": np.nan}, "`scale`", "got nan"),
    "scale infinite": ({}, {"scale": np.inf}, "`scale`", "got inf"),
    "scale text": ({}, {"scale": "1/16"}, "`scale`", "got 1/16"),
    "scale several": ({}, {"scale": [1.0, 2.0]}, "`scale`", "got [1. 2.]"),
    "scale null": ({}, {"scale": h5py.Empty("f8")}, "`scale`", "positive, finite"),
    "scale vanishes": ({}, {"scale": 1e-60}, "`scale`", "positive, finite float32, got 1e-60"),
    "scale overflows": ({}, {"scale": 1e60}, "`scale`", "positive, finite float32, got 1e+60"),
}


@pytest.mark.parametrize(("changes", "attributes", "what", "rule"), BROKEN.values(), ids=BROKEN)
def test_file_that_violates_a_rule_is_refused_with_name_and_rule(tmp_path, changes, attributes, what, rule):
    changes = dict(changes)
    part = changes.pop("train_x_part", None)
    path = write(tmp_path / "broken.h5", attributes, **changes)
    if part is not None:
        with h5py.File(path, "r+") as file:
            file["train/x/part"] = part
    message = refusal(path)
    assert message.startswith(f"{what} of {path} must ")
    assert rule in message


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("part", ["train_x", "test_x", "train_y"])
def test_numbers_that_are_not_finite_are_refused(tmp_path, part, bad):
    parts = {
        "train_x": np.ones((8, 2)),
        "test_x": np.ones((4, 2)),
        "train_y": np.ones((8, 1)),
        "test_y": np.ones((4, 1)),
    }
    parts[part][3, -1] = bad
    message = refusal(write(tmp_path / "a.h5", **parts))
    name, where = "/" + part.replace("_", "/"), (3, parts[part].shape[1] - 1)
    assert message == f"`{name}` of {tmp_path / 'a.h5'} must be finite as float32, got {bad} at {where}"


def test_number_that_is_not_finite_is_found_in_any_block(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_module, "_BLOCK_BYTES", 2 * 6 * 8)  # two rows of x
    x = np.ones((8, 2, 3))
    x[5, 1, 2] = np.nan
    assert refusal(write(tmp_path / "a.h5", train_x=x)).endswith("got nan at (5, 1, 2)")


@pytest.mark.parametrize("row", [1, 4, 7])
def test_labels_are_checked_in_all_blocks(tmp_path, monkeypatch, row):
    monkeypatch.setattr(dataset_module, "_BLOCK_BYTES", 3)
    labels = LABELS.astype(np.uint8)
    labels[row] = 77
    assert refusal(write(tmp_path / "a.h5", {"classes": 3}, train_y=labels)).endswith("be in 0..2, got 77")


def test_missing_file_is_refused_with_the_names_of_shipped_data_sets(tmp_path):
    for path in (tmp_path / "missing.h5", tmp_path, "digit", "~nosuchuser/a.h5", "a" * 5000, "a\nb"):
        message = refusal(path)
        assert message.startswith("`data.path` must be a data set file or the name of an included one (digits), got ")
        assert message.endswith(repr(str(path)))


def test_a_file_of_another_format_is_refused(tmp_path):
    path = tmp_path / "a.h5"
    for content in (b"", b"x,y\n1,2\n", b"\x89HDF\r\n\x1a\n"):
        path.write_bytes(content)
        assert refusal(path).startswith(f"`data.path` must be a readable HDF5 file, got {path}: ")


def test_a_truncated_file_is_refused(tmp_path):
    path = write(tmp_path / "a.h5", train_x=np.ones((8, 2000)), test_x=np.ones((4, 2000)))
    size = path.stat().st_size
    for keep in (100, size // 2, size - 1):
        os.truncate(path, keep)
        assert refusal(path).startswith(f"`data.path` must be a readable HDF5 file, got {path}: ")
        write(path, train_x=np.ones((8, 2000)), test_x=np.ones((4, 2000)))


def test_dangling_links_are_refused(tmp_path):
    path = write(tmp_path / "a.h5", train_x=None, test_y=None)
    with h5py.File(path, "r+") as file:
        file["train/x"] = h5py.SoftLink("/nowhere")
        file["test/y"] = h5py.ExternalLink(str(tmp_path / "missing.h5"), "/y")
    assert refusal(path) == f"`/train/x` of {path} must be a data set, got nothing"
    with h5py.File(path, "r+") as file:
        del file["train/x"]
        file["train/x"] = np.ones((8, 2, 3))
    assert str(path) in refusal(path)


def test_dtype_without_numpy_equivalent_is_refused(tmp_path):
    path = write(tmp_path / "a.h5", train_x=None)
    with h5py.File(path, "r+") as file:
        h5py.h5d.create(file["train"].id, b"x", h5py.h5t.UNIX_D32LE, h5py.h5s.create_simple((8,)))
    assert refusal(path).startswith(f"`data.path` must be a readable HDF5 file, got {path}: ")


def test_a_refused_file_is_closed(tmp_path):
    path = write(tmp_path / "a.h5", {"scale": -1.0})
    with pytest.raises(ConfigError) as caught:  # what is caught keeps the file's object from being collected
        open_dataset(path, np.float32)
    with h5py.File(path, "r+") as file:  # HDF5 refuses to write a file that this process has open to read
        file.attrs["scale"] = 1.0
    assert caught


def test_path_with_a_line_break_is_reported_in_one_line(tmp_path):
    (tmp_path / "a\nb").mkdir()
    refusal(write(tmp_path / "a\nb" / "a.h5", {"scale": -1.0}))


def test_file_takes_precedence_over_a_shipped_data_set_of_the_same_name(tmp_path, monkeypatch, opened):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert opened("digits", np.float32).train.n_rows == 1437
    (tmp_path / "digits").rmdir()
    write(tmp_path / "digits")
    assert opened("digits", np.float32).train.n_rows == 8


def test_a_home_directory_is_expanded(tmp_path, monkeypatch, opened):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a.h5")
    assert opened("~/a.h5", np.float32).train.n_rows == 8


def test_batches_read_from_the_file_equal_those_from_memory(opened):
    from_memory, from_file = opened("digits", np.float32), opened("digits", np.float32, cache_bytes=0)
    one, other = (Sampler(3, 1, dataset.train, 32) for dataset in (from_memory, from_file))
    for version in (0, 1, 64, 7):
        first, second = one.batch(version), other.batch(version)
        for a, b in ((first.x, second.x), (first.y, second.y)):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
    for n_rows in (100, 360, 1000):
        for a, b in zip(everything(from_memory.test, n_rows), everything(from_file.test, n_rows), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("cache_bytes", [0, 8 * 8, 1 << 20])
def test_rows_are_returned_in_the_given_order_with_repetitions(tmp_path, opened, cache_bytes):
    # 64 bytes hold the labels (8 of int64) but not the features.
    dataset = opened(write(tmp_path / "a.h5"), np.float64, cache_bytes=cache_bytes)
    for wanted in ([5, 0, 5, 7, 5], [2], [7, 6, 5, 4, 3, 2, 1, 0], [1] * 9):
        x, y = dataset.train.rows(np.array(wanted))
        np.testing.assert_array_equal(x, arrays()["train/x"][wanted])
        np.testing.assert_array_equal(y, LABELS[wanted])


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
@pytest.mark.parametrize(("n_rows", "sizes"), [(3, [3, 3, 2]), (4, [4, 4]), (8, [8]), (100, [8]), (1, [1] * 8)])
def test_batches_cover_a_split_in_order(tmp_path, opened, n_rows, sizes, cache_bytes):
    dataset = opened(write(tmp_path / "a.h5"), np.float64, cache_bytes=cache_bytes)
    batches = list(dataset.train.batches(n_rows))
    assert [len(batch.x) for batch in batches] == [len(batch.y) for batch in batches] == sizes
    assert {batch.source for batch in batches} == {(0, 0, 0)}
    np.testing.assert_array_equal(np.concatenate([p.x for p in batches]), arrays()["train/x"])
    np.testing.assert_array_equal(np.concatenate([p.y for p in batches]), LABELS)


class Counting:
    """Wrapper of an HDF5 data set that records how many rows are read."""

    def __init__(self, dataset):
        self._dataset = dataset
        self.n_read = []

    def __getattr__(self, name):
        return getattr(self._dataset, name)

    def __len__(self):
        return len(self._dataset)

    def __getitem__(self, rows):
        array = self._dataset[rows]
        self.n_read.append(len(array))
        return array


def test_only_the_rows_of_a_batch_are_read_from_a_large_file(tmp_path):
    with h5py.File(write(tmp_path / "a.h5"), "r") as file:
        x, y = Counting(file["train/x"]), Counting(file["train/y"])
        split = Split(x, y, np.dtype(np.float32), 1.0, cache_bytes=8 * 8)
        assert (x.n_read, y.n_read) == ([], [8])
        split.rows(np.array([6, 2, 6]))
        assert (x.n_read, y.n_read) == ([2], [8])
        list(split.batches(5))
        assert (x.n_read, y.n_read) == ([2, 5, 3], [8])


def test_a_file_larger_than_the_cache_takes_little_memory(tmp_path, opened):
    n_rows, path = 1 << 14, tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        for name, n in (("train", n_rows), ("test", 1)):
            file.create_dataset(f"{name}/x", (n, 1024), np.float32, chunks=(1, 1024))  # 64 MiB, never written
            file.create_dataset(f"{name}/y", (n,), np.uint8)
    tracemalloc.start()
    try:
        dataset = opened(path, np.float32, cache_bytes=1 << 20)
        batch = Sampler(0, 0, dataset.train, 32).batch(0)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert batch.x.shape == (32, 1024)
    assert peak_bytes < 8 << 20


def test_cached_arrays_remain_usable_after_close(tmp_path):
    dataset = open_dataset(write(tmp_path / "a.h5"), np.float64)
    dataset.close()
    np.testing.assert_array_equal(dataset.train.rows(np.arange(8))[0], arrays()["train/x"])
