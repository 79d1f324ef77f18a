"""Error types; every other room raises these and the command line turns them into exit statuses."""


class HpcDasgdError(Exception):
    """Base of all errors raised on purpose by this package."""


class ConfigError(HpcDasgdError, ValueError):
    """The command line, a setting or an input file is wrong (exit status 2).

    The message is one line: the key or file, the rule, the value. Line breaks in what it quotes become
    spaces.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.splitlines()))


class WindowError(HpcDasgdError, RuntimeError):
    """An MPI window cannot be used as asked: unsupported memory model, freed."""


class CheckpointError(HpcDasgdError):
    """A checkpoint file is damaged, not whole, or of another run."""


class TrainingError(HpcDasgdError, RuntimeError):
    """Training cannot go on: a loss or gradient is not finite (exit status 1)."""


class LeftBehindError(HpcDasgdError, RuntimeError):
    """The other ranks took this one for dead, and ended the run without it (exit status 1, of this rank alone)."""


class ReplayError(HpcDasgdError):
    """A run and its replay do not agree."""
