"""A run that starts from another's offline end: the bits of one that did both phases, or a refusal that says why."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import QUICK, equal, quick, record_random_policy
from test_resume import kill_after, metrics, results

from qcse.config import TrainConfig, bonus_preset, derived, flat, from_flat, offline_options, preset
from qcse.config.algorithms import ALGORITHMS
from qcse.config.algorithms.base import ONLINE_ONLY
from qcse.errors import CheckpointError, ConfigError
from qcse.learn.streams import NAMES, Streams
from qcse.report.runs import borrowed, group_runs, read_run
from qcse.runs import checkpoint
from qcse.runs.pretrained import Pretrained
from qcse.runs.trainer import Trainer

PARTS = ("agent", "reward", "streams", "environments", "episodes", "metrics", "observation_scale", "step", "dataset")
OFFLINE, ONLINE = 30, 40


@pytest.fixture(scope="module")
def countdown_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_random_policy("QcseCountdown-v0", 200, tmp_path_factory.mktemp("data") / "countdown.hdf5")


def options(algo: str, data: Path, bonus: str = "none", **changes: object) -> TrainConfig:
    config = quick(algo, dataset=data, offline_steps=OFFLINE, online_steps=ONLINE, normalize_observations=True)
    config.eval_every, config.log_every, config.bonus = 20, 5, bonus_preset(bonus)
    config.bonus.k, config.bonus.hidden = 3, (8,)
    return dataclasses.replace(config, **changes)


def train(config: TrainConfig, out: Path) -> Trainer:
    trainer = Trainer(config, out, quiet=True)
    trainer.run()
    return trainer


def folders(out: Path) -> list[Path]:
    return sorted(path.parent for path in out.rglob("eval.csv"))


def assert_same_end(a: Path, b: Path) -> None:
    """Two runs, the first from the offline end on: equal rows from there on, equal last checkpoints."""
    for part, whole in zip(folders(a), folders(b), strict=True):
        assert results(part) == [row for row in results(whole) if int(row["step"]) >= OFFLINE]
        assert metrics(part) == [
            {name: value for name, value in row.items() if name in metrics(part)[0]}
            for row in metrics(whole)
            if int(row["step"]) > OFFLINE
        ]
    one, other = (checkpoint.load(out / checkpoint.NAME) for out in (a, b))
    for part in PARTS:
        assert equal(one[part], other[part]), part
    assert equal(one["buffer"], other["buffer"])


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize(
    ("algo", "bonus"),
    [("cal_ql", "qcse"), ("cql", "qcse"), ("iql", "rnd"), ("wsrl", "se"), ("td3_bc", "vcse"), ("awac", "qcse")],
)
def test_a_pretrained_start_has_the_bits_of_a_whole_run(
    algo: str, bonus: str, seeds: int, countdown_data: Path, tmp_path: Path
) -> None:
    whole = options(algo, countdown_data, bonus, seeds=seeds, seed=1)
    train(whole, tmp_path / "whole")
    train(options(algo, countdown_data, seeds=seeds, seed=1, online_steps=0), tmp_path / "pre")
    for source in ("pre", "whole"):  # a folder at its offline end, and one that has gone on and kept it
        arm = dataclasses.replace(whole, init_from=tmp_path / source)
        train(arm, tmp_path / f"from {source}")
        assert_same_end(tmp_path / f"from {source}", tmp_path / "whole")
    facts = json.loads((tmp_path / "from whole" / "machine.json").read_text())["init_from"]
    assert facts["step"] == OFFLINE and facts["algo"] == algo and facts["seeds"] == list(range(1, 1 + seeds))
    assert facts["otherwise"] == {}
    for part, all_of_it in zip(folders(tmp_path / "from pre"), folders(tmp_path / "whole"), strict=True):
        shown, whole_run = read_run(part), read_run(all_of_it)  # a report shows the pre-training as well
        assert shown.steps.tolist() == whole_run.steps.tolist() == [0, 20, 30, 40, 60, 70]
        assert shown.values.tolist() == whole_run.values.tolist() and not shown.notes
        assert shown.online.tolist() == whole_run.online.tolist()
        assert [group.label.count("(") for group in group_runs([shown, whole_run])] == [0]
    assert facts["sha256"] == checkpoint.load(checkpoint.kept(tmp_path / "whole", OFFLINE))["sha256"]


@pytest.mark.parametrize(("algo", "seeds"), [("cal_ql", 1), ("cql", 3)])
def test_the_command_line_and_a_kill(algo: str, seeds: int, hopper_data: Path, tmp_path: Path, qcse_here) -> None:
    words = ["--algo", algo, "--env", "Hopper-v5", "--dataset", hopper_data, "--seeds", seeds, *QUICK]
    words += ["--eval-every", 50, "--log-every", 10, "--checkpoint-seconds", 0.05, "--offline-steps", OFFLINE]
    online = ["--bonus", "qcse", "--bonus.k", 5, "--online-steps", 300]
    qcse_here("train", *words, *online, "--out", "whole", check=True)
    qcse_here("train", *words, "--online-steps", 0, "--out", "pre", check=True)
    arm = ["train", "--init-from", tmp_path / "pre", *online, "--out", tmp_path / "arm"]
    if seeds == 1:
        kill_after(150, tmp_path / "arm", arm)
        (tmp_path / "pre").rename(tmp_path / "away")  # the run has its own checkpoint by now
        arm = ["train", "--resume", "arm"]
    qcse_here(*arm, check=True)
    assert_same_end(tmp_path / "arm", tmp_path / "whole")
    assert json.loads((tmp_path / "arm" / "config.json").read_text())["init_from"] == str(tmp_path / "pre")
    _, table = qcse_here("report", "arm", "whole", "--out", "page", check=True)
    assert f"{algo} + qcse (" not in table, "two settings of one experiment"


def start(config: TrainConfig, out: Path) -> Trainer:
    """A run that has been set up and not begun."""
    return Trainer(config, out, quiet=True)


def weights(trainer: Trainer, row: int) -> list[torch.Tensor]:
    seeds = len(trainer.seeds)
    return [p.view(seeds, -1)[row] for module in trainer.agent.modules().values() for p in module.parameters()]


def test_seeds_choose_their_networks_and_streams(countdown_data: Path, tmp_path: Path) -> None:
    pre = train(options("cql", countdown_data, seeds=3, seed=4, online_steps=0), tmp_path / "pre")
    base = options("cql", countdown_data, "rnd", init_from=tmp_path / "pre")

    def check(trainer: Trainer, rows: list[int], goes_on: list[bool]) -> None:
        state, fresh = trainer.experiment.streams.state_dict(), Streams(trainer.seeds, "cpu", trainer.seeds)
        for i, (row, on) in enumerate(zip(rows, goes_on, strict=True)):
            assert equal(weights(trainer, i), weights(pre, row)), (i, row)
            expected = pre.experiment.streams.state_dict() if on else fresh.state_dict()
            for name in set(NAMES) - {"initialisation"}:
                assert torch.equal(state[name][i], expected[name][row if on else i]), (name, i)

    check(start(dataclasses.replace(base, seed=4, seeds=3), tmp_path / "a"), [0, 1, 2], [True] * 3)
    check(start(dataclasses.replace(base, seed=5, seeds=1), tmp_path / "b"), [1], [True])
    check(start(dataclasses.replace(base, seed=5, seeds=4), tmp_path / "c"), [1, 2, 0, 1], [True, True, False, False])
    check(start(dataclasses.replace(base, seed=0, seeds=2), tmp_path / "d"), [2, 0], [False, False])
    one = dataclasses.replace(base, init_from=tmp_path / "pre" / "seed6", seed=6, seeds=3)
    check(start(one, tmp_path / "e"), [2, 2, 2], [True, False, False])
    # A bonus's networks are drawn as in a whole run, and anew where the seed is another.
    own, whole = start(dataclasses.replace(base, seed=5), tmp_path / "f"), options("cql", countdown_data, "rnd", seed=5)
    assert equal(own.reward.state_dict(), start(whole, tmp_path / "g").reward.state_dict())
    other = start(dataclasses.replace(base, seed=7), tmp_path / "h").reward.state_dict()
    drawn = start(options("cql", countdown_data, "rnd", seed=7), tmp_path / "i").reward.state_dict()
    assert not equal(other, drawn)


def test_optimizers_go_on_or_start_anew(countdown_data: Path, tmp_path: Path) -> None:
    pre = train(options("cql", countdown_data, online_steps=0), tmp_path / "pre")
    config = options("cql", countdown_data, init_from=tmp_path / "pre", policy_lr=7e-5)
    taken = start(config, tmp_path / "a").agent.optimizer.state_dict()
    assert equal(taken["state"], pre.agent.optimizer.state_dict()["state"]) and len(taken["state"]) > 0
    assert taken["param_groups"][0]["lr"] == 7e-5
    fresh = start(dataclasses.replace(config, fresh_optimizers=True), tmp_path / "b").agent
    assert fresh.optimizer.state_dict()["state"] == {}
    assert equal(weights(start(config, tmp_path / "c"), 0), [p.view(1, -1)[0] for m in fresh.modules().values()
                                                            for p in m.parameters()])  # fmt: skip
    with pytest.raises(ConfigError, match="fresh_optimizers"):
        start(options("cql", countdown_data, fresh_optimizers=True), tmp_path / "d")


def test_wsrl_starts_from_a_cql_run(countdown_data: Path, tmp_path: Path) -> None:
    pre = train(options("cql", countdown_data, online_steps=0, seeds=2), tmp_path / "pre")
    config = derived(Pretrained(tmp_path / "pre").config, "wsrl", "qcse")
    assert config.updates_per_step == preset("wsrl", "QcseCountdown-v0").updates_per_step == 4
    assert config.offline_fraction == 0.0 and config.policy_every is None and config.net == pre.config.net
    config = dataclasses.replace(config, init_from=tmp_path / "pre", online_steps=30, learning_starts=10)
    config.bonus.k = 3
    trainer = start(config, tmp_path / "arm")
    assert equal(weights(trainer, 1), weights(pre, 1)) and trainer.agent.online
    trainer.run()
    shown = read_run(tmp_path / "arm" / "seed1")
    assert shown.machine["init_from"]["otherwise"]["algo"] == "cql" and shown.steps.tolist() == [0, 20, 30, 40, 60]
    assert trainer.agent.updates == OFFLINE + 4 * 21
    assert [int(row["step"]) for row in results(tmp_path / "arm" / "seed1")] == [OFFLINE, 40, 60]


def test_defaults_are_the_sources_or_those_of_what_changes() -> None:
    source = preset("cql", "Hopper-v5", bonus="se")
    source.batch_size, source.bonus.weight, source.critic_lr, source.out = 77, 3.0, 1e-3, Path("there")
    same = derived(source)
    assert same == dataclasses.replace(source, out=None)
    other = derived(source, bonus="qcse")
    assert other.bonus == preset("cql", "Hopper-v5", bonus="qcse").bonus and other.batch_size == 77
    wsrl = derived(source, algo="wsrl")
    assert (wsrl.updates_per_step, wsrl.critic_subset, wsrl.net.critics) == (4, 2, 2)
    assert (wsrl.batch_size, wsrl.critic_lr, wsrl.bonus.weight, wsrl.bonus.kind) == (77, 1e-3, 3.0, "se")
    assert wsrl.bonus.references == preset("wsrl", "Hopper-v5", bonus="se").bonus.references
    maze = derived(preset("cal_ql", "antmaze-large-play-v2", "official"), algo="wsrl")
    assert (maze.preset, maze.reward_scale, maze.offline_steps) == ("default", 10.0, 1_000_000)
    with pytest.raises(ConfigError, match="algo: got 'cqll'"):
        derived(source, algo="cqll")


# Another value of every option that does not act offline.
OTHERWISE: dict[str, Any] = {
    "online_steps": 7, "out": "elsewhere", "fresh_optimizers": False, "offline_fraction": 0.25, "updates_per_step": 3,
    "update_after": "episode", "learning_starts": 2, "random_steps": 3, "online_buffer": 50, "overlap": True,
    "eval_every": 7, "eval_episodes": 2, "log_every": 3, "checkpoint_seconds": 0.5, "keep_checkpoints": "evaluations",
    "cql.calibration_online": "task_return", "wsrl.max_target_backup": True, "td3_bc.exploration_noise": 0.7,
    "bonus.kind": "se", "bonus.k": 2,
}  # fmt: skip


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_what_is_said_to_act_online_only_does(algo: str, countdown_data: Path, tmp_path: Path) -> None:
    base = options(algo, countdown_data, offline_steps=8, online_steps=6, policy_every=2)
    names = {*ONLINE_ONLY, *ALGORITHMS[algo].online_only} - {"init_from"}
    assert names <= OTHERWISE.keys()
    key = offline_options(base)

    def offline_end(config: TrainConfig, out: Path) -> dict[str, Any]:
        train(config, out)
        return checkpoint.load(checkpoint.kept(out, 8))

    want = offline_end(base, tmp_path / "base")
    for name in sorted(names | {"bonus.kind", "bonus.k"}):
        changed = from_flat(flat(base) | {name: OTHERWISE[name]})
        assert offline_options(changed) == key, name
        got = offline_end(dataclasses.replace(changed, out=None), tmp_path / name)
        for part in ("agent", "reward", "streams", "environments"):
            if part != "reward" or not name.startswith("bonus"):
                assert equal(got[part]["sampling"] if part == "streams" else got[part],
                             want[part]["sampling"] if part == "streams" else want[part]), (name, part)  # fmt: skip
    for name, value in {"critic_lr": 1e-3, "seed": 3, "net.critics": 3, "discount": 0.5, "policy_every": None}.items():
        assert offline_options(from_flat(flat(base) | {name: value})) != key, name
    turns = dataclasses.replace(base, policy_every=None)
    assert offline_options(turns) != offline_options(dataclasses.replace(turns, updates_per_step=5))
    everywhere = from_flat(flat(base) | {"bonus.kind": "se", "bonus.transitions": "all"})
    assert offline_options(everywhere)["bonus.kind"] == "se" and "bonus.k" not in key


@pytest.fixture(scope="module")
def pre(countdown_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pretrained") / "pre"
    train(options("cql", countdown_data, online_steps=0), out)
    return out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env": "Hopper-v5"}, "env: .* has 'QcseCountdown-v0', got 'Hopper-v5'"),
        ({"net.critic_hidden": [8, 8]}, r"net.critic_hidden: .* has \[16\], got \[8, 8\]"),
        ({"net.critics": 5}, "net.critics"),
        ({"normalize_observations": False}, "normalize_observations"),
        ({"offline_steps": 50}, "offline_steps: .* has done 30, got 50"),
        ({"bonus.kind": "qcse", "bonus.transitions": "all"}, "acts in the offline phase"),
        ({"algo": "iql"}, "iql learns policy .*value.* cql, learnt"),
        ({"algo": "td3_bc"}, "policy_target"),
        ({"online_steps": 0}, "nothing to do"),
        ({"task": "hopper-replay"}, "task: .* has None, got 'hopper-replay'"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], message: str, pre: Path, tmp_path: Path) -> None:
    config = options("cql", Pretrained(pre).config.dataset or Path(), init_from=pre)
    with pytest.raises(ConfigError, match=message):
        start(from_flat(flat(config) | changes), tmp_path / "arm")
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_is_none_is_named(pre: Path, countdown_data: Path, tmp_path: Path, qcse_here) -> None:
    def refused(path: Path, *words: object) -> str:
        code, said = qcse_here("train", "--init-from", path, "--out", tmp_path / "arm", *words)
        assert code == 1 and "Traceback" not in said and not (tmp_path / "arm").exists(), said
        return str(said)

    assert "is not a run folder, nor a checkpoint in one: there is no" in refused(tmp_path / "nowhere")
    missing = refused(pre / checkpoint.KEPT / "step000000031.pt")
    assert "expected the --out of a run" in missing and f"{checkpoint.KEPT}/step{OFFLINE:09d}.pt" in missing
    link = tmp_path / "link.pt"
    link.symlink_to(checkpoint.kept(pre, OFFLINE))
    assert Pretrained(link).step == OFFLINE and Pretrained(link).config.algo == "cql"
    copy = tmp_path / "copy"

    def damaged(name: str, change: Callable[[bytes], bytes]) -> Path:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(pre, copy)
        for path in [copy / name] if name else list(copy.rglob("*.pt")):
            path.write_bytes(change(path.read_bytes()))
        return copy

    kept = f"{checkpoint.KEPT}/step{OFFLINE:09d}.pt"
    words = ["--online-steps", 40]
    assert "is damaged" in refused(damaged(kept, lambda content: content[:-200]), *words)
    assert "is damaged" in refused(damaged(kept, lambda content: content.replace(b"qcse sha256", b"qcse")), *words)
    assert "is not valid JSON" in refused(damaged("config.json", lambda content: content[:-9]), *words)
    out = tmp_path / "unfinished"
    trainer = start(options("cql", countdown_data), out)
    trainer.total_steps = 20
    trainer.run()
    said = refused(out)
    assert "has done 20 of the 30 steps" in said and f"qcse train --resume {out}" in said
    gone = tmp_path / "gone on"
    train(options("cql", countdown_data, keep_checkpoints="none"), gone)
    assert "has not kept the checkpoint of its offline end" in refused(gone, *words)
    online = tmp_path / "online"
    train(options("sac", countdown_data, offline_steps=0, keep_checkpoints="evaluations"), online)
    assert f"{checkpoint.KEPT}/step000000040.pt" in refused(online, *words)
    arm = tmp_path / "fine-tuned"
    train(options("cql", countdown_data, init_from=pre), arm)
    assert f"it started from {pre}; name that one" in refused(arm, *words)
    other = refused(pre, "--preset", "corl", *words)
    assert "preset: got 'corl'" in other and "leave it out" in other
    contradicting = refused(pre, "--env", "Hopper-v5", *words)
    assert "'QcseCountdown-v0', got 'Hopper-v5'" in contradicting


def test_changed_data_are_refused_and_other_data_are_not(countdown_data: Path, tmp_path: Path, capsys) -> None:
    data = tmp_path / "data.hdf5"
    data.write_bytes(countdown_data.read_bytes())
    pre = train(options("cql", data, online_steps=0), tmp_path / "pre")
    config = options("cql", data, init_from=tmp_path / "pre")
    record_random_policy("QcseCountdown-v0", 100, data, seed=1)
    with pytest.raises(CheckpointError, match="has changed since"):
        start(config, tmp_path / "a")
    start(dataclasses.replace(config, dataset=None, algo="sac", discount=0.5), tmp_path / "c")
    assert "warning: discount is 0.5; it was 0.99 when" in capsys.readouterr().err
    other = record_random_policy("QcseCountdown-v0", 100, tmp_path / "other.hdf5", seed=1)
    arm = start(dataclasses.replace(config, dataset=other), tmp_path / "b")
    assert equal(torch.from_numpy(arm.experiment.mean), torch.from_numpy(pre.experiment.mean))
    assert arm.buffer.dataset_size == 100


def test_a_report_tells_pretrainings_apart(countdown_data: Path, tmp_path: Path) -> None:
    for name, changes in {"a": {}, "b": {"critic_lr": 1e-3, "seed": 1}}.items():
        train(options("cql", countdown_data, online_steps=0, **changes), tmp_path / f"pre-{name}")
        seed = int(name == "b")
        train(options("cql", countdown_data, init_from=tmp_path / f"pre-{name}", seed=seed), tmp_path / name)
    train(options("cql", countdown_data, init_from=tmp_path / "pre-a", seed=1), tmp_path / "c")
    runs = {name: read_run(tmp_path / name) for name in "abc"}
    assert [borrowed(run) for run in runs.values()] == [False, False, True]
    groups = group_runs(runs.values())
    assert [[run.path.name for run in group.runs] for group in groups] == [["a", "c"], ["b"]]
    assert "init_from.critic_lr=0.001" in groups[1].label
    (tmp_path / "pre-a").rename(tmp_path / "away")
    assert read_run(tmp_path / "a").steps.tolist() == [30, 40, 60, 70]


def test_any_kept_checkpoint_will_do(countdown_data: Path, tmp_path: Path) -> None:
    trainer = train(options("cql", countdown_data, keep_checkpoints="evaluations"), tmp_path / "run")
    kept = sorted(path.name for path in (tmp_path / "run" / checkpoint.KEPT).iterdir())
    assert kept == [f"step{step:09d}.pt" for step in (20, 30, 40, 60, 70)]
    last = tmp_path / "run" / checkpoint.KEPT / kept[-1]
    arm = start(options("cql", countdown_data, init_from=last, offline_steps=70), tmp_path / "arm")
    assert equal(weights(arm, 0), weights(trainer, 0)) and arm.agent.updates == 70 and arm.step == 70
    arm.run()
    assert [int(row["step"]) for row in results(tmp_path / "arm")] == [70, 80, 100, 110]
    latest = tmp_path / "run" / checkpoint.NAME
    train(options("cql", countdown_data, init_from=latest, offline_steps=70), tmp_path / "other")
    for name in ("arm", "other"):  # a report finds the run of either file
        assert read_run(tmp_path / name).steps.tolist() == [0, 20, 30, 40, 60, 70, 80, 100, 110]


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_run_that_is_extended_equals_a_longer_one(
    seeds: int, countdown_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "SMALLEST_SEGMENT", 8)  # 10 of the shorter ring, 20 of the longer one
    base = options("cal_ql", countdown_data, "qcse", seeds=seeds, checkpoint_seconds=1e-9, log_every=10, eval_every=10)
    longer = dataclasses.replace(base, online_steps=2 * ONLINE)
    train(longer, tmp_path / "whole")
    train(base, tmp_path / "short")
    for _ in range(2):  # the second time it is complete
        trainer = Trainer(longer, tmp_path / "short", checkpoint.load_run(tmp_path / "short"), quiet=True)
        trainer.run()
    assert trainer.finished and trainer.step == OFFLINE + 2 * ONLINE
    for part, whole in zip(folders(tmp_path / "short"), folders(tmp_path / "whole"), strict=True):
        assert results(part) == results(whole) and metrics(part) == metrics(whole)
        assert json.loads((part / "config.json").read_text())["online_steps"] == 2 * ONLINE
    states = [checkpoint.load(tmp_path / name / checkpoint.NAME) for name in ("short", "whole")]
    assert all(equal(states[0][part], states[1][part]) for part in PARTS)
    buffers = [Trainer(longer, tmp_path / name, checkpoint.load_run(tmp_path / name), quiet=True).buffer
               for name in ("short", "whole")]  # fmt: skip
    assert equal(buffers[0].online, buffers[1].online)


def test_extending_and_going_on_by_the_command_line(hopper_data: Path, tmp_path: Path, qcse_here) -> None:
    words = ["train", "--algo", "cql", "--env", "Hopper-v5", "--dataset", hopper_data, "--offline-steps", 10, *QUICK]
    words += ["--eval-every", 20, "--out", "run", "--continue"]
    _, said = qcse_here(*words, "--online-steps", 20, check=True)
    assert "run complete" in said
    assert "is complete (30 steps)" in qcse_here(*words, "--online-steps", 20, check=True)[1]
    code, said = qcse_here(*words, "--online-steps", 20, "--batch-size", 16)
    assert code == 1 and "batch_size: the run has 32" in said
    code, said = qcse_here("train", "--resume", "run", "--online-steps", 10)
    assert code == 1 and "online_steps: the run has 20, the command line says 10" in said
    assert "run complete" in qcse_here("train", "--resume", "run", "--online-steps", 40, check=True)[1]
    assert [row["step"] for row in results(tmp_path / "run")] == ["0", "10", "20", "30", "40", "50"]
    # As a job that is started again has it, from a source and without --out.
    arm = ["train", "--init-from", "run", "--bonus", "qcse", "--bonus.k", 5, "--online-steps", 10, "--continue"]
    assert "run complete: runs/Hopper-v5-cql-qcse-seed0" in qcse_here(*arm, check=True)[1]
    assert "is complete (20 steps)" in qcse_here(*arm, check=True)[1]
    (tmp_path / "run").rename(tmp_path / "elsewhere")  # with --out the source is not asked once the run has begun
    arm += ["--out", "runs/Hopper-v5-cql-qcse-seed0"]
    assert "is complete (20 steps)" in qcse_here(*arm, check=True)[1]
    with open(tmp_path / "runs" / "Hopper-v5-cql-qcse-seed0" / "eval.csv", newline="") as file:
        assert [(row["step"], row["phase"]) for row in csv.DictReader(file)] == [("10", "offline"), ("20", "online")]
