"""Files are checked against the dataclasses that they become, and every number against its range, in one place."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any, Literal

import pytest

from qcse import config
from qcse.config import TrainConfig, commands, from_dict, from_json, read_config, to_dict, validate
from qcse.config.algorithms.cql import CqlConfig
from qcse.config.plain import DEEPEST, LARGEST_FILE, LARGEST_TOML, read_json
from qcse.config.ranges import check_ranges, numbers_of
from qcse.config.typed import build, conform
from qcse.errors import ConfigError
from qcse.runs.folder import stored_config
from qcse.runs.sweep import read_file

COMMANDS = (
    commands.EvalArgs,
    commands.ReportArgs,
    commands.StatusArgs,
    commands.CollectArgs,
    commands.DemoArgs,
    commands.SweepArgs,
    commands.BenchArgs,
    commands.MazeCollectArgs,
    commands.CheckArgs,
)


def online() -> TrainConfig:
    made = TrainConfig(algo="sac", offline_steps=0, online_steps=60)
    made.bonus.k, made.bonus.kind = 3, "qcse"
    return made


def changed(**values: object) -> dict[str, Any]:
    """A stored configuration with other values, "bonus__k" being bonus.k."""
    data = to_dict(online())
    for name, value in values.items():
        *groups, leaf = name.split("__")
        owner = data
        for group in groups:
            owner = owner[group]
        owner[leaf] = value
    return data


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": True}, "seed: got True, expected a whole number"),
        ({"seed": 1.0}, "seed: got 1.0, expected a whole number"),
        ({"seed": 2**63}, "seed: got 9223372036854775808, expected a whole number of at most 64 bits"),
        ({"seed": None}, "seed: got none, expected a whole number"),
        ({"discount": "0.9"}, "discount: got the text '0.9', expected a number"),
        ({"discount": math.inf}, "discount: got inf, expected a finite number"),
        ({"offline_fraction": [0.5]}, "offline_fraction: got [0.5], expected a number or none"),
        ({"overlap": 1}, "overlap: got 1, expected true or false"),
        ({"algo": "ppo"}, "algo: got the text 'ppo', expected one of sac, cql"),
        ({"algo": ["sac"]}, "algo: got ['sac'], expected one of sac, cql"),
        ({"env": "a\0b"}, "env: got the text 'a\\x00b', expected a text without NUL"),
        ({"env": "\ud800"}, "env: got the text '\\ud800', expected a text in Unicode"),
        ({"dataset": 3}, "dataset: got 3, expected a path (a text) or none"),
        ({"out": ""}, "out: got an empty name, expected a path"),
        ({"net__policy_hidden": "256"}, "net.policy_hidden: got the text '256', expected a list, each a whole number"),
        ({"net__policy_hidden": [16, "16"]}, "net.policy_hidden[1]: got the text '16', expected a whole number"),
        ({"net": 3}, "net is 3, expected a group of options"),
        ({"bonus": {}}, "missing options: bonus.kind, bonus.weight"),
        ({"sede": 3}, "unknown option: sede (near matches: seed, seeds)"),
        ({"cql__alhpa": 3}, "unknown option: cql.alhpa (near matches: alpha)"),
    ],
)
def test_stored_values_are_of_their_options_types(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(changed(**values), "a/config.json")
    assert str(caught.value).startswith(f"a/config.json: {message}") and "\n" not in str(caught.value)


def test_a_whole_number_passes_for_a_float_and_none_where_it_may() -> None:
    read = from_dict(changed(discount=0, threads=None, out="b", net__policy_hidden=[8, 9]))
    assert read.discount == 0.0 and isinstance(read.discount, float)
    assert read.threads is None and read.out == Path("b") and read.net.policy_hidden == (8, 9)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe{}", "is not UTF-8 text (byte 0)"),
        (b"{", "is not valid JSON"),
        (b"", "is not valid JSON"),
        (b"[]", "holds [], expected an object"),
        (b'{"seed": 1, "env": "a", "seed": 2}', "the key 'seed' is there twice"),
        (b'{"seed": NaN}', "got NaN, which is not JSON"),
        (b'{"seed": -Infinity}', "got -Infinity, which is not JSON"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "is not valid JSON"),
        (b'{"seed": ' + b"[" * 100_000 + b"}", "is nested too deep"),
        (b'{"seed": ' + b"[" * DEEPEST + b"]" * DEEPEST + b"}", "is nested too deep"),
        (b" " * (LARGEST_FILE + 1), "has more than 1024 KiB"),
    ],
)
def test_files_that_hold_no_configuration(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        stored_config(tmp_path)
    assert str(caught.value).startswith(str(path)) and message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ConfigError, match="is not a file"):
            read_json(path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "absent")
    with pytest.raises(ConfigError, match="checkpoint: config: got 3, expected a JSON text"):
        from_json(3, "checkpoint: config")


@pytest.mark.parametrize("name", ["plain", "größe", "caf\udce9", "a b\n'\""])
def test_paths_of_any_name_survive(name: str, tmp_path: Path) -> None:
    stored = tmp_path / "config.json"
    made = dataclasses.replace(online(), out=Path(name), dataset=Path(name) / "data.hdf5")
    stored.write_text(json.dumps(to_dict(made)))
    assert read_config(stored) == made


# Ranges.


def test_every_number_has_a_range() -> None:
    assert set(numbers_of(TrainConfig)) == set(config.RANGES)
    assert {name for command in COMMANDS for name in numbers_of(command)} == set(commands.RANGES)
    assert {"bonus.k", "net.policy_hidden", "threads", "clip_difference"} <= {
        *numbers_of(TrainConfig),
        *numbers_of(CqlConfig),
    }

    @dataclasses.dataclass
    class Forgetful:
        choice: Literal[1, 2] = 1
        flag: bool = False
        rate: float | None = 1.0

    assert list(numbers_of(Forgetful)) == ["rate"]
    with pytest.raises(KeyError, match="rate"):
        check_ranges(Forgetful(), {})


@pytest.mark.parametrize("name", [n for n in numbers_of(TrainConfig) if not n.endswith("hidden")])
def test_no_number_may_be_absurd(name: str) -> None:
    for value in (math.nan, math.inf, -math.inf, 10**39, -(10**39)):
        made = online()
        owner, _, leaf = name.rpartition(".")
        setattr(getattr(made, owner) if owner else made, leaf, value)
        with pytest.raises(ConfigError, match=f"^{name}: got "):
            validate(made)
        assert not config.RANGES[name].holds(value)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("bonus.weight", math.nan, "a finite number"),
        ("policy_lr", -1e-3, "1e-30 or more"),
        ("critic_lr", 0.0, "1e-30 or more"),
        ("discount", 1.0, "less than 1"),
        ("target_rate", 0.0, "more than 0"),
        ("bonus.k", 129, "128 or less"),
        ("threads", 10**6, "1,024 or less"),
        ("seed", -1, "0 or more"),
        ("net.policy_hidden", (16, 10**7), "1,000,000 or less"),
        ("net.critic_hidden", (16, 0), "1 or more"),
        ("net.critic_hidden", (16,) * 101, "at most 100"),
        ("bonus.hidden", (), "one or more widths"),
        ("bonus.k", 3.0, "a whole number"),
        ("algo", "ppo", "one of sac"),
    ],
)
def test_ranges_are_told(name: str, value: object, expected: str) -> None:
    made = online()
    owner, _, leaf = name.rpartition(".")
    setattr(getattr(made, owner) if owner else made, leaf, value)
    with pytest.raises(ConfigError, match=f"^{name}: got .*expected {expected}"):
        validate(made)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--env", "Hopper-v5", "--algo", "sac", "--bonus.weight", "nan"], "bonus.weight: got nan"),
        (["train", "--env", "Hopper-v5", "--algo", "sac", "--seed", "9" * 30], "seed: got 9999"),
        (["eval", "run", "--episodes", "0"], "episodes: got 0, expected 1 or more"),
        (["eval", "run", "--threads", "100000"], "threads: got 100000, expected 1,024 or less"),
        (["collect", "--stop-return", "inf"], "stop_return: got inf, expected a finite number"),
        (["collect", "--env", "qcse/pointmaze-umaze-v0", "--noise", "nan"], "noise: got nan, expected a finite number"),
        (["data", "check", "a.hdf5", "--rows", "0"], "rows: got 0, expected 1 or more"),
        (["demo", "--seeds", "-1"], "seeds: got -1, expected 1 or more"),
        (["sweep", "--envs", "Hopper-v5", "--workers", "0"], "workers: got 0, expected 1 or more"),
        (["bench", "--policy-hidden", "10000000"], "policy_hidden: got 10000000, expected 1,000,000 or less"),
    ],
)
def test_the_command_line_checks_ranges(words: list[str], message: str, tmp_path: Path, qcse_here) -> None:
    code, said = qcse_here(*words)
    assert code == 1 and f"qcse {words[0]}: {message}" in said and list(tmp_path.iterdir()) == []


# Sweeps.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('algos = "cql"', "algos: got the text 'cql', expected a list, each one of sac, cql"),
        ('bonuses = ["../.."]', "bonuses[0]: got the text '../..', expected one of none, qcse"),
        ('algos = ["cql", 3]', "algos[1]: got 3, expected one of sac"),
        ('seeds = "4"', "seeds: got the text '4', expected a whole number"),
        ("seeds = true", "seeds: got True, expected a whole number"),
        ("seeds = 1e3", "seeds: got 1000.0, expected a whole number"),
        ("workers = 2024-01-01", "workers: got datetime.date(2024, 1, 1), expected a whole number"),
        ("datasets = [1]", "datasets[0]: got 1, expected a path"),
        ('datasets = [""]', "datasets[0]: got an empty name"),
        ("extra = [[1]]", "extra[0]: got [1], expected a text or a whole number or a number"),
        ("extra = [nan]", "extra[0]: got nan"),
        ('out = "x"', "got unknown options ['out']"),
        ("seeds = 1\nseeds = 2", "is not valid TOML"),
        ("seeds = " + "9" * 5000, "is not valid TOML"),
        ("seeds = " + "[" * 20_000, "is nested too deep"),
        ("a" + ".a" * 30_000 + " = 1", "is nested too deep"),
        ("seeds = " + " " * LARGEST_TOML + "1", "has more than 64 KiB"),
        ("a = {b = {c = {d = 1}}}", "got unknown options ['a']"),
    ],
)
def test_sweep_files_are_typed(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_file(path)
    assert str(path) in str(caught.value) and message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_sweep_file_that_is_right(tmp_path: Path) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text('algos = ["cql"]\ndatasets = ["a.hdf5"]\nseeds = 2\nextra = ["--log-every", 20]')
    options = {"algos": ("cql",), "datasets": (Path("a.hdf5"),), "seeds": 2}
    assert read_file(path) == (options, ("--log-every", "20"), {})
    path.write_text('[grid]\n"bonus.k" = [5, 10]\nnet.policy-hidden = [[64, 64], [256]]')
    assert read_file(path) == ({}, (), {"bonus.k": [5, 10], "net.policy_hidden": [[64, 64], [256]]})
    path.write_bytes(b"algos = ['\xff']")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        read_file(path)


def test_parts_of_a_dataclass() -> None:
    assert build(TrainConfig, {"seed": 3}, "x", whole=False) == {"seed": 3}
    assert conform(3, str | int, "x") == 3 and conform("a", str | int, "x") == "a"
