"""The names of the package that are loaded on first use."""

import ast
from pathlib import Path

import pytest

import hpc_dasgd

SOURCE = Path(hpc_dasgd.__file__).read_text()


def test_type_checkers_and_lazy_imports_find_the_same_names_in_the_same_modules():
    guarded = next(node for node in ast.parse(SOURCE).body if isinstance(node, ast.If))
    imports = {alias.name: node.module for node in guarded.body for alias in node.names}
    assert imports.pop("objectives") == "hpc_dasgd"
    assert imports == hpc_dasgd._MODULES
    assert set(hpc_dasgd.__all__) == {"__version__", "objectives", *imports}


def test_public_names_are_loaded_on_first_use():
    assert hpc_dasgd.ConfigError.__module__ == "hpc_dasgd.errors"
    assert hpc_dasgd.objectives.__name__ == "hpc_dasgd.objectives"
    assert dir(hpc_dasgd) == sorted(hpc_dasgd.__all__)


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="module 'hpc_dasgd' has no attribute 'tarin'"):
        _ = hpc_dasgd.tarin
