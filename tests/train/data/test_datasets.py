"""D4RL files: what is read, what is refused, where episodes end, what returns are."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import shared_data

from qcse.data import d4rl as datasets
from qcse.data import transitions
from qcse.data.d4rl import load_d4rl, write_d4rl
from qcse.data.transitions import Transitions, mean_and_spread, monte_carlo_returns
from qcse.envs.scores import normalized_score, task_family
from qcse.errors import DatasetError


def recording(lengths: list[int], ends: list[str], dim: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """Episodes of random states; `ends` says for each how it ended: terminal, timeout or hidden."""
    rng = np.random.default_rng(seed)
    columns: dict[str, list[np.ndarray]] = {"observations": [], "next_observations": []}
    n = sum(lengths)
    terminals, timeouts = np.zeros(n, bool), np.zeros(n, bool)
    row = 0
    for length, end in zip(lengths, ends, strict=True):
        states = rng.normal(size=(length + 1, dim)).astype(np.float32)
        columns["observations"].append(states[:-1])
        columns["next_observations"].append(states[1:])
        row += length
        terminals[row - 1] = end == "terminal"
        timeouts[row - 1] = end == "timeout"
    return {
        **{key: np.concatenate(parts) for key, parts in columns.items()},
        "actions": rng.uniform(-1, 1, (n, 2)).astype(np.float32),
        "rewards": rng.normal(size=n).astype(np.float32),
        "terminals": terminals,
        "timeouts": timeouts,
    }


def plain_file(path: Path, arrays: dict[str, np.ndarray], **options: object) -> Path:
    """Written without the project's own writer and its checks."""
    with h5py.File(path, "w") as file:
        for key, values in arrays.items():
            file.create_dataset(key, data=values, **options)
    return path


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    return recording([4, 3, 5, 2], ["terminal", "timeout", "hidden", "hidden"])


def test_reads_what_was_written_and_finds_every_kind_of_end(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    path = tmp_path / "new" / "data.hdf5"
    qpos = np.arange(14 * 6, dtype=np.float64).reshape(14, 6)
    write_d4rl(path, {**arrays, "infos/qpos": qpos}, {"env_id": "Hopper-v5", "steps": 14, "score": 0.5})
    data = load_d4rl(path)
    assert len(data) == 14 and data.observation_dim == 3 and data.action_dim == 2
    for key in ("observations", "next_observations", "actions", "rewards"):
        read = getattr(data, key)
        assert read.dtype == np.float32 and read.flags.c_contiguous
        np.testing.assert_array_equal(read, arrays[key])
    assert data.episodes() == [(0, 4), (4, 7), (7, 12), (12, 14)]
    np.testing.assert_array_equal(data.bootstrap, [1, 1, 1, 0] + [1] * 10)  # a time limit is no terminal state
    np.testing.assert_allclose(data.episode_returns()[1], arrays["rewards"][4:7].sum(dtype=np.float64))
    assert data.metadata == {"env_id": "Hopper-v5", "steps": 14, "score": 0.5}
    assert data.path == str(path) and [p.name for p in path.parent.iterdir()] == ["data.hdf5"]
    with h5py.File(path) as file:
        assert file["terminals"].dtype == bool and file["timeouts"].dtype == bool
        assert file["infos/qpos"].dtype == np.float32
        np.testing.assert_array_equal(file["infos/qpos"][()], qpos)
    assert path.stat().st_mode & 0o400 and path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_timeouts_may_be_missing_where_next_observations_show_the_ends(
    tmp_path: Path, arrays: dict[str, np.ndarray]
) -> None:
    del arrays["timeouts"]
    assert load_d4rl(plain_file(tmp_path / "a", arrays)).episodes() == [(0, 4), (4, 7), (7, 12), (12, 14)]


def test_without_next_observations_the_row_below_is_the_next_state(tmp_path: Path) -> None:
    arrays = recording([4, 3, 1, 5, 1, 2], ["terminal", "timeout", "timeout", "timeout", "terminal", "hidden"])
    truth = arrays.pop("next_observations")
    data = load_d4rl(plain_file(tmp_path / "antmaze", arrays))
    # Rows 6, 7, 12 and 15 end an episode that went on unseen: dropped. Rows 3 and 13 are terminal: kept.
    kept = [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 13, 14]
    for key in ("observations", "actions", "rewards"):
        np.testing.assert_array_equal(getattr(data, key), arrays[key][kept])
    assert data.episodes() == [(0, 4), (4, 6), (6, 10), (10, 11), (11, 12)]
    np.testing.assert_array_equal(data.bootstrap, 1.0 - arrays["terminals"][kept])
    seen = data.bootstrap == 1.0
    np.testing.assert_array_equal(data.next_observations[seen], truth[kept][seen])


def test_dropping_rows_block_by_block_equals_dropping_them_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = recording([7, 2, 9, 1, 30, 4] * 9, ["timeout", "terminal", "timeout", "timeout", "hidden", "timeout"] * 9)
    del arrays["next_observations"]
    path = plain_file(tmp_path / "a", arrays, chunks=True)
    whole = load_d4rl(path)
    for module in (datasets, transitions):  # 8 rows of observations, 25 of rewards
        monkeypatch.setattr(module, "SLAB_BYTES", 100)
    assert load_d4rl(path).fingerprint() == whole.fingerprint()


def test_columns_of_one_and_float_flags_and_wider_types_are_read(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    odd = {
        **{key: arrays[key].astype(np.float64) for key in ("observations", "next_observations", "actions")},
        "rewards": arrays["rewards"][:, None],
        "terminals": arrays["terminals"].astype(np.float32)[:, None],
        "timeouts": arrays["timeouts"].astype(np.int8),
    }
    data = load_d4rl(plain_file(tmp_path / "odd", odd))
    assert data.fingerprint() == load_d4rl(plain_file(tmp_path / "usual", arrays)).fingerprint()


def test_a_rounding_between_two_copies_of_a_state_is_not_an_end(tmp_path: Path) -> None:
    arrays = recording([50], ["timeout"])
    arrays["next_observations"] = np.nextafter(arrays["next_observations"], np.float32(np.inf))
    assert load_d4rl(plain_file(tmp_path / "a", arrays)).episodes() == [(0, 50)]


def test_metadata_keeps_scalars_only(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    path = plain_file(tmp_path / "a", {**arrays, "metadata/policy/weight": np.ones((3, 3)), "metadata/policy/size": 3})
    with h5py.File(path, "a") as file:
        file.attrs["algorithm"] = "SAC"
    assert load_d4rl(path).metadata == {"policy/size": 3, "algorithm": "SAC"}


def test_fingerprint_follows_the_content_alone(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    write_d4rl(tmp_path / "a", arrays, {"seed": 0})
    write_d4rl(tmp_path / "b", arrays, {"seed": 1}, compression=None)
    first = load_d4rl(tmp_path / "a").fingerprint()
    assert first == load_d4rl(tmp_path / "b").fingerprint() and len(first) == 64
    for key in ("observations", "actions", "rewards", "terminals"):
        changed = {**arrays, key: arrays[key].copy()}
        changed[key].reshape(-1)[1] = changed[key].reshape(-1)[1] + 1
        write_d4rl(tmp_path / "c", changed, {})
        assert load_d4rl(tmp_path / "c").fingerprint() != first, key


# What is refused, and what the message must hold.


@pytest.mark.parametrize("size", [0, 300, 5000])
def test_a_file_cut_short_or_of_another_kind_is_named_so(
    tmp_path: Path, size: int, arrays: dict[str, np.ndarray]
) -> None:
    whole = plain_file(tmp_path / "whole.hdf5", arrays).read_bytes()
    assert len(whole) > 5000
    path = tmp_path / "part.hdf5"
    path.write_bytes(whole[:size])
    expected = "cut short" if size else "not an HDF5 file"
    with pytest.raises(DatasetError, match=rf"part\.hdf5.*{expected}"):
        load_d4rl(path)
    path.write_bytes(b"name,reward\n" * 500)
    with pytest.raises(DatasetError, match="not an HDF5 file"):
        load_d4rl(path)


def test_damage_inside_the_file_is_an_error_with_the_name(tmp_path: Path) -> None:
    arrays = recording([3000], ["timeout"])
    path = plain_file(tmp_path / "hurt.hdf5", arrays, compression="gzip", fletcher32=True)
    with h5py.File(path) as file:
        offset = file["observations"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[offset + 40 : offset + 80] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"hurt\.hdf5 is damaged"):
        load_d4rl(path)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no file at .*absent\.hdf5.*qcse collect"):
        load_d4rl(tmp_path / "absent.hdf5")
    with pytest.raises(DatasetError, match="is a folder, not a file"):
        load_d4rl(tmp_path)


@pytest.mark.parametrize("key", ["observations", "actions", "rewards", "terminals"])
def test_a_missing_key_is_named_with_those_found(tmp_path: Path, arrays: dict[str, np.ndarray], key: str) -> None:
    del arrays[key]
    with pytest.raises(DatasetError, match=rf"no key {key}; keys found: .*next_observations"):
        load_d4rl(plain_file(tmp_path / "a", arrays))
    with pytest.raises(DatasetError, match=rf"no array {key}"):
        write_d4rl(tmp_path / "b", arrays, {})


def test_neither_next_observations_nor_timeouts(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    del arrays["next_observations"], arrays["timeouts"]
    with pytest.raises(DatasetError, match="no key next_observations or timeouts"):
        load_d4rl(plain_file(tmp_path / "a", arrays))
    with pytest.raises(DatasetError, match="next_observations or timeouts"):
        write_d4rl(tmp_path / "b", arrays, {})


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("rewards", lambda a: a[:-2], r"unequal length.*rewards 12"),
        ("rewards", lambda a: np.stack([a, a], 1), r"rewards has shape \(14, 2\)"),
        ("rewards", lambda a: a.astype("S8"), r"rewards has type \|S8; expected numbers"),
        ("observations", lambda a: a[:, 0], r"observations has shape \(14,\)"),
        ("next_observations", lambda a: a[:, :2], r"next_observations of shape \(14, 2\).*\(14, 3\)"),
        ("actions", lambda a: a[:, :0], r"actions has shape \(14, 0\)"),
        ("terminals", lambda a: np.where(a, 2.0, 0.0), r"terminals is 2.0 in row 3"),
        ("timeouts", lambda a: np.where(a, np.nan, 0.0), r"timeouts is nan in row 6"),
    ],
)
def test_wrong_shapes_types_and_flags(
    tmp_path: Path, arrays: dict[str, np.ndarray], key: str, change: object, message: str
) -> None:
    arrays[key] = change(arrays[key])  # type: ignore[operator]
    with pytest.raises(DatasetError, match=message):
        load_d4rl(plain_file(tmp_path / "a", arrays))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("key", ["observations", "next_observations", "actions", "rewards"])
def test_values_that_are_not_finite_are_counted_and_located(
    tmp_path: Path, arrays: dict[str, np.ndarray], key: str, value: float
) -> None:
    hurt = arrays[key].astype(np.float64)
    hurt[5] = hurt[9] = value
    count = hurt[[5, 9]].size
    with pytest.raises(DatasetError, match=rf": {key} has {count} of {hurt.size} .*first in row 5"):
        load_d4rl(plain_file(tmp_path / "a", {**arrays, key: hurt}))
    with pytest.raises(DatasetError, match=f"{key} has values"):
        write_d4rl(tmp_path / "b", {**arrays, key: hurt}, {})
    assert not (tmp_path / "b").exists()


def test_empty_and_useless_files(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    with pytest.raises(DatasetError, match="holds no transition"):
        load_d4rl(plain_file(tmp_path / "a", {key: values[:0] for key, values in arrays.items()}))
    single = recording([1, 1], ["timeout", "timeout"])
    del single["next_observations"]
    with pytest.raises(DatasetError, match="only episodes of one row"):
        load_d4rl(plain_file(tmp_path / "b", single))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    path = tmp_path / "data.hdf5"
    write_d4rl(path, arrays, {})
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_d4rl(path, arrays, {"env": object()})  # type: ignore[dict-item]
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["data.hdf5"]
    with pytest.raises(DatasetError, match="unequal length"):
        write_d4rl(path, {**arrays, "rewards": arrays["rewards"][:3]}, {})
    with pytest.raises(DatasetError, match="cannot be written"):
        write_d4rl(path / "under-a-file.hdf5", arrays, {})


def test_memory_while_reading_stays_near_the_arrays_own_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = recording([1000] * 60, ["timeout"] * 60, dim=40)
    for module in (datasets, transitions):
        monkeypatch.setattr(module, "SLAB_BYTES", 1 << 20)
    write_d4rl(tmp_path / "full", arrays, {}, compression=1)
    del arrays["next_observations"]
    write_d4rl(tmp_path / "antmaze", arrays, {}, compression=1)
    del arrays
    for name in ("full", "antmaze"):
        tracemalloc.start()
        data = load_d4rl(tmp_path / name)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        size = sum(getattr(data, key).nbytes for key in ("observations", "next_observations", "actions", "rewards"))
        assert size > 15e6
        assert peak < 1.3 * size, name


# Monte-Carlo returns.


def brute_force(rewards: np.ndarray, ends: np.ndarray, gamma: float) -> np.ndarray:
    out = np.zeros(len(rewards))
    for i in range(len(rewards)):
        for step in range(len(rewards) - i):
            out[i] += gamma**step * float(rewards[i + step])
            if ends[i + step]:
                break
    return out


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-100, 100, width=32), st.sampled_from(["no", "no", "no", "cut", "terminal"]))),
    st.sampled_from([0.0, 0.9, 0.99, 1.0]),
)
def test_returns_equal_the_sum_by_definition(rows: list[tuple[float, str]], gamma: float) -> None:
    rewards = np.array([r for r, _ in rows], np.float32)
    ends = np.array([kind != "no" for _, kind in rows], bool)
    bootstrap = np.array([kind != "terminal" for _, kind in rows], np.float32)
    expected = brute_force(rewards, ends, gamma)
    got = monte_carlo_returns(rewards, ends, bootstrap, gamma)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-4)
    # A terminal state ends the sum even where it is not marked as the end of an episode.
    np.testing.assert_array_equal(monte_carlo_returns(rewards, ends & (bootstrap == 1), bootstrap, gamma), got)


def test_an_episode_that_never_reached_the_goal_counts_for_ever() -> None:
    task = np.array([0, 0, 0, 0, 1, 0, 0, 0], np.float32)
    ends = np.array([0, 0, 1, 0, 1, 0, 0, 1], bool)
    bootstrap = np.array([1, 1, 1, 1, 0, 1, 1, 1], np.float32)
    reward = 10 * task - 5
    got = monte_carlo_returns(reward, ends, bootstrap, 0.99, sparse_negative=-5.0)
    np.testing.assert_allclose(got, [-500, -500, -500, -5 + 0.99 * 5, 5, -500, -500, -500], rtol=1e-6)
    without = monte_carlo_returns(reward, ends, bootstrap, 0.99)
    np.testing.assert_allclose(without[:3], [-5 * (1 + 0.99 + 0.99**2), -5 * 1.99, -5], rtol=1e-6)
    np.testing.assert_array_equal(without[3:5], got[3:5])


def test_a_hidden_end_keeps_the_next_episodes_rewards_out(tmp_path: Path) -> None:
    arrays = recording([2, 3], ["hidden", "timeout"])
    arrays["rewards"] = np.array([1, 1, 100, 100, 100], np.float32)
    data = load_d4rl(plain_file(tmp_path / "a", arrays))
    got = monte_carlo_returns(data.rewards, data.episode_end, data.bootstrap, 0.5)
    np.testing.assert_array_equal(got, [1.5, 1.0, 175.0, 150.0, 100.0])


def test_long_episodes_are_summed_in_double_precision() -> None:
    rewards = np.full(200_000, 0.1, np.float32)
    got = monte_carlo_returns(rewards, np.zeros(200_000, bool), np.ones(200_000, np.float32), 1.0)
    np.testing.assert_allclose(got[0], 200_000 * float(np.float32(0.1)), rtol=1e-7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma": 1.01}, "gamma is 1.01"),
        ({"gamma": 1.0, "sparse_negative": -5.0}, "needs gamma < 1"),
        ({"episode_end": np.zeros(3, bool)}, r"episode_end of shape \(3,\)"),
        ({"bootstrap": np.ones(1)}, r"expected \[N\] for all"),
    ],
)
def test_returns_refuse_what_has_no_meaning(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "rewards": np.zeros(4),
        "episode_end": np.zeros(4, bool),
        "bootstrap": np.ones(4),
        "gamma": 0.9,
    }
    with pytest.raises(ValueError, match=message):
        monte_carlo_returns(**{**arguments, **change})  # type: ignore[arg-type]


def test_normalised_scores_and_families() -> None:
    assert float(normalized_score("hopper", -20.272305)) == 0.0
    assert float(normalized_score("hopper", 3234.3)) == 100.0
    assert float(normalized_score("ant", 3879.7)) == 100.0
    np.testing.assert_allclose(normalized_score("halfcheetah", [12135.0, -280.178953]), [100.0, 0.0])
    assert float(normalized_score("hopper", 814.0)) == pytest.approx(25.6, abs=0.05)
    assert np.isnan(normalized_score("other", [1.0, 2.0])).all()
    families = {
        "Hopper-v5": "hopper",
        "HalfCheetah-v4": "halfcheetah",
        "Walker2d-v5": "walker2d",
        "Ant-v5": "ant",
        "AntMaze_UMaze-v5": "antmaze",
        "antmaze-large-play-v2": "antmaze",
        "Pendulum-v1": "other",
        "AntBulletEnv-v0": "other",
        "dm_control/hopper-hop-v0": "other",
    }
    assert {name: task_family(name) for name in families} == families


@pytest.mark.parametrize(
    ("name", "rows", "ends"), [("hopper-medium-replay", 150_000, 1210), ("hopper-medium", 100_000, 336)]
)
def test_independent_data(name: str, rows: int, ends: int, tmp_path: Path) -> None:
    path = shared_data(f"{name}.hdf5")
    data = load_d4rl(path, progress=False)
    assert (len(data), data.observation_dim, data.action_dim) == (rows, 11, 3)
    assert data.metadata["env_id"] == "Hopper-v5"
    with h5py.File(path) as file:
        terminals = file["terminals"][()]
        np.testing.assert_array_equal(data.next_observations, file["next_observations"][()])
    np.testing.assert_array_equal(data.bootstrap, ~terminals)
    episodes = data.episodes()
    # Every end but the recording's last row is a fall of the robot; no flag was wrong.
    assert len(episodes) == ends == terminals.sum() + 1
    assert max(stop - start for start, stop in episodes) <= 1000
    returns = data.episode_returns()
    assert len(returns) == ends
    np.testing.assert_allclose(returns.sum(), data.rewards.sum(dtype=np.float64))
    if name == "hopper-medium":
        assert float(normalized_score("hopper", returns[:-1].mean())) == pytest.approx(25.0, abs=5.0)
    # The same rows in the layout of AntMaze: all but the last row, whose next state is unknown unless terminal.
    short = {key: getattr(data, key)[:5000] for key in ("observations", "actions", "rewards")}
    short |= {"terminals": terminals[:5000], "timeouts": np.zeros(5000, bool)}
    again = load_d4rl(plain_file(tmp_path / "short", short))
    assert isinstance(again, Transitions) and len(again) == (5000 if terminals[4999] else 4999)
    seen = again.bootstrap == 1.0
    np.testing.assert_array_equal(again.next_observations[seen], data.next_observations[: len(again)][seen])


def test_mean_and_spread_by_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    states = np.random.default_rng(0).normal([0, 5, -100], [1, 0.01, 30], (1000, 3)).astype(np.float32)
    for module in (datasets, transitions):
        monkeypatch.setattr(module, "SLAB_BYTES", 4096)
    mean, spread = mean_and_spread(states)
    np.testing.assert_allclose(mean, states.astype(np.float64).mean(0), rtol=1e-6)
    np.testing.assert_allclose(spread, states.astype(np.float64).std(0) + 1e-3, rtol=1e-6)
    assert mean.dtype == spread.dtype == np.float32
