"""Error types; all other rooms raise them, and the command line turns them into exit statuses."""


class HpcDasgdError(Exception):
    """Base class of all errors that this package raises on purpose.

    Attributes
    ----------
    on_all_ranks : bool
        True if every rank of the launch raises this error. One message and an orderly exit are then enough; an error
        on only some ranks must also end the other ranks, which may be waiting for them. Pickling keeps the value.
    """

    on_all_ranks: bool = False


class ConfigError(HpcDasgdError, ValueError):
    """The command line, a setting or an input file is wrong (exit status 2).

    The message is one line: the key or file, the rule and the value. Line breaks in `message` are replaced by spaces.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.splitlines()))


class WindowError(HpcDasgdError, RuntimeError):
    """An MPI window cannot be used as requested: its memory model is not supported, or it was freed."""


class CheckpointError(HpcDasgdError):
    """A checkpoint file is damaged, incomplete, or belongs to another run."""


class TrainingError(HpcDasgdError, RuntimeError):
    """Training cannot continue, for example because a loss or a gradient is not finite (exit status 1)."""


class LeftBehindError(HpcDasgdError, RuntimeError):
    """The other ranks treated this rank as dead and ended the run without it (exit status 1 of this rank only)."""


class ReplayError(HpcDasgdError):
    """A run and its replay do not agree."""
