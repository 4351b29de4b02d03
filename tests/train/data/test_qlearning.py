"""Transitions against D4RL's own `qlearning_dataset`: equal where asked for, and different only as documented."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import record_qlearning
from record_qlearning import CASES, LIMIT, ROWS, arrays
from support import d4rl_checkout

from qcse.data.d4rl import load_d4rl
from qcse.errors import DatasetError

VECTORS = json.loads((Path(__file__).parent / "qlearning_vectors.json").read_text())


def stored(name: str, folder: Path) -> Path:
    with h5py.File(folder / "a.hdf5", "w") as file:
        for key, values in arrays(name).items():
            file[key] = values
    return folder / "a.hdf5"


def test_vectors_are_those_of_d4rl() -> None:
    assert record_qlearning.record(d4rl_checkout()) == VECTORS


@pytest.mark.parametrize("name", CASES)
def test_transitions_equal_d4rls_where_asked_for(name: str, tmp_path: Path) -> None:
    data, want = load_d4rl(stored(name, tmp_path), like_d4rl=True, limit=LIMIT), VECTORS[name]
    np.testing.assert_array_equal(data.observations, want["observations"])
    np.testing.assert_array_equal(data.actions, np.float32(want["actions"]))
    np.testing.assert_array_equal(data.rewards, want["rewards"])
    np.testing.assert_array_equal(data.next_observations, want["next_observations"])
    np.testing.assert_array_equal(data.bootstrap, 1.0 - np.array(want["terminals"]))
    assert data.episode_end[-1] and data.episode_end[data.bootstrap == 0].all()
    # a Monte-Carlo return never runs over a row that was dropped: rewards are the row numbers
    gaps = np.diff(data.rewards) != 1
    assert data.episode_end[:-1][gaps].all()


@pytest.mark.parametrize("name", CASES)
def test_the_differences_are_those_documented(name: str, tmp_path: Path) -> None:
    terminals, timeouts, known, _ = CASES[name]
    data, theirs = load_d4rl(stored(name, tmp_path)), VECTORS[name]
    ours, dropped = set(data.rewards.astype(int)), set(range(ROWS)) - {int(r) for r in theirs["rewards"]}
    if timeouts is not None:
        assert dropped == {*timeouts, ROWS - 1}
    if known:
        assert ours == set(range(ROWS))  # (1), (2), (3): kept, with their true next states
        ends = data.episode_end & (data.bootstrap == 1)
        np.testing.assert_array_equal(data.next_observations[ends], data.observations[ends] + 100)
        assert (data.bootstrap == 0).sum() == len(terminals)
    else:
        assert set(range(ROWS)) - ours == dropped - set(terminals)  # no next state is known there
    # where both have a row, it is the same but for the next state at an end
    for i, row in enumerate(int(r) for r in theirs["rewards"]):
        j = int(np.flatnonzero(data.rewards == row)[0])
        assert data.bootstrap[j] == 1 - theirs["terminals"][i]
        if not data.episode_end[j]:
            np.testing.assert_array_equal(data.next_observations[j], theirs["next_observations"][i])


def test_counting_needs_a_limit(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"has no timeouts.*time limit"):
        load_d4rl(stored("no timeouts array", tmp_path), like_d4rl=True)
