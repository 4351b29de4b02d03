"""The command line: which command is meant, and what becomes of its errors.

It must say what is missing, so it imports nothing that can be, and nothing that takes long.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from ..errors import ConfigError, QcseError, printable
from .doctor import PACKAGES

SUMMARY = """usage: qcse COMMAND [OPTIONS]

Offline-to-online reinforcement learning with a Q-conditioned state entropy bonus.

commands:
  train     pre-train on a dataset, fine-tune online; --resume continues a run
  eval      evaluate the policy of a run
  report    compare runs: table, learning curves (PNG), one HTML page
  status    which runs run, are complete, stopped, failed or waiting; --watch SECONDS
  data      tasks and datasets: list, info, check, convert, fetch
  sweep     algorithms x bonuses x tasks x grid x seeds, resumable, with a report
  collect   write datasets in D4RL's layout: train SAC, or lead a body through a maze
  demo      a small offline-to-online run with and without the bonus, and its report
  bench     updates per second of the training step, side by side with CORL's
  doctor    what is installed, which kernels are built, what is missing

`qcse COMMAND --help` lists a command's options."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(SUMMARY)
        return 0 if args else 2
    if args[0] == "--version":
        from .. import __version__

        print(f"qcse {__version__}")
        return 0
    if args[0] not in COMMANDS:
        print(f"qcse: unknown command {args[0]!r}; expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        _refuse_empty_words(args)
        code = command_of(args[0])(args[1:])
        sys.stdout.flush()
        return code
    except QcseError as error:
        message = str(error)
    except ModuleNotFoundError as error:
        if error.name not in PACKAGES:
            raise
        message = f"the package {error.name} is not installed; pip install 'qcse[train]'. `qcse doctor` lists all"
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno in BUGS and error.filename is None:
            raise
        message = _told(error)
    except MemoryError:
        message = OUT_OF_MEMORY
    except RuntimeError as error:
        if not any(words in str(error) for words in ("can't allocate memory", "out of memory")):  # torch's
            raise
        message = OUT_OF_MEMORY
    except KeyboardInterrupt:
        print(f"qcse {args[0]}: interrupted", file=sys.stderr)
        return 130
    print(f"qcse {args[0]}:", "\n".join(map(printable, message.split("\n"))), file=sys.stderr)
    return 1


OUT_OF_MEMORY = (
    "memory is exhausted; expected less of it to be needed: a smaller --online-buffer, --batch-size, fewer seeds, or a "
    "smaller dataset"
)

# Errors of the system that no user can cause or mend, where no file is named.
BUGS = (errno.EBADF, errno.EFAULT, errno.EINVAL, errno.ENOTTY, errno.ESPIPE, errno.ECHILD)
REMEDIES = {
    errno.ENOSPC: "make room, or name another folder",
    errno.EDQUOT: "make room, or name another folder",
    errno.EROFS: "name a folder that can be written",
    errno.EACCES: "name another, or change its permissions",
    errno.EPERM: "name another, or change its permissions",
}


def _refuse_empty_words(args: Sequence[str]) -> None:
    """An empty word is a shell's variable that is not set. As a path it would be the folder we stand in."""
    for before, word in zip(["", *args], args, strict=False):
        if word == "" or (word.startswith("--") and word.endswith("=")):
            option = word.removesuffix("=") or (before if before.startswith("-") else "arguments")
            raise ConfigError(f"{option}: got an empty name, expected some text (is a variable of the shell not set?)")


def _told(error: OSError) -> str:
    """An error of the system in a line: the file, or what was being done, the reason, and what to do."""
    if error.filename is not None:
        where = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else str(error.filename)
    else:
        codes = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
        package = Path(__file__).parents[1]
        own = [code for code in codes if package in Path(code.co_filename).parents][1:]  # without main
        where = f"{Path(own[-1].co_filename).stem}, {own[-1].co_name}" if own else "a file"
    reason = error.strerror or (str(error) or type(error).__name__).splitlines()[0]
    remedy = REMEDIES.get(error.errno or 0)
    return f"{where}: {reason}" + (f"; {remedy}" if remedy else "")


# Command -> module and function; what a command needs is imported when it is asked for.
COMMANDS = {
    "train": ("train", "train"),
    "eval": ("commands", "evaluate"),
    "report": ("commands", "report"),
    "status": ("status", "status"),
    "data": ("data", "data"),
    "sweep": ("commands", "sweep"),
    "collect": ("commands", "collect"),
    "demo": ("commands", "demo"),
    "bench": ("commands", "bench"),
    "doctor": ("doctor", "doctor"),
}


def command_of(name: str) -> Callable[[list[str]], int]:
    module, function = COMMANDS[name]
    found: Callable[[list[str]], int] = getattr(import_module(f"{__package__}.{module}"), function)
    return found
