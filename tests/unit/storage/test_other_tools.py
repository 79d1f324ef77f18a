"""Reading the files with other programs: HDF5's command line tools, xarray, the example in README."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from hpc_dasgd.config.settings import load_config
from tests.unit import synthetic

README = Path(__file__).parents[3] / "README.md"
SETTINGS = {"exchange": {"kind": "read"}, "budget": {"gradients": 1}}
FILES = ["run.h5", "rank_00000.h5"]

needs_hdf5_tools = pytest.mark.skipif(not shutil.which("h5dump"), reason="needs h5ls and h5dump (hdf5-tools)")


@pytest.fixture
def run():
    return synthetic.schedule(3, 90, seed=4)


@pytest.fixture
def directory(tmp_path, run):
    return synthetic.write_run(
        tmp_path / "run",
        run,
        config=load_config(SETTINGS).to_toml(),
        evaluations=[(0.5, 7, 2.0, 0.1), (1.5, 9, 1.0, 0.5)],
        summary={"seconds": 2.5, "gradients": 90},
    )


def tool(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@needs_hdf5_tools
@pytest.mark.parametrize("name", FILES)
def test_h5ls_lists_the_data_sets(directory, run, name):
    n_rows = 90 if name == "run.h5" else len(run.end[0])
    listed = tool("h5ls", "-r", str(directory / name))
    assert re.search(rf"/gradient/loss +Dataset \{{{n_rows}(/Inf)?\}}", listed)
    assert re.search(rf"/gradient/versions +Dataset \{{{n_rows}(/Inf)?, 3\}}", listed)
    assert re.search(r"/evaluation/accuracy +Dataset \{2(/Inf)?\}", listed)


@needs_hdf5_tools
@pytest.mark.parametrize("name", FILES)
def test_h5dump_shows_values_units_and_descriptions(directory, run, name):
    text = tool("h5dump", "-d", "/gradient/t_end_s", "-m", "%.9g", str(directory / name))
    values = re.search(r"\n   DATA \{\n(.*?)\n   \}", text, re.S).group(1)
    shown = [
        float(value) for line in values.splitlines() for value in line.partition("):")[2].split(",") if value.strip()
    ]
    expected = np.concatenate(run.end) if name == "run.h5" else run.end[0]
    np.testing.assert_allclose(shown, expected, rtol=1e-8)
    attributes = text[text.index("ATTRIBUTE") :]
    assert re.search(r'ATTRIBUTE "units".*?"s"', attributes, re.S)
    assert re.search(r'ATTRIBUTE "description".*?"end of the computation since the run began', attributes, re.S)


@pytest.fixture
def xarray():
    pytest.importorskip("h5netcdf")
    return pytest.importorskip("xarray")


@pytest.mark.parametrize("name", FILES)
def test_xarray_finds_dimensions_and_coordinates(xarray, directory, run, name):
    with xarray.open_dataset(directory / name, group="gradient", engine="h5netcdf") as gradients:
        ends = np.concatenate(run.end) if name == "run.h5" else run.end[0]
        versions = np.concatenate(run.versions) if name == "run.h5" else run.versions[0]
        np.testing.assert_array_equal(gradients.t_end_s.values, ends)
        np.testing.assert_array_equal(gradients.versions.values, versions)
        assert gradients.versions.dims == ("version", "source_rank")
        assert gradients.loss.dims == ("version",)
        assert gradients.t_end_s.attrs["units"] == "s"
        if name == "run.h5":
            counts = gradients.loss.groupby(gradients["rank"]).count()
            assert counts.values.tolist() == [len(times) for times in run.end]
    with xarray.open_dataset(directory / name, group="evaluation", engine="h5netcdf") as evaluations:
        assert evaluations.loss.sel(t_s=1.5).item() == 1.0


def test_the_example_of_readme_runs(xarray, directory, capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    (example,) = (block for block in blocks if "xarray" in block)
    assert len(example.splitlines()) <= 10
    exec(re.sub(r'"runs/[^/"]*', f'"{directory}', example), {})
    assert capsys.readouterr().out
