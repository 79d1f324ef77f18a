"""Conversion of valid and damaged files of other formats to data set files."""

import gzip
import struct
import tracemalloc

import numpy as np
import pytest

from hpc_dasgd.cli.main import main
from hpc_dasgd.data.convert.conversion import convert
from hpc_dasgd.data.convert.source import BLOCK_BYTES
from hpc_dasgd.data.dataset import open_dataset
from hpc_dasgd.errors import ConfigError

RNG = np.random.default_rng(0)
CODES = {"u1": 0x08, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx(array, code=None, shape=None):
    dtype = array.dtype.str[1:]
    shape = array.shape if shape is None else shape
    header = struct.pack(">HBB", 0, CODES[dtype] if code is None else code, len(shape))
    return header + struct.pack(f">{len(shape)}I", *shape) + array.astype(f">{dtype}").tobytes()


def write(path, content):
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def mnist(folder, suffix="", separator="-", n_train=70, n_test=20):
    folder.mkdir(exist_ok=True)
    made = {}
    for prefix, n in (("train", n_train), ("t10k", n_test)):
        x, y = RNG.integers(0, 256, (n, 4, 5), np.uint8), RNG.integers(0, 10, n, np.uint8)
        write(folder / f"{prefix}-images{separator}idx3-ubyte{suffix}", idx(x))
        write(folder / f"{prefix}-labels{separator}idx1-ubyte{suffix}", idx(y))
        made[prefix] = x, y
    return made


def assert_holds(path, split, x, y, scale=1.0):
    data = open_dataset(path, "float64")
    found_x, found_y = getattr(data, split).rows(np.arange(len(x)))
    np.testing.assert_allclose(found_x, np.asarray(x, float) * scale)
    np.testing.assert_array_equal(found_y, y)
    assert getattr(data, split).n_rows == len(x)
    return data


def refused(source, target, *fragments):
    with pytest.raises(ConfigError) as error:
        convert(source, target)
    assert "\n" not in str(error.value)
    assert all(fragment in str(error.value) for fragment in fragments), str(error.value)
    assert list(target.parent.glob(f"*{target.name}*")) == []


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("separator", ["-", "."])
def test_mnist_directory_is_converted(tmp_path, suffix, separator):
    made = mnist(tmp_path / "mnist", suffix, separator)
    assert convert(tmp_path / "mnist", tmp_path / "set.h5") == {"train": 70, "test": 20}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        data = assert_holds(tmp_path / "set.h5", split, *made[prefix], scale=1 / 255)
    assert data.n_classes == 10
    assert data.attributes["source"] == str(tmp_path / "mnist")


def test_single_file_is_divided_into_train_and_test(tmp_path):
    x, y = mnist(tmp_path / "mnist", n_train=1000)["train"]
    found = convert(tmp_path / "mnist" / "train-images-idx3-ubyte", tmp_path / "set.h5", test_share=0.3)
    assert sum(found.values()) == 1000
    assert 250 < found["test"] < 350
    data = open_dataset(tmp_path / "set.h5", "float64")
    both = [getattr(data, name).rows(np.arange(found[name])) for name in ("train", "test")]
    rows = np.concatenate([part.reshape(len(part), -1) for part, _ in both])
    expected = x.reshape(1000, -1) / 255
    np.testing.assert_allclose(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)])
    assert sorted(np.concatenate([labels for _, labels in both])) == sorted(y)
    assert convert(tmp_path / "mnist" / "train-images-idx3-ubyte", tmp_path / "all.h5", 0.0) == {
        "train": 1000,
        "test": 0,
    }


@pytest.mark.parametrize("dtype", ["i2", "i4", "f4", "f8"])
def test_idx_files_of_other_dtypes_are_converted(tmp_path, dtype):
    x = RNG.integers(-100, 100, (30, 3)).astype(dtype)
    write(tmp_path / "a-images-idx3-ubyte", idx(x))
    write(tmp_path / "a-labels-idx1-ubyte", idx(np.arange(30, dtype="i4") % 3))
    convert(tmp_path / "a-images-idx3-ubyte", tmp_path / "set.h5", 0.0)
    assert_holds(tmp_path / "set.h5", "train", x, np.arange(30) % 3)


@pytest.mark.parametrize(
    ("images", "labels", "fragments"),
    [
        (b"\x01\x02\x03\x04", None, ["images", "offset 0", "magic number"]),
        (idx(np.zeros((3, 2, 2), "u1"), code=0x07), None, ["offset 0", "magic number"]),
        (b"\x00\x00\x08\x03\x00\x00", None, ["offset 4", "12 bytes of dimensions, got 2"]),
        (idx(np.zeros((3, 2, 2), "u1"))[:-1], None, ["offset 16", "12 bytes of examples 0 to 2, got 11"]),
        (idx(np.zeros((3, 2, 2), "u1")) + b"x", None, ["offset 28", "end here"]),
        (None, idx(np.zeros(4, "u1")), ["labels", "must hold 3 labels", "got 4"]),
        (None, idx(np.zeros(3, "f4")), ["labels", "one integer per example"]),
        (None, idx(np.zeros(3, "u1"))[:-2], ["labels", "offset 8", "3 bytes of labels 0 to 2, got 1"]),
    ],
)
def test_damaged_idx_files_are_refused_with_file_and_offset(tmp_path, images, labels, fragments):
    good = idx(np.zeros((3, 2, 2), "u1")), idx(np.zeros(3, "u1"))
    write(tmp_path / "train-images-idx3-ubyte", images or good[0])
    write(tmp_path / "train-labels-idx1-ubyte", labels or good[1])
    refused(tmp_path, tmp_path / "set.h5", *fragments)


def test_truncated_gzip_file_and_missing_labels_are_refused(tmp_path):
    mnist(tmp_path / "mnist", ".gz", n_train=2000)
    images = tmp_path / "mnist" / "train-images-idx3-ubyte.gz"
    images.write_bytes(images.read_bytes()[:-200])
    refused(tmp_path / "mnist", tmp_path / "set.h5", images.name, "complete gzip data")
    (tmp_path / "mnist" / "train-labels-idx1-ubyte.gz").unlink()
    refused(tmp_path / "mnist", tmp_path / "set.h5", "must hold train-labels-idx1-ubyte.gz too")


def cifar_records(n):
    y = RNG.integers(0, 10, n, np.uint8)
    x = RNG.integers(0, 256, (n, 3, 32, 32), np.uint8)
    return x, y, np.column_stack([y, x.reshape(n, -1)]).tobytes()


def test_cifar_directory_is_converted(tmp_path):
    parts = [cifar_records(7) for _ in range(3)]
    for number, (_, _, content) in enumerate(parts, start=1):
        (tmp_path / f"data_batch_{number}.bin").write_bytes(content)
    x, y, content = cifar_records(5)
    (tmp_path / "test_batch.bin").write_bytes(content)
    assert convert(tmp_path, tmp_path / "set.h5") == {"train": 21, "test": 5}
    data = assert_holds(tmp_path / "set.h5", "test", x, y, 1 / 255)
    assert (data.feature_shape, data.n_classes) == ((3, 32, 32), 10)
    trained = [np.concatenate([part[k] for part in parts]) for k in (0, 1)]
    assert_holds(tmp_path / "set.h5", "train", *trained, 1 / 255)


def test_damaged_cifar_files_are_refused_with_file_and_offset(tmp_path):
    path = tmp_path / "data_batch_1.bin"
    _, _, content = cifar_records(4)
    path.write_bytes(content[:-1])
    refused(tmp_path, tmp_path / "set.h5", path.name, f"offset {3 * 3073}", "3073 bytes, got 3072")
    path.write_bytes(content[: 2 * 3073] + b"\x0b" + content[2 * 3073 + 1 :])
    refused(tmp_path, tmp_path / "set.h5", path.name, f"offset {2 * 3073}", "a label below 10, got 11")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    "names", [("x_train", "y_train", "x_test", "y_test"), ("train_x", "train_y", "test_x", "test_y")]
)
def test_npz_archive_is_converted(tmp_path, save, names):
    x, y = RNG.normal(size=(50, 6)).astype(np.float32), RNG.integers(0, 4, 50)
    save(tmp_path / "a.npz", **dict(zip(names, (x[:40], y[:40], x[40:], y[40:]), strict=True)))
    assert convert(tmp_path / "a.npz", tmp_path / "set.h5") == {"train": 40, "test": 10}
    assert_holds(tmp_path / "set.h5", "train", x[:40], y[:40])
    assert_holds(tmp_path / "set.h5", "test", x[40:], y[40:])


def test_float_targets_of_an_npz_archive_get_two_dimensions(tmp_path):
    x, y = RNG.integers(0, 256, (30, 2, 2), np.uint8), RNG.normal(size=30)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    convert(tmp_path / "a.npz", tmp_path / "set.h5", 0.0)
    assert_holds(tmp_path / "set.h5", "train", x, y[:, np.newaxis], 1 / 255)


@pytest.mark.parametrize(
    ("arrays", "fragments"),
    [
        ({"x_train": np.zeros((3, 2)), "y_train": np.zeros(4, int)}, ["`y_train`", "3 rows, got 4"]),
        ({"a": np.zeros(3)}, ["arrays named x_train, y_train", "got a"]),
        ({"x": np.array(["a", "b"]), "y": np.zeros(2, int)}, ["`x`", "rows of numbers"]),
        ({"x": np.zeros((3, 2), order="F"), "y": np.zeros(3, int)}, ["`x`", "Fortran order"]),
        ({"x": np.zeros((0, 2)), "y": np.zeros(0, int)}, ["at least 1 example"]),
    ],
)
def test_npz_archives_with_other_arrays_are_refused(tmp_path, arrays, fragments):
    np.savez(tmp_path / "a.npz", **arrays)
    refused(tmp_path / "a.npz", tmp_path / "set.h5", "a.npz", *fragments)


def test_damaged_npz_archive_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=RNG.normal(size=(500, 3)), y=np.zeros(500, int))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[4000] ^= 255
    (tmp_path / "a.npz").write_bytes(content)
    refused(tmp_path / "a.npz", tmp_path / "set.h5", "`x`", "must be complete")
    (tmp_path / "a.npz").write_bytes(content[:3000])
    refused(tmp_path / "a.npz", tmp_path / "set.h5", "NumPy archive")


@pytest.mark.parametrize(
    ("text", "x", "y"),
    [
        ("1,2,0\n3,4,1\n", [[1, 2], [3, 4]], [0, 1]),
        ("a,b,c\n1,2,0\n\n3,4,1\n", [[1, 2], [3, 4]], [0, 1]),
        ("label,a,b\n0,1,2\n1,3,4\n", [[1, 2], [3, 4]], [0, 1]),
        ("a,Class,b\n1,0,2\n3,1,4\n", [[1, 2], [3, 4]], [0, 1]),
        ("1,2,0.5\n3,4,-1\n", [[1, 2], [3, 4]], [[0.5], [-1]]),
        ("1e3,2,7\r\n-3,4,0\r\n", [[1000, 2], [-3, 4]], [7, 0]),
    ],
)
def test_csv_table_is_converted(tmp_path, text, x, y):
    (tmp_path / "a.csv").write_bytes(text.encode())
    convert(tmp_path / "a.csv", tmp_path / "set.h5", 0.0)
    assert_holds(tmp_path / "set.h5", "train", x, y)


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        (b"1,2\n3,4\n5\n", ["2 columns in line 3, got 1"]),
        (b"a,b\n1,2\n1,x\n", ["a number in line 3, column 2, got 'x'"]),
        (b"1\n2\n", ["at least 2 columns in line 1"]),
        (b"1,2\n\xff\xfe\n", ["text in columns"]),
        (b"", ["at least 1 example"]),
    ],
)
def test_damaged_csv_tables_are_refused_with_file_and_line(tmp_path, content, fragments):
    (tmp_path / "a.csv").write_bytes(content)
    refused(tmp_path / "a.csv", tmp_path / "set.h5", "a.csv", *fragments)


def test_memory_does_not_grow_with_the_data(tmp_path):
    n = 12 * BLOCK_BYTES // 1000
    write(tmp_path / "train-images-idx3-ubyte.gz", idx(np.zeros((n, 1000), "u1")))
    write(tmp_path / "train-labels-idx1-ubyte.gz", idx(np.zeros(n, "u1")))
    tracemalloc.start()
    try:
        convert(tmp_path, tmp_path / "set.h5")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6 * BLOCK_BYTES


def test_convert_command(tmp_path, capsys):
    mnist(tmp_path / "mnist")
    assert main(["convert", str(tmp_path / "mnist"), str(tmp_path / "set.h5")]) == 0
    assert capsys.readouterr().out == f"data set: {tmp_path / 'set.h5'}, 70 training examples, 20 test examples\n"
    for source, fragment in (("nowhere", "there is no"), (".", "under their usual names")):
        assert main(["convert", str(tmp_path / source), str(tmp_path / "other.h5")]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert fragment in lines[0]
    assert main(["convert", str(tmp_path / "mnist"), str(tmp_path / "no" / "set.h5")]) == 2
    assert "cannot write data set" in capsys.readouterr().err
    assert main(["convert", str(tmp_path), str(tmp_path / "set.h5"), "--test-share", "1"]) == 2
    assert "must be a number in [0, 1), got '1'" in capsys.readouterr().err


def test_existing_data_set_is_kept_if_the_conversion_fails(tmp_path):
    mnist(tmp_path / "mnist")
    convert(tmp_path / "mnist", tmp_path / "set.h5")
    before = (tmp_path / "set.h5").read_bytes()
    (tmp_path / "a.csv").write_text("1,2\n3\n")
    with pytest.raises(ConfigError):
        convert(tmp_path / "a.csv", tmp_path / "set.h5")
    assert (tmp_path / "set.h5").read_bytes() == before
