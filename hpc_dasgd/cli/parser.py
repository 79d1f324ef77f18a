"""Parser of the command line under a launcher, where every rank parses the same arguments."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from hpc_dasgd.cli.status import UsageError
from hpc_dasgd.runtime import mpi

if TYPE_CHECKING:
    from _typeshed import SupportsWrite


class Parser(argparse.ArgumentParser):
    """Parser that raises `UsageError` for a wrong command line, and prints help on rank 0 only.

    Attributes
    ----------
    details : callable, optional
        Returns text that follows the help; called only if help is printed.
    """

    details: Callable[[], str] | None = None

    def error(self, message: str) -> NoReturn:
        """Raise `UsageError`; under a launcher every rank parses, so that the caller decides who prints."""
        raise UsageError(f"{message}; see {self.prog} --help")

    def print_help(self, file: "SupportsWrite[str] | None" = None) -> None:
        """Print the help on rank 0."""
        if mpi.process_rank() == 0:
            super().print_help(file)

    def format_help(self) -> str:
        """Return the help with its details."""
        return super().format_help() + ("" if self.details is None else self.details())
