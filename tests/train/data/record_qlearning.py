"""Record what D4RL's own `qlearning_dataset` makes of small generated files, as test vectors of numbers.

    python tests/train/data/record_qlearning.py CHECKOUT > tests/train/data/qlearning_vectors.json

CHECKOUT is a checkout of D4RL. Its package cannot be imported today; the one function is executed by itself.
"""

from __future__ import annotations

import ast
import collections
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

LIMIT = 4  # of the environment that D4RL counts steps with where a file has no timeouts

# name -> (terminal rows, timeout rows or None for no such array, next_observations stored?, arrays of shape (N, 1)?)
CASES: dict[str, tuple[list[int], list[int] | None, bool, bool]] = {
    "terminals": ([3, 8], [], True, False),
    "timeouts": ([], [3, 7], True, False),
    "terminals and timeouts": ([2, 9], [5], True, False),
    "both in one row": ([4], [4, 8], True, False),
    "columns of one": ([3], [7], True, True),
    "no next_observations": ([3, 8], [5], False, False),
    "no next_observations, timeouts alone": ([], [2, 6], False, False),
    "neither, and no next_observations": ([], [], False, False),
    "no timeouts array": ([2], None, True, False),
}
ROWS = 11


def arrays(name: str) -> dict[str, np.ndarray]:
    """The generated file of a case. Behind each end the true next state is 100 more than the state: no row's state."""
    terminals, timeouts, stored, column = CASES[name]
    observations = np.arange(2 * ROWS, dtype=np.float32).reshape(ROWS, 2)
    ended = np.isin(np.arange(ROWS), [*terminals, *(timeouts or []), ROWS - 1])
    if timeouts is None:  # D4RL's count of steps, from each end on
        step = 0
        for row in range(ROWS):
            step += 1
            ended[row] |= step == LIMIT
            step = 0 if ended[row] else step
    following = np.where(ended[:, None], observations + 100, np.roll(observations, -1, axis=0)).astype(np.float32)
    out = {
        "observations": observations,
        "actions": np.linspace(-1, 1, ROWS, dtype=np.float32).reshape(ROWS, 1),
        "rewards": np.arange(ROWS, dtype=np.float32),
        "terminals": np.isin(np.arange(ROWS), terminals),
    }
    if timeouts is not None:
        out["timeouts"] = np.isin(np.arange(ROWS), timeouts)
    if stored:
        out["next_observations"] = following
    if column:
        out |= {key: out[key].reshape(-1, 1) for key in ("rewards", "terminals", "timeouts")}
    return out


def qlearning_dataset(checkout: Path) -> Any:
    """D4RL's function, taken out of d4rl/__init__.py."""
    tree = ast.parse((checkout / "d4rl" / "__init__.py").read_text())
    body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "qlearning_dataset"]
    names: dict[str, Any] = {"np": np, "collections": collections}
    exec(compile(ast.Module(body, []), "d4rl", "exec"), names)
    return names["qlearning_dataset"]


def record(checkout: Path) -> dict[str, dict[str, Any]]:
    """Case -> what the function returns, as lists."""
    function, out = qlearning_dataset(checkout), {}
    for name in CASES:
        given = {k: v.reshape(-1) if v.shape == (ROWS, 1) and k != "actions" else v for k, v in arrays(name).items()}
        made = function(SimpleNamespace(_max_episode_steps=LIMIT), dataset=given)  # D4RL flattens (N, 1) on reading
        out[name] = {key: np.asarray(value, np.float64).tolist() for key, value in made.items()}
    return out


if __name__ == "__main__":
    print(json.dumps(record(Path(sys.argv[1]))))
