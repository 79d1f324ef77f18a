"""Sections of settings as dataclasses: fields with rules, built from tables and converted back into tables.

A setting is a dataclass field whose metadata holds a `Rule` and a help text. A field whose default factory is another
dataclass is a subsection. A field named ``options`` collects all other keys of a section.
"""

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import Field, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from hpc_dasgd.config.rules import OPTION, Rule
from hpc_dasgd.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
Section = TypeVar("Section", bound="DataclassInstance")


def setting(default: T, rule: Rule, text: str) -> T:
    """Return a dataclass field for a setting.

    Parameters
    ----------
    default : object
        Value if the setting is not given; None means that it is not set.
    rule : Rule
        What a given value must satisfy.
    text : str
        Meaning of the setting, in one line, for ``train --help``.
    """
    made: T = field(default=default, metadata={"rule": rule, "text": text})
    return made


def settings_of(section: "type[DataclassInstance]", prefix: str = "") -> "Iterator[tuple[str, Field[Any]]]":
    """Yield the key, as in ``"exchange.kind"``, and the field of every setting of a section and its subsections."""
    for entry in fields(section):
        subsection: Any = entry.default_factory
        if "rule" in entry.metadata:
            yield prefix + entry.name, entry
        elif isinstance(subsection, type) and is_dataclass(subsection):
            yield from settings_of(subsection, f"{prefix}{entry.name}.")


def build(section: type[Section], table: Mapping[str, Any], prefix: str = "") -> Section:
    """Return an instance of a section, with every value of a table checked by the rule of its field.

    Parameters
    ----------
    section : dataclass
    table : mapping
        Values by the names of fields; subsections are mappings. Missing values get their defaults.
    prefix : str
        Prefix of the keys in error messages, as in ``"exchange."``.

    Raises
    ------
    ConfigError
        For an unknown key or a value that its rule does not accept.
    """
    entries = {entry.name: entry for entry in fields(section)}
    takes_options = entries.pop("options", None) is not None
    values: dict[str, Any] = {"options": {}} if takes_options else {}
    for name, value in table.items():
        key = f"{prefix}{name}"
        entry = entries.get(name)
        if entry is None and takes_options:
            values["options"][name] = OPTION.check(key, value)
        elif entry is None:
            raise ConfigError(_unknown_key(key, name, entries))
        elif "rule" in entry.metadata:
            value = os.fspath(value) if isinstance(value, os.PathLike) else value
            value = entry.metadata["rule"].check(key, value)
            values[name] = tuple(value) if isinstance(value, list) else value
        elif isinstance(value, Mapping):
            subsection: Any = entry.default_factory
            values[name] = build(subsection, value, key + ".")
        else:
            raise ConfigError(f"`{key}` must be a table, got {value!r}")
    return section(**values)


def table_of(section: "DataclassInstance") -> dict[str, Any]:
    """Return the settings of a section as a table that `build` accepts, without those that are not set."""
    pairs = {entry.name: getattr(section, entry.name) for entry in fields(section)}
    pairs |= pairs.pop("options", {})
    return {
        name: table_of(value) if is_dataclass(value) and not isinstance(value, type) else value
        for name, value in pairs.items()
        if value is not None
    }


def _unknown_key(key: str, name: object, names: Iterable[str]) -> str:
    """Return the error message for an unknown key."""
    names = list(names)
    close = difflib.get_close_matches(str(name), names, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"unknown key `{key}`{hint}; one of: {', '.join(names)}"
