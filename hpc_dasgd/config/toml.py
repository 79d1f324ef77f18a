"""Settings as TOML text: reading a file, applying overrides of the command line, writing."""

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpc_dasgd.errors import ConfigError


def read_toml(path: Path) -> dict[str, Any]:
    """Return the content of a settings file as a table.

    Raises
    ------
    ConfigError
        If the file cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read settings file {path}: {error.strerror}") from None
    except ValueError as error:  # wrong encoding, wrong syntax, or an integer with thousands of digits
        raise ConfigError(f"settings file {path} is not TOML: {error}") from None


def apply_override(table: dict[str, Any], override: str) -> None:
    """Set one value of a table in place.

    Parameters
    ----------
    table : dict
        A table of settings; a missing section is added.
    override : str
        ``key=value`` or ``section.key=value``. The value is read as TOML if it is TOML, else as a string.

    Raises
    ------
    ConfigError
        If the override has another form, or names a section that is not a table.

    Examples
    --------
    >>> table = {"seed": 0}
    >>> apply_override(table, "exchange.topology=tree")
    >>> table
    {'seed': 0, 'exchange': {'topology': 'tree'}}
    """
    key, separator, text = override.partition("=")
    *sections, name = key.strip().split(".")
    if not separator or not name or "" in sections or len(sections) > 1:
        raise ConfigError(f"--set must be KEY=VALUE or SECTION.KEY=VALUE, got {override!r}")
    value = _override_value(text)
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"`{section}` must be a table, got {table!r}")
    table[name] = value


def toml_text(table: Mapping[str, Any]) -> str:
    """Return a table of settings as TOML text, with a TOML section for each value that is a table."""
    sections = {name: value for name, value in table.items() if isinstance(value, Mapping)}
    lines = _toml_lines({name: value for name, value in table.items() if name not in sections})
    for name, values in sections.items():
        lines += ["", f"[{name}]", *_toml_lines(values)]
    return "\n".join(lines) + "\n"


def _override_value(text: str) -> object:
    try:
        table = tomllib.loads(f"value = {text}")
    except ValueError:
        return text.strip()
    # Text of several lines may define further keys after the value. It is a string, not a value of TOML.
    return table["value"] if len(table) == 1 else text.strip()


def _toml_lines(table: Mapping[str, Any]) -> list[str]:
    return [f"{_toml_key(name)} = {_toml_value(value)}" for name, value in table.items()]


def _toml_key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml_value(name)


def _toml_value(value: object) -> str:
    if isinstance(value, Mapping):  # an option of an objective may be a table
        return "{" + ", ".join(_toml_lines(value)) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    if isinstance(value, float):
        return float.__repr__(value)  # JSON would write Infinity and NaN
    # Strings, integers and booleans are the same in JSON and TOML, except for a control character that TOML escapes.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
