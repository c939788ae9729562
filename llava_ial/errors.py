"""Errors that a user can mend, and how every command of the project ends.

A command exits 0 when it is done, 2 with one line on stderr when the user can mend what is wrong, 130 on Ctrl-C.
Anything else is a defect of this project and keeps its traceback.
"""

import os
import sys
from collections.abc import Callable


class UserError(ValueError):
    """Something the user can mend. The message is one line: field, value received, what is allowed or what to do."""


def run_command(main: Callable[[], None]) -> None:
    """Runs ``main`` and leaves the process with the exit code described in the module's docstring."""
    try:
        main()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # somebody reads our output with `head` and has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        print("interrupted: what was finished is kept, the same command continues it", file=sys.stderr)
        sys.exit(130)
