"""Name and exit statuses of the program."""

from hpc_dasgd.errors import ConfigError

DONE, FAILED, WRONG, STOPPED, INTERRUPTED = 0, 1, 2, 75, 130
PROGRAM = "hpc-dasgd"


class UsageError(ConfigError):
    """The command line is wrong. Every rank has the same command line, and raises the same error."""
