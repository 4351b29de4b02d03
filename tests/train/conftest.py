"""Small recorded datasets and quick run options for the tests of the training layer."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from qcse.cli.main import main
from qcse.collect.recording import Recording
from qcse.data.d4rl import write_d4rl
from qcse.envs.make import make_env
from qcse.envs.robotics import register_robotics

# Networks and batches that make a step take about a millisecond; nothing that changes what is tested.
QUICK = [
    "--net.policy-hidden", "16", "16", "--net.critic-hidden", "16", "16", "--batch-size", "32", "--cql.actions", "2",
    "--bonus.k", "5", "--eval-episodes", "2", "--threads", "1", "--device", "cpu",
]  # fmt: skip


def record_random_policy(env_id: str, rows: int, path: Path, seed: int = 0) -> Path:
    env = Recording(make_env(env_id))
    env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    for _ in range(rows):
        action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()
    write_d4rl(path, env.arrays(), {"env_id": env_id, "algorithm": "uniform random actions"}, compression=None)
    return path


@pytest.fixture(scope="session")
def hopper_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_random_policy("Hopper-v5", 600, tmp_path_factory.mktemp("data") / "hopper.hdf5")


@pytest.fixture(scope="session")
def ant_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_random_policy("Ant-v5", 400, tmp_path_factory.mktemp("data") / "ant.hdf5")


@pytest.fixture
def qcse(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line as a user would, in a folder of its own."""

    def run(*words: object, check: bool = False) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(qcse_command(*words), cwd=tmp_path, capture_output=True, text=True, timeout=300)
        if check:
            assert result.returncode == 0, result.stdout + result.stderr
        return result

    return run


@pytest.fixture
def qcse_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """The command line in this process, in a folder of its own: exit code, and what it said."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object, check: bool = False) -> tuple[int, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        said = "".join(capsys.readouterr())
        assert code == 0 or not check, said
        return code, said

    return run


def qcse_command(*words: object) -> Sequence[str]:
    return [sys.executable, "-P", "-m", "qcse", *map(str, words)]


def shared_data(name: str) -> Path:
    """An independent dataset from QCSE_SHARED_DATA, or ../shared/data beside the checkout; skips where it is absent."""
    named = os.environ.get("QCSE_SHARED_DATA")
    path = (Path(named) if named else Path(__file__).parents[3] / "shared" / "data") / name
    if not path.is_file():
        pytest.skip(f"independent data absent: no {path} (QCSE_SHARED_DATA names the folder)")
    return path


def d4rl_checkout() -> Path:
    """The folder of a checkout of D4RL; skips where none is named."""
    folder = os.environ.get("QCSE_D4RL_CHECKOUT")
    if not folder:
        pytest.skip("compares with D4RL's sources: set QCSE_D4RL_CHECKOUT to the folder of a checkout of D4RL")
    return Path(folder)


def needs_robotics() -> None:
    """Register Gymnasium-Robotics's environments, or skip the test where they are not installed."""
    try:
        register_robotics()
    except ImportError:
        pytest.skip("needs Gymnasium-Robotics: pip install 'qcse[maze]'")
