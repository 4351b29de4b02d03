"""Recordings: whatever ends one nothing is lost, and one that goes on equals one that never stopped, to the bit."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest
from support import holder, qcse_command

from qcse.collect.recording import Recording, stored_rows
from qcse.data.d4rl import load_d4rl
from qcse.envs.mazes import PointMazeEnv
from qcse.runs import checkpoint

Here = Callable[..., tuple[int, str]]
SAC = ["collect", "--env", "Hopper-v5", "--steps", 150, "--learning-starts", 20, "--eval-every", 60, "--hidden", 16]
SAC += [16, "--threads", 1, "--policy-rows", 70]
MAZE = ["collect", "--env", "qcse/pointmaze-umaze-v0", "--rows", 900]


def content(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return found


def same(a: Path, b: Path) -> None:
    first, second = content(a), content(b)
    assert first.keys() == second.keys() and len(first) > 8
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


def failing_at(monkeypatch: pytest.MonkeyPatch, env: str, step: int) -> Callable[[], None]:
    """Let the environment fail at a step of this process's; returns what mends it."""
    original, taken = _class(env).step, [0]

    def fails(self: Any, action: Any) -> Any:
        taken[0] += 1
        if taken[0] == step:
            raise RuntimeError("simulator crashed")
        return original(self, action)

    monkeypatch.setattr(_class(env), "step", fails)
    return lambda: monkeypatch.setattr(_class(env), "step", original)


def _class(env: str) -> type:
    if env.startswith("qcse/"):
        return PointMazeEnv
    from gymnasium.envs.mujoco.hopper_v5 import HopperEnv

    return HopperEnv


@pytest.mark.parametrize(
    ("words", "names", "step"),
    [
        (SAC, ("hopper-replay.hdf5", "hopper-policy.hdf5"), 200),  # 13 of the rehearsal, evaluations between
        (MAZE, ("pointmaze-umaze.hdf5",), 700),
    ],
)
def test_a_recording_that_failed_goes_on_to_the_same_bits(
    words: list[Any], names: tuple[str, ...], step: int, tmp_path: Path, qcse_here: Here, monkeypatch
) -> None:
    monkeypatch.setattr("qcse.collect.maze.FLUSH_ROWS", 100)
    qcse_here(*words, "--out", "whole", check=True)
    assert {path.name for path in (tmp_path / "whole").iterdir()} == set(names)
    mend = failing_at(monkeypatch, words[2], step)
    code, said = qcse_here(*words, "--out", "broken")
    assert code == 1 and "simulator crashed" in said and "--finish" in said and "Traceback" not in said
    (folder,) = (tmp_path / "broken").iterdir()
    rows = sum(stored_rows(part) for part in folder.iterdir() if part.name in ("replay", "rows"))
    assert rows > 20 and str(Path("broken") / folder.name) in said
    mend()

    code, said = qcse_here(*words, "--out", "broken")
    assert code == 1 and "is an unfinished recording" in said
    code, said = qcse_here(*words[:3], words[3], 99, "--resume", folder, "--out", "broken")
    assert code == 1 and f"was started with {words[3].strip('-')}" in said
    qcse_here("collect", "--resume", "broken", check=True)
    assert {path.name for path in (tmp_path / "broken").iterdir()} == set(names)
    for name in names:
        same(tmp_path / "whole" / name, tmp_path / "broken" / name)
    code, said = qcse_here(*words, "--out", "whole")
    assert code == 1 and "exists already" in said and names[0] in said
    code, said = qcse_here("collect", "--resume", "whole")
    assert code == 1 and "has none" in said


def test_what_there_is_becomes_a_dataset(tmp_path: Path, qcse_here: Here, monkeypatch) -> None:
    mend = failing_at(monkeypatch, "Hopper-v5", 1)
    assert qcse_here(*SAC, "--out", "d")[0] == 1
    code, said = qcse_here("collect", "--resume", "d", "--finish")
    assert code == 1 and "nothing is recorded" in said
    mend()
    failing_at(monkeypatch, "Hopper-v5", 300)
    assert qcse_here("collect", "--resume", "d")[0] == 1
    rows = stored_rows(tmp_path / "d" / "hopper.collecting" / "replay")
    qcse_here("collect", "--resume", "d", "--finish", check=True)
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["hopper-replay.hdf5"]
    assert len(content(tmp_path / "d" / "hopper-replay.hdf5")["rewards"]) == rows > 0
    assert load_d4rl(tmp_path / "d" / "hopper-replay.hdf5").metadata["action_units"] == "unit"
    code, said = qcse_here(*SAC, "--out", "e", "--finish")
    assert code == 1 and "got no --resume" in said and not (tmp_path / "e").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP, signal.SIGINT])
def test_killed_and_resumed(number: int, tmp_path: Path, qcse) -> None:
    words = ["collect", "--env", "Hopper-v5", "--learning-starts", 20, "--eval-every", 100, "--hidden", 8, 8]
    words += ["--threads", 1, "--policy-rows", 0, "--steps", 600]
    process = subprocess.Popen(qcse_command(*words, "--out", "d"), cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while stored_rows(tmp_path / "d" / "hopper.collecting" / "replay") < 200:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    assert number == signal.SIGKILL or "collect --resume" in errors
    qcse("collect", "--resume", "d", check=True)
    qcse(*words, "--out", "whole", check=True)
    same(tmp_path / "d" / "hopper-replay.hdf5", tmp_path / "whole" / "hopper-replay.hdf5")


def test_one_recording_has_one_process(tmp_path: Path, qcse_here: Here) -> None:
    folder = tmp_path / "d" / "hopper.collecting"
    other = holder(folder)
    try:
        code, said = qcse_here(*SAC, "--out", "d")
        assert code == 1 and f"is in use by process {other.pid}" in said
    finally:
        other.kill()
        other.wait()


def test_a_place_that_cannot_be_written_is_known_before_work_begins(
    tmp_path: Path, qcse_here: Here, monkeypatch
) -> None:
    def refuses(self: Path, *args: object) -> int:
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "write_text", refuses)
    monkeypatch.setattr("qcse.collect.sac.Trainer", None)
    code, said = qcse_here(*SAC, "--out", "d")
    assert code == 1 and "hopper-replay.hdf5: Read-only file system" in said


def test_a_failed_write_keeps_the_rows(tmp_path: Path, qcse_here: Here, monkeypatch) -> None:
    def full(path: Path, *args: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("qcse.collect.maze.write_d4rl", full)
        code, said = qcse_here(*MAZE, "--out", "d")
    assert code == 1 and "pointmaze-umaze.hdf5: No space left on device; what was recorded is in" in said
    qcse_here("collect", "--resume", "d", check=True)
    assert len(content(tmp_path / "d" / "pointmaze-umaze.hdf5")["rewards"]) == 900


def test_rows_that_are_missing_or_damaged_are_named(tmp_path: Path, qcse_here: Here, monkeypatch) -> None:
    monkeypatch.setattr("qcse.collect.maze.FLUSH_ROWS", 100)
    failing_at(monkeypatch, MAZE[2], 700)
    assert qcse_here(*MAZE, "--out", "d")[0] == 1
    parts = sorted((tmp_path / "d").glob("*/rows/*.pt"))
    assert len(parts) >= 3
    good = parts[1].read_bytes()
    parts[1].write_bytes(good[:-200] + bytes(100) + good[-100:])
    code, said = qcse_here("collect", "--resume", "d", "--finish")
    assert code == 1 and f"{parts[1].name} is damaged" in said
    parts[1].unlink()
    code, said = qcse_here("collect", "--resume", "d", "--finish")
    assert code == 1 and "rows are missing" in said and not (tmp_path / "d" / "pointmaze-umaze.hdf5").exists()


def test_rows_are_copies(tmp_path: Path) -> None:
    class Reusing(gym.Env[Any, Any]):
        action_space = gym.spaces.Box(-1, 1, (1,))
        observation_space = gym.spaces.Box(-np.inf, np.inf, (2,))

        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            self.state = np.zeros(2)
            return self.state, {}

        def step(self, action: Any) -> Any:
            self.state += action
            return self.state, 0.0, False, False, {}

    env = Recording(Reusing(), tmp_path / "rows")
    env.reset()
    action = np.zeros(1)
    for row in range(5):
        action[:] = row
        env.step(action)
        if row == 2:
            env.flush()
    arrays = env.arrays()
    assert arrays["observations"][:, 0].tolist() == [0, 0, 1, 3, 6] and arrays["actions"][:, 0].tolist() == [*range(5)]
    assert arrays["next_observations"][:, 0].tolist() == [0, 1, 3, 6, 10]
    assert len(env) == 5 and checkpoint.load(tmp_path / "rows" / f"{0:012d}.pt")["first"] == 0


def test_a_file_system_without_locks_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "nolock.c").write_text(
        "#include <errno.h>\nint flock(int file, int how) { errno = ENOLCK; return -1; }\n"
        "int lockf(int file, int how, long size) { errno = ENOLCK; return -1; }\n"
    )
    library = tmp_path / "nolock.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "nolock.c"], check=True)
    env = os.environ | {"LD_PRELOAD": str(library)}
    first = subprocess.Popen(
        qcse_command(*MAZE[:3], "--rows", 10**6, "--out", "d"), cwd=tmp_path, env=env, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("d/*.collecting/collect.json")):
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.05)
    second = subprocess.run(qcse_command(*MAZE, "--out", "d"), cwd=tmp_path, env=env, capture_output=True, text=True)
    first.kill()
    first.wait()
    assert second.returncode == 1 and f"is in use by process {first.pid}" in second.stderr
    done = subprocess.run(qcse_command(*MAZE, "--out", "e"), cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
