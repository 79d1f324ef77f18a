"""What README, ``docs/`` and docstrings say is true: pictures and tables are current, links and examples work."""

import ast
import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.test_architecture import NEEDS_MORE, PROJECT, ROOT, SOURCES

PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
LONGEST_FUNCTION = 60  # lines, docstring included
MOST_PARAMETERS = 7  # of a constructor, without self


@pytest.mark.parametrize("script", ["rooms.py", "exchanges.py"])
def test_what_scripts_write_into_pages_is_current(script):
    done = subprocess.run([sys.executable, PROJECT / "docs" / script, "--check"], cwd=PROJECT, timeout=100)
    assert done.returncode == 0, f"run python docs/{script}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_that_exist(page):
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:hpc_dasgd|jobs|tests|docs|results)/[\w./-]+\.\w+)`", text)
    missing = [name for name in named if "NAME" not in name and not (PROJECT / name).exists()]
    assert not missing


def test_pages_that_the_code_cites_exist_with_the_headings_it_names():
    problems = []
    for module, source in SOURCES.items():
        for name, heading in re.findall(r"``(docs/[\w-]+\.md)``(?:,\s+\"([^\"]+)\")?", source):
            page, heading = PROJECT / name, " ".join(heading.split())
            text = page.read_text(encoding="utf-8") if page.exists() else ""
            if not text or (heading and not re.search(rf"^#+ {re.escape(heading)}\s*$", text, re.MULTILINE)):
                problems.append((module, name, heading))
        problems += [(module, cited, "") for cited in re.findall(r"``(?:theory|design|interface)\.md``", source)]
    assert not problems


def source_skips(source):
    """Return whether all examples are marked as not to be run, since they need files."""
    return all("+SKIP" in line for line in source.splitlines() if line.lstrip().startswith(">>>"))


@pytest.mark.parametrize("module", sorted(name for name, text in SOURCES.items() if ">>>" in text))
def test_examples_in_docstrings_are_right(module):
    if module in NEEDS_MORE:
        pytest.skip("needs a library that is not installed everywhere")
    failed, tried = doctest.testmod(importlib.import_module(module))
    assert not failed
    assert tried or source_skips(SOURCES[module])


def functions():
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node


def test_no_function_is_too_long():
    lengths = {where: node.end_lineno - node.lineno + 1 for where, node in functions()}
    assert {where: n_lines for where, n_lines in lengths.items() if n_lines > LONGEST_FUNCTION} == {}


def test_no_constructor_has_too_many_parameters():
    too_many = {}
    for where, node in functions():
        if node.name == "__init__":
            arguments = node.args
            n_parameters = len(arguments.posonlyargs + arguments.args + arguments.kwonlyargs) - 1
            if n_parameters > MOST_PARAMETERS:
                too_many[where] = n_parameters
    assert not too_many


def test_the_package_has_few_lines_per_file():
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in ROOT.rglob("*.py")}
    assert {str(Path(path).relative_to(ROOT)): n for path, n in lengths.items() if n > 400} == {}
