"""What every command does with errors: one line for a person, and an exit code for a shell."""

from __future__ import annotations

import os
from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from mrpo.errors import MRPOError, NothingToDoError, UserError

USER_ERROR = 2  # the user can mend it
FAILED = 1
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
PREEMPTED = 143  # 128 + SIGTERM: a scheduler took the machine back, and may start the same command again


def exit_code(command: Callable[[], int]) -> int:
    """Run a command; its exit code, or that of its error, which is printed to standard error in one line."""
    try:
        return command()
    except NothingToDoError as done:
        Console(stderr=True, highlight=False).print(Text(str(done)), soft_wrap=True)
        return 0
    except UserError as error:
        say_error(error)
        return USER_ERROR
    except MRPOError as error:
        say_error(error)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


def say_error(error: MRPOError) -> None:
    """Print an error to standard error."""
    message = Text.assemble(("error: ", "bold red"), str(error))
    Console(stderr=True, highlight=False).print(message, soft_wrap=True)


def quiet_libraries() -> None:
    """Settings that libraries read from the environment when they are imported, here and in every actor."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's warning about a future default
