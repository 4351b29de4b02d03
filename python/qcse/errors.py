"""Errors that a user can act on; the command line prints their message alone, without a traceback."""


class QcseError(ValueError):
    """Something the user asked for cannot be done. The message says what was got, what was expected, what to do."""


class ConfigError(QcseError):
    """A configuration value, or a combination of them, is not valid."""


class CheckpointError(QcseError):
    """A run folder or checkpoint cannot be used."""


class DatasetError(QcseError):
    """A dataset cannot be read, written or used."""


class EnvError(QcseError):
    """An environment is unknown, of an unsuitable kind, or does not fit the data or the stored run."""


class TrustError(QcseError):
    """Data or a run folder of unknown origin names code, which is not executed."""


class NonFiniteLossError(QcseError):
    """A loss became NaN or infinite; the batch it happened on has been saved."""


class InUseError(QcseError):
    """Another process writes the same folder or file."""


class WriteError(QcseError):
    """A file could not be written: the reason, which names it, and how to go on."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"{reason}; {advice}")
        self.reason = reason


def printable(text: str) -> str:
    """The text with control characters written out: a name from a file must not steer the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
