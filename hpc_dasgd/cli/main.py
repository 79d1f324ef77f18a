"""The entry point of the program ``hpc-dasgd``.

Exit status: 0 done; 1 failed while running; 2 the command line, the settings or an input file are wrong; 75 `train` was
stopped by a signal and has written checkpoints; 130 `watch` was ended by Ctrl-C.
"""

import os
import sys
import traceback

from hpc_dasgd.cli.arguments import make_parser
from hpc_dasgd.cli.status import DONE, FAILED, PROGRAM, WRONG, UsageError
from hpc_dasgd.errors import ConfigError, HpcDasgdError, LeftBehindError
from hpc_dasgd.runtime import launcher, mpi


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status. A rank that fails ends the whole job.

    Parameters
    ----------
    arguments : list of str, optional
        The command line without the name of the program; by default that of the process.
    """
    launcher.set_environment_defaults()
    try:
        options = make_parser(PROGRAM).parse_args(arguments)
        status: int | None = options.run_command(options)
        sys.stdout.flush()
        return DONE if status is None else status
    except ConfigError as error:
        if mpi.is_single_rank() or error.on_all_ranks:
            if mpi.process_rank() == 0:
                print(f"{PROGRAM}: {error}", file=sys.stderr, flush=True)
            if isinstance(error, UsageError):
                mpi.barrier_before_exit()
            return WRONG
        return _fail(f"error: {error}")
    except LeftBehindError as error:
        # The other ranks have ended, or will end soon; they must not be aborted.
        _print_error(f"error: {error}")
        return FAILED
    except HpcDasgdError as error:
        return _fail(f"error: {error}")
    except BrokenPipeError:
        if mpi.is_mpi_running():
            return _fail(traceback.format_exc().rstrip())
        # The reader of standard output has ended (`| head`). This is not an error, but nothing more can be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except KeyboardInterrupt:
        return _fail("interrupted")
    except SystemExit:
        if mpi.is_single_rank():
            raise
        # User code called `sys.exit` on this rank: `MPI_Finalize` would wait for the other ranks forever.
        return _fail(traceback.format_exc().rstrip())
    except Exception:
        return _fail(traceback.format_exc().rstrip())


def _fail(message: str) -> int:
    """Print an error message and abort all ranks, since the others would wait for this one forever."""
    try:
        _print_error(message)
    finally:
        if not mpi.is_single_rank():
            mpi.abort(FAILED)
    return FAILED


def _print_error(message: str) -> None:
    """Print a message on standard error with the name of the program and the number of this rank."""
    print(f"{PROGRAM}: {mpi.rank_prefix()}{message}", file=sys.stderr, flush=True)
