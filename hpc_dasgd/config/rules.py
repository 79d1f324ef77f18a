"""Rules for the values of settings and of options of objectives: a text for messages, and a check."""

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeGuard, TypeVar

from hpc_dasgd.config.exchange_traits import all_traits
from hpc_dasgd.errors import ConfigError

T = TypeVar("T")


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

    def check(self, key: str, value: T) -> T:
        """Return `value` if the rule accepts it.

        Raises
        ------
        ConfigError
            If the rule does not accept it; the message names `key`, the rule and the value.
        """
        if not self.accepts(value):
            text = self.text if isinstance(self.text, str) else self.text()
            raise ConfigError(f"`{key}` must be {text}, got {value!r}")
        return value


def _quoted(choices: Iterable[str]) -> str:
    return "one of " + ", ".join(f'"{choice}"' for choice in choices)


def one_of(*choices: str) -> Rule:
    """Return the rule for a string that is one of `choices`."""
    return Rule(_quoted(choices), lambda value: isinstance(value, str) and value in choices)


def _is_number(value: object) -> bool:
    # The limit excludes nan, infinity, and integers too large for a float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_positive_integers(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(map(POSITIVE_INTEGER.accepts, value))


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and value.strip() != ""


def _is_file_name(value: object) -> bool:
    return _is_text(value) and value.isprintable() and "/" not in value and value not in (".", "..")


def _is_ranks(value: object) -> bool:
    return isinstance(value, list | tuple) and all(_is_integer(rank) and rank >= 0 for rank in value)


def _is_versions(value: object) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(r"\s*(full|none|every\s+0*[1-9][0-9]*)\s*", value))


def _is_option(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_option, value))
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and _is_option(item) for name, item in value.items())
    return isinstance(value, str | int | float)


TEXT = Rule("a non-empty string", _is_text)
FILE_NAME = Rule("a file name: printable, without '/', and not '.' or '..'", _is_file_name)
NUMBER = Rule("a number", _is_number)
POSITIVE = Rule("a positive number", lambda value: _is_number(value) and value > 0)
NOT_NEGATIVE = Rule("a number of at least 0", lambda value: _is_number(value) and value >= 0)
FRACTION = Rule("a number in [0, 1)", lambda value: _is_number(value) and 0 <= value < 1)
POSITIVE_INTEGER = Rule("a positive integer", lambda value: _is_integer(value) and value > 0)
ODD_INTEGER = Rule("an odd positive integer", lambda value: _is_integer(value) and value > 0 and value % 2 == 1)
POSITIVE_INTEGERS = Rule("a list of at least one positive integer", _is_positive_integers)
AT_LEAST_TWO = Rule("an integer of at least 2", lambda value: _is_integer(value) and value >= 2)
SHARE = Rule("a number strictly between 0 and 1", lambda value: _is_number(value) and 0 < value < 1)
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
