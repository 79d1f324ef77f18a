"""Rules for settings and for the options of objectives: what a value may be, in words and as a check."""

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from hpc_dasgd.config.exchange_traits import all_traits
from hpc_dasgd.errors import ConfigError


class Rule(NamedTuple):
    """Rule for the value of a setting.

    Attributes
    ----------
    text : str or callable
        Completes "must be ..."; a function without arguments if the text can change.
    accepts : callable
        Returns True for a value that the rule allows.
    """

    text: str | Callable[[], str]
    accepts: Callable[[Any], bool]

    def check(self, key: str, value):
        """Return `value`; `ConfigError` names `key` where the rule does not accept it."""
        if not self.accepts(value):
            text = self.text if isinstance(self.text, str) else self.text()
            raise ConfigError(f"`{key}` must be {text}, got {value!r}")
        return value


def _quoted(choices: Iterable[str]) -> str:
    return "one of " + ", ".join(f'"{choice}"' for choice in choices)


def one_of(*choices: str) -> Rule:
    """The rule of a word among `choices`."""
    return Rule(_quoted(choices), lambda value: isinstance(value, str) and value in choices)


def _is_number(value) -> bool:
    # The bound refuses nan, infinity, and integers that no float holds.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_integer(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_widths(value) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(map(POSITIVE_INTEGER.accepts, value))


def _is_text(value) -> bool:
    return isinstance(value, str) and value.strip() != ""


def _is_file_name(value) -> bool:
    return _is_text(value) and value.isprintable() and "/" not in value and value not in (".", "..")


def _is_ranks(value) -> bool:
    return isinstance(value, list | tuple) and all(_is_integer(rank) and rank >= 0 for rank in value)


def _is_versions(value) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(r"\s*(full|none|every\s+0*[1-9][0-9]*)\s*", value))


def _is_option(value) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_option, value))
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and _is_option(item) for name, item in value.items())
    return isinstance(value, str | int | float)


TEXT = Rule("a non-empty string", _is_text)
FILE_NAME = Rule("a file name: printable, without '/', neither '.' nor '..'", _is_file_name)
NUMBER = Rule("a number", _is_number)
POSITIVE = Rule("a positive number", lambda value: _is_number(value) and value > 0)
NOT_NEGATIVE = Rule("a number of at least 0", lambda value: _is_number(value) and value >= 0)
FRACTION = Rule("a number in [0, 1)", lambda value: _is_number(value) and 0 <= value < 1)
POSITIVE_INTEGER = Rule("a positive integer", lambda value: _is_integer(value) and value > 0)
ODD = Rule("an odd positive integer", lambda value: _is_integer(value) and value > 0 and value % 2 == 1)
WIDTHS = Rule("a list of at least one positive integer", _is_widths)
SEVERAL = Rule("an integer of at least 2", lambda value: _is_integer(value) and value >= 2)
SHARE = Rule("a number between 0 and 1, neither of them", lambda value: _is_number(value) and 0 < value < 1)
STEPSIZE = Rule('a positive number or "bound"', lambda value: value == "bound" or (_is_number(value) and value > 0))
STEPS = Rule('a positive integer or "auto"', lambda value: value == "auto" or (_is_integer(value) and value > 0))
BOOLEAN = Rule("true or false", lambda value: isinstance(value, bool))
SEED = Rule("an integer in [0, 2**64)", lambda value: _is_integer(value) and 0 <= value < 2**64)
RANK = Rule("a rank (an integer of at least 0)", lambda value: _is_integer(value) and value >= 0)
RANKS = Rule("a list of ranks (integers of at least 0)", _is_ranks)
VERSIONS = Rule('"full", "none" or "every N" with a positive integer N', _is_versions)
OPTION = Rule("a string, a number, a boolean, or a list or table of these", _is_option)


def _exchange_kinds() -> list[str]:
    return [traits.kind for traits in all_traits()]


EXCHANGE_KIND = Rule(
    lambda: _quoted(_exchange_kinds()), lambda value: isinstance(value, str) and value in _exchange_kinds()
)
