"""Who may import whom: the floors of design.md, held against the imports that stand in the files."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import hpc_dasgd

ROOT = Path(hpc_dasgd.__file__).parent
PACKAGE = "hpc_dasgd"

# A module that is not listed fails; one in a package goes by the package's name.
FLOORS = {
    "errors": 0,
    "versions": 0,
    "rules": 0,
    "theory": 0,
    "partial_sums": 1,
    "topology": 1,
    "config": 1,
    "arrays": 1,
    "window": 1,
    "schema": 1,
    "runfile": 1,
    "rankfiles": 1,
    "ranklog": 1,
    "logfile": 1,
    "unclosed": 1,
    "diskfaults": 1,
    "generations": 1,
    "checkpoint": 1,
    "checkpointset": 1,
    "checkpointwriter": 1,
    "signals": 1,
    "data": 1,
    "batches": 1,
    "clock": 1,
    "progress": 1,
    "pace": 1,
    "straggler": 2,
    "launch": 1,
    "machine": 1,
    "slurm": 1,
    "estimation": 2,
    "objectives": 2,
    "optimizers": 2,
    "running_statistics": 2,
    "exchange": 2,
    "evaluation": 2,
    "problem": 3,
    "rundirectory": 3,
    "resume": 3,
    "saving": 3,
    "training": 3,
    "analysis": 3,
    "staleness": 3,
    "bound": 3,
    "convert": 2,
    "doctor": 3,
    "stepsize": 3,
    "replay": 3,
    "recomputation": 3,
    "report": 3,
    "plots": 3,
    "comparison": 3,
    "watch": 3,
    "plan": 3,
    "cli": 4,
    "__main__": 4,
}
WITHOUT_MPI = (
    *("analysis", "report", "objectives", "optimizers", "data", "runfile", "ranklog", "versions"),
    *("staleness", "schema", "batches", "config", "rules", "topology", "plots", "comparison"),
    *("theory", "partial_sums", "machine", "estimation", "bound", "replay", "watch", "plan", "convert"),
    *("logfile", "unclosed", "diskfaults", "generations", "rankfiles", "recomputation"),
    *("checkpoint", "checkpointset", "checkpointwriter", "signals", "slurm"),
)


def module_name(path):
    parts = (PACKAGE, *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path.read_text(encoding="utf-8") for path in sorted(ROOT.rglob("*.py"))}
MODULES = [name for name in SOURCES if name != PACKAGE]  # the top level is a lazy door to all floors


def room(module):
    return module.split(".")[1]


def behind_the_door(name):
    """The module that ``hpc_dasgd.NAME`` is or comes from; the top level itself for what it defines."""
    if f"{PACKAGE}.{name}" in SOURCES:
        return f"{PACKAGE}.{name}"
    return hpc_dasgd._HOME.get(name, PACKAGE)


def imported(module, source):
    """All that `source` imports, at its top and in its functions: modules of the package, and others.

    Attributes of the top level count too, since it imports what they stand for.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import in line {node.lineno}"
            if node.module == PACKAGE:
                found |= {behind_the_door(alias.name) for alias in node.names}
            else:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= inner & set(SOURCES) if inner <= set(SOURCES) else {node.module}
                found |= inner if node.module in ("mpi4py", "matplotlib") else set()
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == PACKAGE:
            found.add(behind_the_door(node.attr))
    return found


IMPORTS = {module: imported(module, source) for module, source in SOURCES.items()}
OWN = {module: {name for name in IMPORTS[module] if name in MODULES} for module in MODULES}


def from_outside(module):
    return {name.partition(".")[0] for name in IMPORTS[module] if name not in SOURCES}


def reached(module):
    """`module` and all modules of the package that importing and using it may load."""
    found, new = set(), {module}
    while new:
        found |= new
        new = set().union(*(OWN[name] for name in new)) - found
    return found


def test_every_import_of_the_package_is_of_a_module_there_is():
    unknown = {(m, n) for m in MODULES for n in IMPORTS[m] if n.startswith(f"{PACKAGE}.") and n not in SOURCES}
    assert not unknown


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_a_floor_and_imports_from_no_higher_one(module):
    assert room(module) in FLOORS, f"{module} has no floor: add it to design.md and to FLOORS"
    higher = {name for name in OWN[module] if FLOORS.get(room(name), 9) > FLOORS[room(module)]}
    assert not higher


def test_no_module_imports_itself_by_way_of_others():
    TopologicalSorter(OWN).prepare()  # raises CycleError, which names the cycle


def test_one_module_alone_imports_cupy():
    assert {module for module in MODULES if "cupy" in from_outside(module)} == {f"{PACKAGE}.arrays.gpu"}


def test_no_module_imports_pyplot():
    # It chooses a backend for the whole process, which a notebook has done already.
    assert not {m for m in MODULES for name in IMPORTS[m] if name.startswith(("matplotlib.pyplot", "pylab"))}
    assert "matplotlib.pyplot" in imported("example", "from matplotlib import pyplot")


def test_one_module_alone_uses_windows():
    users = {module for module, source in SOURCES.items() if re.search(r"\bMPI\.Win\b|\bimport Win\b", source)}
    assert users == {f"{PACKAGE}.window.memory"}


def test_one_module_alone_knows_the_world():
    users = {module for module, source in SOURCES.items() if "COMM_WORLD" in source}
    assert f"{PACKAGE}.launch" in users
    assert users <= {f"{PACKAGE}.launch", f"{PACKAGE}.cli"}


@pytest.mark.parametrize("name", WITHOUT_MPI)
def test_work_on_files_and_models_has_no_import_of_mpi(name):
    modules = [module for module in MODULES if room(module) == name]
    assert modules
    users = {other for m in modules for other in reached(m) if "mpi4py" in from_outside(other)}
    assert not users


def python(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60)


def loaded_by(*modules):
    """The modules that a new interpreter has loaded after importing `modules`."""
    script = "".join(f"import {module}\n" for module in modules) + "import sys\nprint('\\n'.join(sys.modules))"
    result = python("-W", "error", "-c", script)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_work_on_files_and_models_loads_no_mpi():
    # An HDF5 built for parallel files brings mpi4py along.
    without = loaded_by("h5py")
    assert "mpi4py.MPI" not in loaded_by(*(f"{PACKAGE}.{name}" for name in WITHOUT_MPI)) - without


def test_the_package_itself_loads_nothing_heavy():
    assert not {"mpi4py", "mpi4py.MPI", "h5py", "numpy", "matplotlib", "tqdm"} & loaded_by(PACKAGE)


def test_the_command_line_loads_nothing_heavy():
    assert not {"mpi4py", "mpi4py.MPI", "h5py", "numpy", "matplotlib", "tqdm"} & loaded_by(f"{PACKAGE}.cli")


def test_help_starts_no_mpi():
    script = (
        "import sys\nfrom hpc_dasgd.cli import main\n"
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
