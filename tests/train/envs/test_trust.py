"""Whose names are imported: the command line's and one's own runs', not those of data and of received run folders."""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from support import QUICK

from qcse.envs import trust
from qcse.errors import TrustError

MODULE = """
import pathlib
import gymnasium as gym
import numpy as np
pathlib.Path({marker!r}).touch()
class Ball(gym.Env):
    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.normal(size=3).astype(np.float32)
        return self.x.copy(), {{}}
    def step(self, action):
        self.x = (0.9 * self.x).astype(np.float32)
        return self.x.copy(), -float((self.x ** 2).sum()), False, False, {{}}
gym.register("Ball-v0", entry_point="ball_module:Ball", max_episode_steps=10)
"""
STEPS = [
    "--offline-steps",
    0,
    "--online-steps",
    8,
    "--learning-starts",
    2,
    "--random-steps",
    2,
    "--algo",
    "sac",
    *QUICK,
]


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A user without a key, who trusts nothing yet, and a module that leaves a file where it is imported."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(trust, "_all", False)
    monkeypatch.setattr(trust, "_named", set())
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "ball_module.py").write_text(MODULE.format(marker=str(tmp_path / "imported")))
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    yield
    sys.modules.pop("ball_module", None)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process."""
    sys.modules.pop("ball_module", None)
    monkeypatch.setattr(trust, "_all", False)
    monkeypatch.setattr(trust, "_named", set())


def test_ones_own_run_goes_on_and_somebody_elses_does_not(
    tmp_path: Path, qcse_here, monkeypatch: pytest.MonkeyPatch
) -> None:
    qcse_here("train", "--env", "ball_module:Ball-v0", "--out", "run", *STEPS, check=True)
    key = tmp_path / "config" / "qcse" / "key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600 and key.stat().st_size == trust.KEY_BYTES
    assert [path.name for path in key.parent.iterdir()] == ["key"]
    forget(monkeypatch)
    assert qcse_here("train", "--resume", "run")[0] == 0
    forget(monkeypatch)
    assert qcse_here("eval", "run", "--episodes", 1)[0] == 0

    # The same folder comes to another user, whose key is another.
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "other"))
    trust.mark_run(tmp_path, "some:Thing-v0")  # which makes that key
    (tmp_path / "imported").unlink()
    for command in (["train", "--resume", "run"], ["eval", "run", "--episodes", 1]):
        forget(monkeypatch)
        code, said = qcse_here(*command)
        assert code == 1 and "'ball_module:Ball-v0', which would import the module 'ball_module'" in said
        assert "--env ball_module:Ball-v0" in said and "--trust-env-spec" in said
        assert not (tmp_path / "imported").exists()
    forget(monkeypatch)
    assert qcse_here("train", "--resume", "run", "--env", "ball_module:Ball-v0")[0] == 0
    forget(monkeypatch)
    assert qcse_here("eval", "run", "--episodes", 1, "--trust-env-spec")[0] == 0
    assert "trust" not in (tmp_path / "run" / "config.json").read_text()
    forget(monkeypatch)
    assert qcse_here("eval", "run", "--episodes", 1)[0] == 1  # once is once


def test_a_mark_is_good_for_its_environment_only(tmp_path: Path) -> None:
    trust.mark_run(tmp_path, "mine:Thing-v0")
    trust.check_run(tmp_path, "mine:Thing-v0")
    trust.check_run(tmp_path, "Hopper-v5")
    trust.check_run(tmp_path, "minari:any/set-v0")  # which is looked at when it is opened
    with pytest.raises(TrustError, match=r"would import the module 'os'"):
        trust.check_run(tmp_path, "os:system")
    for content in (b"", b"\xff" * 64, b"0" * 64, b"x" * 10_000):
        (tmp_path / trust.MARK).write_bytes(content)
        with pytest.raises(TrustError):
            trust.check_run(tmp_path, "mine:Thing-v0")


@pytest.mark.parametrize("harm", ["readable by others", "cut short", "a folder"])
def test_a_key_that_proves_nothing_is_not_used(harm: str, tmp_path: Path) -> None:
    trust.mark_run(tmp_path, "mine:Thing-v0")
    key = tmp_path / "config" / "qcse" / "key"
    if harm == "readable by others":
        key.chmod(0o644)
    elif harm == "cut short":
        key.write_bytes(b"short")
    else:
        key.unlink()
        key.mkdir()
    with pytest.raises(TrustError):
        trust.check_run(tmp_path, "mine:Thing-v0")


def test_without_a_home_that_can_be_written_runs_go_on_unmarked(
    tmp_path: Path, qcse_here, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    qcse_here("train", "--env", "ball_module:Ball-v0", "--out", "run", *STEPS, check=True)
    assert not (tmp_path / "run" / trust.MARK).exists()
    forget(monkeypatch)
    assert qcse_here("train", "--resume", "run")[0] == 1
    forget(monkeypatch)
    assert qcse_here("train", "--resume", "run", "--env", "ball_module:Ball-v0")[0] == 0
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home folder")))
    trust.mark_run(tmp_path, "mine:Thing-v0")
    assert not (tmp_path / trust.MARK).exists()


def test_a_data_files_own_environment_is_not_imported(
    tmp_path: Path, qcse_here, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "data.hdf5", "w") as file:
        file["observations"], file["next_observations"] = rng.normal(size=(2, 40, 3)).astype("f4")
        file["actions"], file["rewards"] = rng.uniform(-1, 1, (40, 2)).astype("f4"), rng.normal(size=40).astype("f4")
        file["terminals"], file["timeouts"] = np.zeros(40, bool), np.arange(40) % 10 == 9
        file["infos/qpos"] = file["infos/qvel"] = rng.normal(size=(40, 3))
        file.attrs["env_id"] = "ball_module:Ball-v0"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    assert qcse_here("data", "info", "data.hdf5")[0] == 0
    for command in (["check", "data.hdf5"], ["convert", "data.hdf5", "minari:ball/mine-v0"]):
        code, said = qcse_here("data", *command)
        assert code == 1 and "data.hdf5 names 'ball_module:Ball-v0', which would import" in said and "--env" in said
    assert not (tmp_path / "imported").exists()
    code, said = qcse_here("data", "check", "data.hdf5", "--trust-env-spec")
    assert "cannot be put to a stored state" in said and (tmp_path / "imported").exists()
    forget(monkeypatch)
    assert qcse_here("data", "convert", "data.hdf5", "minari:ball/mine-v0", "--env", "ball_module:Ball-v0")[0] == 0


def test_evaluating_a_group_of_seeds_looks_at_the_groups_own_mark(
    tmp_path: Path, qcse_here, monkeypatch: pytest.MonkeyPatch
) -> None:
    qcse_here("train", "--env", "ball_module:Ball-v0", "--out", "run", "--seeds", 2, *STEPS, check=True)
    forget(monkeypatch)
    assert qcse_here("eval", "run/seed0", "--episodes", 1)[0] == 0
    (tmp_path / "run" / trust.MARK).unlink()
    forget(monkeypatch)
    assert qcse_here("eval", "run/seed0", "--episodes", 1)[0] == 1
    assert json.loads((tmp_path / "run" / "config.json").read_text())["env"] == "ball_module:Ball-v0"


def test_a_recording_goes_on_where_this_user_began_it(
    tmp_path: Path, qcse_here, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--steps", 40, "--policy-rows", 0, "--learning-starts", 20, "--eval-every", 60, "--hidden", 16, 16]
    qcse_here("collect", "--env", "ball_module:Ball-v0", "--name", "ball", *words, "--threads", 1, check=True)
    folder = tmp_path / "data" / "other.collecting"
    folder.mkdir()
    (folder / "collect.json").write_text(json.dumps({"env": "ball_module:Ball-v0", "name": "other"}))
    forget(monkeypatch)
    code, said = qcse_here("collect", "--resume", folder, "--finish")
    assert code == 1 and "nothing shows that this user started that run" in said
    trust.mark_run(folder, "ball_module:Ball-v0")
    forget(monkeypatch)
    assert "nothing is recorded" in qcse_here("collect", "--resume", folder, "--finish")[1]
