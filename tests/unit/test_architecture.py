"""The architecture: what each room may import, and what importing costs.

The floors are contracts of import-linter in ``pyproject.toml``; what it cannot express is tested here.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import hpc_dasgd

ROOT = Path(hpc_dasgd.__file__).parent
PROJECT = Path(__file__).parents[2]
PACKAGE = "hpc_dasgd"
BESIDE_THE_ROOMS = {"__init__.py", "__main__.py", "errors.py", "py.typed"}
WITHOUT_MPI = (
    *("analysis", "arrays", "config", "console", "data", "objectives", "optim", "overlay"),
    *("plan", "report", "storage", "theory", "watch"),
)
NEEDS_MORE = {  # libraries that are not installed everywhere
    f"{PACKAGE}.arrays.gpu",
    f"{PACKAGE}.objectives.jax_function",
    f"{PACKAGE}.objectives.torch_module",
}
SOURCES = {
    ".".join((PACKAGE, *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path.read_text()
    for path in sorted(ROOT.rglob("*.py"))
    if path.parent != ROOT
}
ROOMS = sorted(path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__")


def users_of(pattern):
    return {module for module, source in SOURCES.items() if re.search(pattern, source)}


def test_every_import_goes_to_a_lower_floor_or_stays_in_the_room():
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run([*command, "--no-cache"], cwd=PROJECT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_contract_is_broken_by_an_import_of_a_higher_floor(tmp_path):
    """The contracts see an import inside a function too."""
    _copy_with(tmp_path, "theory/bounds.py", UPWARD)
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run([*command, "--no-cache"], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "hpc_dasgd.theory.bounds -> hpc_dasgd.training.loop" in done.stdout


UPWARD = "\n\ndef _upward() -> None:\n    from hpc_dasgd.training import loop  # noqa: F401\n"


def _copy_with(folder, path, text):
    """Copy the package's sources and the contracts to `folder`, with `text` appended to one file."""
    for source in ROOT.rglob("*.py"):
        copy = folder / PACKAGE / source.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(source.read_text())
    with (folder / PACKAGE / path).open("a") as file:
        file.write(text)
    (folder / "pyproject.toml").write_text((PROJECT / "pyproject.toml").read_text())


def test_there_is_nothing_but_rooms_beside_the_four_files():
    assert {path.name for path in ROOT.iterdir() if path.is_file()} == BESIDE_THE_ROOMS


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_it_is_for(room):
    text = SOURCES[f"{PACKAGE}.{room}"]
    assert text.startswith('"""')
    docstring = text.split('"""')[1]
    assert len(docstring.split(". ")) >= 2 and re.search(r"import", docstring), docstring


def test_every_room_has_a_place_in_the_contracts():
    layers = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]
    named = {room.strip() for layer in layers for room in layer.split("|")}
    assert named == {*ROOMS, "errors"}


def test_unit_tests_mirror_the_rooms():
    folders = {path.name for path in Path(__file__).parent.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= set(ROOMS)


def test_no_module_imports_pyplot():
    # It chooses a backend for the whole process, which a notebook has done already.
    assert not users_of(r"import pyplot|matplotlib\.pyplot|import pylab")


def test_only_one_room_uses_windows():
    assert users_of(r"\bMPI\.Win\b|\bimport Win\b") == {f"{PACKAGE}.window.memory"}


def test_only_one_room_knows_the_world():
    assert users_of("COMM_WORLD") <= {f"{PACKAGE}.runtime.mpi", f"{PACKAGE}.runtime.launcher", f"{PACKAGE}.cli.main"}
    assert f"{PACKAGE}.runtime.mpi" in users_of(r"MPI\.COMM_WORLD")


def python(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60)


def loaded_by(*modules):
    """The modules that a new interpreter has loaded after importing `modules`."""
    script = "".join(f"import {module}\n" for module in modules) + "import sys\nprint('\\n'.join(sys.modules))"
    result = python("-W", "error", "-c", script)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_work_on_files_and_models_loads_no_mpi():
    modules = [name for name in SOURCES if name.split(".")[1] in WITHOUT_MPI and name not in NEEDS_MORE]
    # An HDF5 built for parallel files brings mpi4py along.
    without = loaded_by("h5py")
    assert "mpi4py.MPI" not in loaded_by(*modules) - without


def test_the_package_itself_loads_nothing_heavy():
    assert not {"mpi4py", "mpi4py.MPI", "h5py", "numpy", "matplotlib", "tqdm"} & loaded_by(PACKAGE)


def test_the_command_line_loads_nothing_heavy():
    assert not {"mpi4py", "mpi4py.MPI", "h5py", "numpy", "matplotlib", "tqdm"} & loaded_by(f"{PACKAGE}.cli.main")


def test_help_starts_no_mpi():
    script = (
        "import sys\nfrom hpc_dasgd.cli.main import main\n"
        "try:\n    main(['--help'])\nfinally:\n    print('MPI' if 'mpi4py.MPI' in sys.modules else 'none')"
    )
    result = python("-c", script)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1] == "none"


def test_help_is_shown_by_the_module():
    result = python("-m", PACKAGE, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("usage: hpc-dasgd")
    assert "train" in result.stdout
