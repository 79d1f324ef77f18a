"""How the program ends."""

from hpc_dasgd.errors import ConfigError

DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130
PROGRAM = "hpc-dasgd"


class UsageError(ConfigError):
    """The command line is wrong, and so on every rank."""
