"""The loop, the agents and the buffer: phases, time limits, returns, seeds, failures."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from support import equal, quick
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from qcse.config import bonus_preset, differences, from_dict, preset, to_dict, validate
from qcse.errors import ConfigError, NonFiniteLossError
from qcse.learn.agents import AGENTS
from qcse.learn.buffer import NO_RETURN, Batch, ReplayBuffer
from qcse.learn.streams import NAMES, Streams
from qcse.runs import checkpoint
from qcse.runs.policy import StoredPolicy
from qcse.runs.trainer import Trainer
from qcse_ext import registration


def test_time_limits_end_episodes_but_not_the_target(tmp_path: Path) -> None:
    trainer = Trainer(quick("sac", random_steps=60, learning_starts=59), tmp_path, quiet=True)
    trainer.run()
    columns, size = trainer.buffer.online, trainer.buffer.size
    assert size == 60
    terminal = columns["next_observations"][0, :size, 0] > 1.0
    at_limit = columns["next_observations"][0, :size, 1] > 0.99
    assert torch.equal(columns["bootstrap"][0, :size] == 0.0, terminal)
    assert (at_limit & ~terminal).any()
    # the state after a time limit is the true one, and the next episode starts at time 0
    starts = torch.nonzero(at_limit | terminal)[:, 0] + 1
    assert torch.equal(columns["observations"][0, starts[starts < size], 1], torch.zeros((starts < size).sum()))


@pytest.mark.parametrize("calibration", ["off", "task_return", "return_with_bonus"])
def test_online_returns_are_known_once_the_episode_is_over(calibration: str, hopper_data: Path, tmp_path: Path) -> None:
    config = quick("cal_ql", "Hopper-v5", dataset=hopper_data, offline_steps=1, online_steps=80, discount=0.9)
    config.cql.calibration_online, config.bonus.kind, config.bonus.k = calibration, "qcse", 3
    config.bonus.weight = 10.0
    trainer = Trainer(config, tmp_path, quiet=True)
    trainer.run()
    columns, size = trainer.buffer.online, trainer.buffer.size
    returns, rewards = columns["returns"][0, :size], columns["rewards"][0, :size].double()
    rows = list(csv.DictReader(open(tmp_path / "train.csv")))
    if calibration == "off":
        assert (returns == NO_RETURN).all()
        assert float(rows[-1]["cal_ql/bound_share"]) == 0.0  # the dataset's rows are not bounded online either
        return
    running = trainer.interaction.slots[0]
    known = [slot for slot in range(size) if slot not in running]
    assert len(known) > 10 and torch.isfinite(returns[known]).all() and (returns[running] == NO_RETURN).all()
    # an episode's last step is where the next observation is not the next row's observation
    chained = (columns["next_observations"][0, : size - 1] == columns["observations"][0, 1:size]).all(-1)
    want = torch.zeros(size, dtype=torch.float64)
    for slot in reversed(known):
        want[slot] = rewards[slot] + (0.9 * want[slot + 1] if slot + 1 < size and chained[slot] else 0.0)
    close = torch.allclose(returns[known].double(), want[known], rtol=1e-5)
    assert close if calibration == "task_return" else not close


def test_a_failed_episode_stays_one_when_its_bonus_counts(tmp_path: Path, hopper_data: Path) -> None:
    """Rewards of nothing but the bias count as paid for ever; the bonus is discounted on top."""
    config = quick("cal_ql", "Hopper-v5", dataset=hopper_data, offline_steps=1, online_steps=40, reward_scale=0.0)
    config.reward_bias, config.cql.calibration_online = -5.0, "return_with_bonus"
    config.bonus.kind, config.bonus.k, config.bonus.weight = "qcse", 3, 1e-3
    trainer = Trainer(config, tmp_path, quiet=True)
    trainer.run()
    returns = trainer.buffer.online["returns"][0, : trainer.buffer.size]
    assert returns[torch.isfinite(returns)].numpy() == pytest.approx(-500.0, abs=0.2)


@pytest.mark.parametrize("update_after", ["step", "episode"])
def test_updates_follow_steps_or_episodes(update_after: str, tmp_path: Path) -> None:
    config = quick("sac", update_after=update_after, updates_per_step=2, learning_starts=12, online_buffer=11)
    trainer = Trainer(config, tmp_path, quiet=True)
    trainer.run()
    # The buffer holds 11 transitions, fewer than learning_starts: those ever added count.
    if update_after == "step":
        assert trainer.agent.updates == 2 * (60 - 11)
    else:
        assert 2 * 30 <= trainer.agent.updates <= 2 * 60 and trainer.agent.updates % 2 == 0


def test_phases_are_logged_and_offline_steps_touch_no_environment(hopper_data: Path, tmp_path: Path) -> None:
    config = quick(
        "cql", "Hopper-v5", dataset=hopper_data, offline_steps=30, online_steps=20, log_every=10, eval_every=20
    )
    trainer = Trainer(config, tmp_path, quiet=True)
    trainer.run()
    assert trainer.buffer.size == 20 and trainer.agent.updates == 50
    rows = list(csv.DictReader(open(tmp_path / "eval.csv")))
    phases = [(int(r["step"]), r["phase"]) for r in rows]
    assert phases == [(0, "offline"), (20, "offline"), (30, "offline"), (40, "online"), (50, "online")]
    assert list(rows[0]) == "step phase return_mean return_std normalized_score episode_length wall_seconds".split()
    assert from_dict(json.loads((tmp_path / "config.json").read_text())) == config
    machine = json.loads((tmp_path / "machine.json").read_text())
    assert machine["data"]["rows"] == 600 and machine["device"] == "cpu"
    assert list((tmp_path / "tensorboard").rglob("events.*"))


@pytest.mark.parametrize(
    ("algo", "bonus", "changes"),
    [
        ("cal_ql", "qcse", {"seeds": 2}),
        ("cql", "se", {"random_steps": 9, "overlap": True}),
        ("rlpd", "rnd", {"update_after": "episode"}),
        ("td3_bc", "vcse", {}),
    ],
)
def test_a_rehearsal_leaves_no_trace(
    algo: str, bonus: str, changes: dict[str, object], hopper_data: Path, tmp_path: Path, monkeypatch
) -> None:
    steps = {"offline_steps": 0 if algo == "rlpd" else 8, "online_steps": 12, "dataset": hopper_data, "log_every": 4}
    config = quick(algo, "Hopper-v5", bonus=bonus_preset(bonus), **steps, **changes)
    config.bonus.k = 3
    if config.offline_fraction is None:
        config.bonus.references = "sample"
    seen: list[int] = []

    class Counting(gym.Wrapper):
        def step(self, action):
            seen.append(1)
            return self.env.step(action)

    def run(name: str) -> None:
        Trainer(config, tmp_path / name, quiet=True, wrap_env=Counting).run()

    run("with")
    assert len(seen) == 12 * config.seeds
    monkeypatch.setattr("qcse.runs.trainer.rehearse", lambda experiment, out: None)
    run("without")
    timed = ("wall_seconds", "steps_per_second")
    for path in sorted((tmp_path / "with").rglob("*.csv")):
        tables = []
        for name in ("with", "without"):
            with open(tmp_path / name / path.relative_to(tmp_path / "with"), newline="") as file:
                tables.append([{k: v for k, v in row.items() if k not in timed} for row in csv.DictReader(file)])
        assert tables[0] == tables[1] and len(tables[0]) >= 2
    a, b = (checkpoint.load(tmp_path / name / checkpoint.NAME) for name in ("with", "without"))
    for part in ("agent", "reward", "buffer", "streams", "environments", "episodes"):
        assert equal(a[part], b[part]), part
    assert {p.name for p in (tmp_path / "with").iterdir()} == {p.name for p in (tmp_path / "without").iterdir()}


@pytest.mark.parametrize("where", ["step", "end", "bonus", "save"])
def test_what_fails_online_fails_before_pre_training(
    where: str, hopper_data: Path, tmp_path: Path, monkeypatch
) -> None:
    config = quick("cal_ql", "Hopper-v5", dataset=hopper_data, offline_steps=500, online_steps=10)
    config.bonus, config.bonus.k, config.cql.calibration_online = bonus_preset("qcse"), 3, "task_return"

    def fails(*args: object, **kwargs: object) -> None:
        raise OverflowError(where)

    if where == "step":
        monkeypatch.setattr("gymnasium.envs.mujoco.hopper_v5.HopperEnv.step", fails)
    elif where == "bonus":
        monkeypatch.setattr("qcse.learn.reward.IntrinsicReward.add_to", fails)
    else:
        place = {"end": "interaction.Interaction.end_episode", "save": "experiment.Experiment.state_dict"}[where]
        monkeypatch.setattr(f"qcse.runs.{place}", fails)
    trainer = Trainer(config, tmp_path / "run", quiet=True)
    with pytest.raises(Exception, match=where):
        trainer.run()
    assert trainer.step == 0 and not (tmp_path / "run").exists()


def test_bonus_changes_online_learning_only(hopper_data: Path, tmp_path: Path) -> None:
    def final(name: str, kind: str, online_steps: int) -> dict[str, torch.Tensor]:
        config = quick("cql", "Hopper-v5", dataset=hopper_data, offline_steps=30, online_steps=online_steps)
        config.offline_fraction, config.bonus.kind, config.bonus.k = 0.5, kind, 3
        Trainer(config, tmp_path / name, quiet=True).run()
        return checkpoint.load(tmp_path / name / checkpoint.NAME)["agent"]["modules"]["critics"]

    def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
        return all(torch.equal(a[name], b[name]) for name in a)

    assert same(final("a", "none", 0), final("b", "qcse", 0))
    assert not same(final("c", "none", 20), final("d", "qcse", 20))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_batch(hopper_data: Path, tmp_path: Path) -> None:
    config = quick("cql", "Hopper-v5", dataset=hopper_data, offline_steps=50, critic_lr=1e30)
    with pytest.raises(NonFiniteLossError, match=r"nonfinite_batch\.pt") as error:
        Trainer(config, tmp_path, quiet=True).run()
    assert "step" in str(error.value) and "--critic-lr" in str(error.value)
    saved = checkpoint.load(tmp_path / "nonfinite_batch.pt")
    assert saved["batch"]["observations"].shape == (1, 16, 11) and saved["noise"]["random"].shape == (1, 16, 2, 3)


@pytest.mark.parametrize("algo", list(AGENTS))
def test_seeds_in_one_batch_equal_seeds_alone(algo: str) -> None:
    seeds, state_dim, action_dim, rows = [3, 8, 21], 4, 2, 12
    config = quick(algo)
    generator = torch.Generator().manual_seed(0)
    dataset = {
        "observations": torch.randn(50, state_dim, generator=generator),
        "actions": torch.rand(50, action_dim, generator=generator) * 2 - 1,
        "next_observations": torch.randn(50, state_dim, generator=generator),
        **{name: torch.randn(50, generator=generator) for name in ("rewards", "returns", "bonus")},
        "bootstrap": torch.ones(50),
    }

    def train(which: list[int]) -> dict[str, torch.Tensor]:
        streams = Streams(which)
        agent = AGENTS[algo](state_dim, action_dim, config, streams)
        buffer = ReplayBuffer(dataset, len(which), 10, state_dim, action_dim, torch.device("cpu"))
        for _ in range(5):
            agent.update(buffer.sample(streams, rows, None), agent.draw_noise(streams, rows))
        return dict(agent.policy.named_parameters()) | {
            f"critic.{name}": value.unflatten(0, (len(which), -1)) for name, value in agent.critics.named_parameters()
        }

    together = train(seeds)
    for position, seed in enumerate(seeds):
        for name, value in train([seed]).items():
            assert torch.allclose(value[0], together[name][position], rtol=1e-4, atol=1e-6), (seed, name)


def test_seeds_trained_together_equal_those_trained_alone(hopper_data: Path, tmp_path: Path) -> None:
    def train(name: str, seed: int, seeds: int) -> Trainer:
        config = quick("cal_ql", "Hopper-v5", dataset=hopper_data, offline_steps=20, online_steps=15, seed=seed)
        config.seeds, config.eval_every, config.bonus.kind, config.bonus.k = seeds, 10, "qcse", 2
        trainer = Trainer(config, tmp_path / name, quiet=True)
        trainer.run()
        return trainer

    together = train("together", 4, 3)
    for s, seed in enumerate((4, 5, 6)):
        alone = train(f"alone{seed}", seed, 1)
        assert torch.allclose(
            alone.buffer.online["rewards"][0, :15], together.buffer.online["rewards"][s, :15], atol=1e-4
        )
        for name, value in alone.agent.policy.named_parameters():
            assert torch.allclose(value[0], dict(together.agent.policy.named_parameters())[name][s], atol=1e-4), name
        folder = tmp_path / "together" / f"seed{seed}"
        stored = from_dict(json.loads((folder / "config.json").read_text()))
        assert stored.seed == seed and stored.seeds == 1
        rows = [list(csv.DictReader(open(path / "eval.csv"))) for path in (folder, tmp_path / f"alone{seed}")]
        for a, b in zip(*rows, strict=True):
            assert a["step"] == b["step"] and float(a["return_mean"]) == pytest.approx(
                float(b["return_mean"]), rel=1e-3
            )
        policy = StoredPolicy(folder)
        assert (policy.step, policy.position) == (35, s)
    returns = [
        row["return_mean"] for folder in together.folder.folders for row in csv.DictReader(open(folder / "eval.csv"))
    ]
    assert len(set(returns)) > len(returns) / 2  # the seeds are not copies of each other


class NoHostRead(TorchDispatchMode):
    """Fails on what would wait for a GPU: reading a value, or a shape that depends on values."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in self.FORBIDDEN, f"{func} reads a value back to the host"
        if name == "index":
            assert not any(i is not None and i.dtype == torch.bool for i in args[1]), "a mask as an index"
        return func(*args, **(kwargs or {}))


class NoHostCall(TorchFunctionMode):
    """Fails on methods that would copy from a GPU; on a CPU some of them launch nothing that NoHostRead could see."""

    FORBIDDEN = ("cpu", "numpy", "tolist", "item", "__bool__", "__float__", "__int__", "__index__")

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        assert name not in self.FORBIDDEN, f"{name} reads a value back to the host"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("references", ["batch", "sample", "buffer"])
@pytest.mark.parametrize("algo", list(AGENTS))
def test_the_update_reads_nothing_back(
    algo: str, references: str, hopper_data: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(registration, "has_kernel", lambda name, x: False)  # the path of a GPU
    config = quick(algo, "Hopper-v5", dataset=hopper_data, offline_steps=0, online_steps=20, seeds=2)
    config.bonus.kind, config.bonus.k, config.bonus.references, config.cql.lagrange = "qcse", 3, references, True
    config.bonus.squash = "standardised_tanh"
    trainer = Trainer(config, tmp_path, quiet=True)
    trainer.run()
    for read in (Tensor.item, Tensor.cpu, Tensor.numpy, Tensor.tolist, bool, float, torch.nonzero):
        with pytest.raises(AssertionError, match="reads a value back"), NoHostRead(), NoHostCall():
            read(torch.ones(1))
    monkeypatch.setattr(Trainer, "check_finite", lambda self, metrics: None)  # on a GPU it runs when logging
    with NoHostRead(), NoHostCall():
        for _ in range(2):  # one of them moves the policy
            trainer.update()


@pytest.mark.parametrize(
    ("bonus", "references"), [("vcse", "batch"), ("vcse", "buffer"), ("se", "sample"), ("rnd", "batch")]
)
def test_no_bonus_reads_anything_back(
    bonus: str, references: str, hopper_data: Path, tmp_path: Path, monkeypatch
) -> None:
    config = quick("sac", "Hopper-v5", dataset=hopper_data, offline_steps=5, online_steps=20, seeds=2)
    config.bonus = bonus_preset(bonus)
    config.bonus.k, config.bonus.references, config.bonus.hidden = 3, references, (8,)
    config.random_steps = config.learning_starts = 0
    trainer = Trainer(config, tmp_path, quiet=True)
    trainer.run()
    monkeypatch.setattr(Trainer, "check_finite", lambda self, metrics: None)
    monkeypatch.setattr(registration, "has_kernel", lambda name, x: False)
    with NoHostRead(), NoHostCall():
        trainer.update()


def test_targets_follow_and_frozen_critics_get_no_gradient() -> None:
    config = quick("cql", target_rate=0.25)
    streams = Streams([0])
    agent = AGENTS["cql"](3, 1, config, streams)
    before = [p.clone() for p in agent.targets.parameters()]
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(1, 16, generator=generator)
    states = torch.randn(1, 16, 3, generator=generator)
    index = torch.zeros(1, 16, dtype=torch.int64)
    batch = Batch(states, torch.tanh(states[..., :1]), one, states, torch.ones(1, 16), one, one, index, index > 0)
    agent.update(batch, agent.draw_noise(streams, 16))
    for old, target, new in zip(before, agent.targets.parameters(), agent.critics.parameters(), strict=True):
        assert torch.allclose(target, 0.75 * old + 0.25 * new, atol=1e-6)
    losses = agent.losses(batch, agent.draw_noise(streams, 16))
    gradients = torch.autograd.grad(losses.policy, list(agent.critics.parameters()), allow_unused=True)
    assert all(gradient is None for gradient in gradients)


class TestBuffer:
    @staticmethod
    def buffer(rows: int, capacity: int) -> ReplayBuffer:
        dataset = {
            name: torch.arange(rows, dtype=torch.float32).view(rows, *[1] * dim).expand(rows, *[1] * dim)
            for name, dim in (("observations", 1), ("actions", 1), ("next_observations", 1), ("rewards", 0),
                              ("bootstrap", 0), ("returns", 0), ("bonus", 0))
        }  # fmt: skip
        return ReplayBuffer(dataset, 2, capacity, 1, 1, torch.device("cpu"))

    @staticmethod
    def add(buffer: ReplayBuffer, value: float) -> int:
        row, scalar = torch.full((2, 1), value), torch.full((2,), value)
        return buffer.add(observations=row, actions=row, next_observations=row, rewards=scalar, bootstrap=scalar,
                          returns=scalar, bonus=scalar)  # fmt: skip

    def test_rows_are_found_by_their_number(self) -> None:
        buffer = self.buffer(5, 3)
        assert [self.add(buffer, 100.0 + i) for i in range(4)] == [0, 1, 2, 0]  # the oldest is overwritten
        batch = buffer.gather(torch.tensor([[0, 4, 5, 6], [7, 1, 5, 2]]))
        assert batch.rewards.tolist() == [[0, 4, 103, 101], [102, 1, 103, 2]]
        assert batch.observations[..., 0].tolist() == batch.rewards.tolist()
        assert batch.online.tolist() == [[False, False, True, True], [True, False, True, False]]

    def test_shares(self) -> None:
        buffer, streams = self.buffer(5, 3), Streams([0, 1])
        assert not buffer.sample(streams, 64, 0.5).online.any()  # nothing collected yet
        self.add(buffer, 9.0)
        assert buffer.sample(streams, 64, 0.25).online.sum(1).tolist() == [48, 48]
        mixed = buffer.sample(streams, 6000, None).online.float().mean(1)
        assert mixed.tolist() == pytest.approx([1 / 6, 1 / 6], abs=0.03)

    @pytest.mark.parametrize("segment", [4, 10_000])
    def test_a_checkpoint_restores_what_the_ring_holds(self, segment: int, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.setattr(checkpoint, "SEGMENT", segment)
        monkeypatch.setattr(checkpoint, "SMALLEST_SEGMENT", 4 if segment == 4 else 10_000)
        store = checkpoint.Checkpoints(tmp_path)
        buffer = self.buffer(5, 16)
        for added in range(1, 60):
            self.add(buffer, float(added))
            if added % 3 and added != 59:
                continue
            store.save({}, buffer, settled=max(0, added - 2))
            state = checkpoint.load_run(tmp_path)
            assert state is not None
            other = self.buffer(5, 16)
            checkpoint.load_buffer(tmp_path, other, state)
            assert other.added == added
            got, want = (b.gather(b.all_online()) for b in (other, buffer))
            assert torch.equal(got.rewards, want.rewards) and torch.equal(got.observations, want.observations)
            # at most a segment and what is not settled is written again each time
            assert state["buffer"]["rows"]["rewards"].shape[1] <= (4 + 2 if segment == 4 else 16)
            # those of the last two checkpoints
            assert len(list(tmp_path.glob("buffer/*.pt"))) <= (6 if segment == 4 else 0)


def test_streams_are_independent_and_restorable() -> None:
    a, b = Streams([1, 2]), Streams([2])
    assert torch.equal(a.normal("update", (3,))[1], b.normal("update", (3,))[0])
    state = a.state_dict()
    first = {name: a.normal(name, (4,)) for name in NAMES}
    assert len({tuple(value.flatten().tolist()) for value in first.values()}) == len(NAMES)
    a.load_state_dict(state)
    assert all(torch.equal(a.normal(name, (4,)), first[name]) for name in NAMES)
    assert set(a.integers("sampling", 3, (200,)).unique().tolist()) == {0, 1, 2}


@pytest.mark.parametrize("env", ["Hopper-v5", "Walker2d-v4", "AntMaze_UMaze-v4", "Other-v0"])
@pytest.mark.parametrize("algo", list(AGENTS))
def test_presets_are_valid_and_survive_json(algo: str, env: str) -> None:
    config = preset(algo, env)
    config.dataset = Path("data.hdf5")
    validate(config)
    again = from_dict(json.loads(json.dumps(to_dict(config))))
    assert again == config and differences(config, again) == []
    again.cql.alpha = 7.0
    assert differences(config, again) == [("cql.alpha", config.cql.alpha, 7.0)]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"discount": 1.0}, "discount"),
        ({"batch_size": 0}, "batch_size"),
        ({"seeds": 0}, "seeds"),
        ({"learning_starts": 60}, "learning_starts"),
        ({"seeds": 2, "update_after": "episode"}, "update_after"),
        ({"offline_fraction": 1.5}, "offline_fraction"),
        ({"bonus.k": 0}, "bonus.k"),
        ({"bonus.when": "store"}, "bonus.when"),
        ({"bonus.critic": "frozen"}, "bonus.critic"),
        ({"bonus.references": "buffer", "bonus.transitions": "all"}, "bonus.transitions"),
        ({"cql.temperature": 0.0}, "cql.temperature"),
        ({"net.policy_hidden": ()}, "net.policy_hidden"),
    ],
)
def test_values_that_cannot_work_are_refused(changes: dict[str, object], word: str) -> None:
    config = quick("sac")
    config.bonus.kind = "qcse"
    config.bonus.k = 3
    for name, value in changes.items():
        owner, _, leaf = name.rpartition(".")
        setattr(getattr(config, owner) if owner else config, leaf, value)
    with pytest.raises(ConfigError, match=word.replace(".", r"\.")):
        validate(config)


def test_options_that_earlier_versions_lacked_have_their_meaning() -> None:
    config = preset("cql", "Hopper-v5")
    data = to_dict(config)
    del data["action_units"]
    assert from_dict(data) == config


def test_unknown_stored_option_is_named() -> None:
    data = to_dict(quick("sac"))
    data["cql"]["alhpa"] = 1.0
    with pytest.raises(ConfigError, match=r"cql\.alhpa"):
        from_dict(data)
