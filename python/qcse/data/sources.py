"""Where datasets come from. A source is a class with the methods of `Source`, in its own file, named in SOURCES."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import Protocol

from .d4rl import D4rlFiles
from .minari import MinariDatasets
from .transitions import Transitions


class Source(Protocol):
    """A kind of dataset, known by how its names begin.

    Attributes:
        scheme: with what its names begin, such as "minari:".
        unit_actions: whether what it loads has actions in [-1, 1], whatever the environment's bounds are.
        keeps_states: whether it keeps states of a simulator (infos/qpos, infos/qvel).
    """

    scheme: str
    unit_actions: bool
    keeps_states: bool

    def load(
        self, name: str, progress: bool = True, like_d4rl: bool = False, limit: int | None = None, finite: bool = True
    ) -> Transitions:
        """Read a dataset; `d4rl.load_d4rl` has the arguments.

        Raises:
            DatasetError: there is none of that name, it is damaged, or it is not what was asked for.
        """
        ...

    def environment(self, name: str) -> str | None:
        """The environment that a name stands for by itself, before anything is read; None: none."""
        ...

    def short_name(self, name: str) -> str:
        """What tells the datasets of one environment apart, in the names of runs."""
        ...

    def absolute(self, name: str) -> str:
        """The name from wherever one stands; ConfigError where there is no such dataset."""
        ...

    def flags(self, name: str) -> dict[str, int]:
        """How often each flag is set, where flags are stored."""
        ...

    def reserved(self, name: str) -> AbstractContextManager[None]:
        """Be the only process that writes a dataset of this name; DatasetError where there is one already."""
        ...

    def write(self, name: str, data: Transitions, env_id: str | None, recorded: str | None) -> str:
        """Write a dataset; returns what was written, for people.

        Args:
            env_id: the environment to note down, as the user named it.
            recorded: the one that the data name themselves, where the user named none.
        """
        ...


SOURCES: tuple[Source, ...] = (MinariDatasets(), D4rlFiles())  # the last one's names begin with anything


def source_of(dataset: str | os.PathLike[str]) -> Source:
    """The source that a dataset's name belongs to."""
    name = os.fspath(dataset)
    return next(source for source in SOURCES if name.startswith(source.scheme))


def load_dataset(
    dataset: str | os.PathLike[str], progress: bool = True, like_d4rl: bool = False, limit: int | None = None
) -> Transitions:
    """Read a dataset of any source: a file in D4RL's layout (`d4rl.load_d4rl`), "minari:ID" (`minari.load_minari`)."""
    return source_of(dataset).load(os.fspath(dataset), progress, like_d4rl, limit)
