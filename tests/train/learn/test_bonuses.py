"""The bonuses beside QCSE: against published code, brute force and the properties that they are meant to have."""

from __future__ import annotations

import copy
import functools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import record_vcse
import torch

import qcse_ext.bonus
from qcse.config import BonusConfig, bonus_preset, preset, validate
from qcse.errors import ConfigError
from qcse.learn.bonuses import qcse as conditioned
from qcse.learn.bonuses.neighbours import Neighbours
from qcse.learn.bonuses.qcse import QConditionedEntropy
from qcse.learn.buffer import Batch, ReplayBuffer
from qcse.learn.reward import IntrinsicReward
from qcse.learn.streams import Streams

CPU = torch.device("cpu")
VECTORS = json.loads((Path(__file__).parent / "vcse_vectors.json").read_text())


class Table:
    """A learner without critics whose value of state i is given: what a bonus may ask of any algorithm."""

    critics = targets = torch.nn.Module()

    def __init__(self, values: np.ndarray) -> None:
        self.table = torch.from_numpy(values)

    def act(self, observations: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        return observations[..., :1]

    def min_q(self, observations: torch.Tensor, actions: torch.Tensor, critics: object = None) -> torch.Tensor:
        return self.table.expand(observations.shape[:2])


def world(
    config: BonusConfig, states: np.ndarray, values: np.ndarray | None = None, seeds: int = 1
) -> tuple[IntrinsicReward, Batch]:
    """The bonus, and a batch of all online transitions; states [N, D] are states and next states alike."""
    rows, dim = states.shape
    buffer = ReplayBuffer(None, seeds, rows, dim, 1, CPU)
    for row in torch.from_numpy(states.astype(np.float32)):
        scalars = {name: torch.zeros(seeds) for name in ("rewards", "bootstrap", "returns", "bonus")}
        both = {name: row.expand(seeds, dim) for name in ("observations", "next_observations")}
        buffer.add(**both, actions=torch.zeros(seeds, 1), **scalars)
    learner = Table(np.zeros(rows, np.float32) if values is None else values)
    reward = IntrinsicReward(config, learner, buffer, Streams(list(range(seeds))))
    reward.start_online()
    return reward, buffer.gather(buffer.all_online())


def bonus_of(reward: IntrinsicReward, batch: Batch, **options: object) -> torch.Tensor:
    return reward.compute(batch, batch.online, **options)[0]


def tensors(state: object) -> list[torch.Tensor]:
    """All of them in nested dictionaries and lists."""
    if isinstance(state, torch.Tensor):
        return [state]
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return [x for part in parts for x in tensors(part)]


class TestVcse:
    def test_vectors_are_those_of_its_code(self) -> None:
        checkout = os.environ.get("QCSE_VCSE_CHECKOUT")
        if not checkout:
            pytest.skip("runs VCSE's own code: set QCSE_VCSE_CHECKOUT to the folder of a checkout of kingdy2002/VCSE")
        for name, found in record_vcse.record(Path(checkout)).items():
            for kind, values in found.items():
                np.testing.assert_allclose(values, VECTORS[name][kind], rtol=0, atol=1e-6)

    @pytest.mark.parametrize("name", record_vcse.CASES)
    @pytest.mark.parametrize("convention", ["published", "corrected"])
    def test_preset_equals_its_code(self, name: str, convention: str) -> None:
        config = bonus_preset("vcse")
        config.k, config.count_self = record_vcse.CASES[name][2], convention == "published"
        got = bonus_of(*world(config, *record_vcse.inputs(name)))
        np.testing.assert_allclose(got[0], VECTORS[name][convention], rtol=0, atol=1e-5)

    def test_the_conventions_differ(self) -> None:
        for name in record_vcse.CASES:
            assert np.abs(np.subtract(VECTORS[name]["published"], VECTORS[name]["corrected"])).mean() > 0.01

    def test_buffer_references_equal_a_batch_of_everything(self) -> None:
        reward, batch = world(bonus_preset("vcse"), *record_vcse.inputs("hopper"))
        rows = reward.buffer.all_online()
        np.testing.assert_allclose(
            bonus_of(reward, batch, references=rows)[0], bonus_of(reward, batch)[0], rtol=0, atol=1e-6
        )

    def test_one_neighbour_cannot_be_oneself(self) -> None:
        config = preset("sac", "Hopper-v5", bonus="vcse")
        config.bonus.k, config.bonus.count_self = 1, True
        with pytest.raises(ConfigError, match=r"bonus\.k.*its own only neighbour"):
            validate(config)


class TestStateEntropy:
    @pytest.mark.parametrize("name", record_vcse.CASES)
    def test_raw_states_equal_vcses_state_entropy(self, name: str) -> None:
        config = bonus_preset("se")
        config.k, config.encoder, config.state_scale, config.count_self = record_vcse.CASES[name][2], "none", "d", True
        got = bonus_of(*world(config, *record_vcse.inputs(name)))
        np.testing.assert_allclose(got[0], VECTORS[name]["state_entropy"], rtol=0, atol=1e-5)

    def test_random_encoder_against_brute_force(self) -> None:
        config = bonus_preset("se")
        states, _ = record_vcse.inputs("hopper")
        reward, batch = world(config, states, seeds=2)
        got = bonus_of(reward, batch)
        x = ((states - states.mean(0)) / states.std(0)).astype(np.float64)
        encoder = reward.bonus.encoder
        for seed in range(2):
            features = x
            for layer, (weight, bias) in enumerate(zip(encoder.weights, encoder.biases, strict=True)):
                features = features @ weight[seed].double().numpy() + bias[seed].double().numpy()
                features = np.maximum(features, 0.0) if layer < len(encoder.weights) - 1 else features
            centred = features - features.mean(1, keepdims=True)
            features = centred / np.sqrt(centred.var(1, keepdims=True) + 1e-5)
            distance = np.linalg.norm(features[:, None] - features[None], axis=-1)
            want = np.log1p(np.sort(distance, axis=1)[:, config.k])  # column 0 is the point itself
            np.testing.assert_allclose(got[seed], want, rtol=0, atol=1e-4)
        assert features.shape == (96, 50) and not torch.allclose(got[0], got[1], atol=1e-2)

    def test_nothing_learns(self) -> None:
        reward, batch = world(bonus_preset("se"), record_vcse.inputs("hopper")[0])
        assert not any(parameter.requires_grad for parameter in reward.bonus.encoder.parameters())
        first = bonus_of(reward, batch)
        torch.testing.assert_close(bonus_of(reward, batch), first)


class TestRnd:
    @staticmethod
    def trained(seeds: int = 1, updates: int = 300) -> tuple[IntrinsicReward, Batch, Batch]:
        """A predictor that has seen half of the states, that half, and the other, which lies elsewhere."""
        config = bonus_preset("rnd")
        config.hidden, config.embedding, config.predictor_lr = (32, 32), 16, 1e-3
        states = np.random.default_rng(0).standard_normal((128, 3))
        states[64:] += 2.0
        reward, batch = world(config, states, seeds=seeds)
        old, new = (reward.buffer.gather(batch.index[:, part]) for part in (slice(0, 64), slice(64, 128)))
        for _ in range(updates):
            reward.add_to(old)
        return reward, old, new

    def test_error_falls_where_it_has_been_and_not_elsewhere(self) -> None:
        reward, old, new = self.trained(updates=1)
        first = reward.bonus.compute(old, old.online, learn=False)[0].mean()
        reward, old, new = self.trained()
        seen, unseen = (reward.bonus.compute(b, b.online, learn=False)[0].mean() for b in (old, new))
        assert seen < 0.2 * first and unseen > 3.0 * seen

    def test_error_is_the_formula(self) -> None:
        reward, _, new = self.trained(seeds=2, updates=20)
        bonus = reward.bonus
        got, covered, _ = bonus.compute(new, new.online, learn=False)
        x = (new.next_observations - bonus.states.mean[:, None]) / bonus.states.variance.sqrt()[:, None]
        assert (x.abs() > 5.0).any() or x.abs().max() > 2.0
        for seed in range(2):
            out = []
            for net in (bonus.predictor, bonus.target):
                h = x[seed].clamp(-5, 5).double()
                for layer, (w, b) in enumerate(zip(net.weights, net.biases, strict=True)):
                    h = h @ w[seed].double() + b[seed].double()
                    h = h.relu() if layer + 1 < len(net.weights) else h
                out.append(h)
            want = (out[0] - out[1]).square().mean(-1)
            torch.testing.assert_close(got[seed].double(), want, rtol=1e-4, atol=1e-6)
        assert covered.all()

    def test_scaled_by_its_running_spread(self) -> None:
        reward, old, _ = self.trained(updates=5)
        raw = reward.bonus.compute(old, old.online, learn=False)[0]
        spread = reward.novelties.variance.sqrt()
        torch.testing.assert_close(bonus_of(reward, old, learn=False), raw / spread[:, None])

    def test_only_eligible_rows_are_learnt_from(self) -> None:
        reward, old, new = self.trained(updates=1)
        before = [p.clone() for p in reward.bonus.predictor.parameters()]
        nobody = torch.zeros_like(new.online)
        bonus, diagnostics = reward.compute(new, nobody)
        assert not bonus.any() and diagnostics["loss/predictor"].item() == 0.0
        # Adam's momentum moves the weights still, by the earlier gradients alone: nothing of this batch is in them
        other, _, _ = self.trained(updates=1)
        other.compute(old, torch.zeros_like(old.online))
        for a, b, c in zip(
            reward.bonus.predictor.parameters(), other.bonus.predictor.parameters(), before, strict=True
        ):
            assert torch.equal(a, b) and not torch.equal(a, c)

    def test_seeds_do_not_touch_each_other(self) -> None:
        both, old, _ = self.trained(seeds=2, updates=30)
        alone, batch, _ = self.trained(seeds=1, updates=30)
        torch.testing.assert_close(
            bonus_of(both, old, learn=False)[0], bonus_of(alone, batch, learn=False)[0], rtol=1e-3, atol=1e-4
        )
        assert not torch.allclose(*bonus_of(both, old, learn=False), atol=1e-2)

    def test_it_is_computed_when_sampled(self) -> None:
        config = preset("sac", "Hopper-v5", bonus="rnd")
        config.bonus.when = "store"
        with pytest.raises(ConfigError, match=r"bonus\.when.*predictor learns"):
            validate(config)


class TestRowsThatAreNotFinite:
    """One such row is left out, and it alone: at once, and in what is remembered."""

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e38])
    @pytest.mark.parametrize(
        ("kind", "options"),
        [
            ("qcse", {}),
            ("vcse", {}),
            ("vcse", {"value_scale": "batch"}),
            ("qcse", {"value_scale": "standardised", "state_scale": "d"}),
            ("se", {}),
            ("rnd", {}),
        ],
    )
    @pytest.mark.parametrize("references", [False, True])
    def test_every_bonus(self, kind: str, options: dict, bad: float, references: bool) -> None:
        config = bonus_preset(kind)
        for name, value in options.items():
            setattr(config, name, value)
        states, values = record_vcse.inputs("hopper")
        (good, batch), (tried, other) = world(config, states, values), world(config, states, values)
        rows = tried.buffer.all_online() if references else None
        for turn in range(3):
            spoilt, eligible = copy.deepcopy(other), batch.online.clone()
            if turn == 1:
                spoilt.observations[0, 5, 1] = spoilt.next_observations[0, 5, 1] = bad
                eligible[0, 5] = False
            got, _ = tried.compute(spoilt, spoilt.online, rows)
            want, _ = good.compute(batch, eligible, rows)
            assert got.isfinite().all()
            if bad != 3e38:  # which is a neighbour, in value at least
                torch.testing.assert_close(got, want)
        state = tried.bonus.state_dict()
        assert all(x.isfinite().all() for x in tensors(state)) and (got != 0).sum() > 80

    def test_one_of_two_rows_of_a_transition(self) -> None:
        config = bonus_preset("qcse")
        states, values = record_vcse.inputs("hopper")
        for fused in (True, False):
            reward, batch = world(config, states, values)
            if not fused:
                reward.bonus.joint = None
            batch = reward.buffer.gather(batch.index[:, :40].repeat(1, 2))
            reward.bonus.agent.table = torch.from_numpy(values[:40]).repeat(2)
            batch.observations[0, 3] = float("nan")
            bonus = bonus_of(reward, batch)
            assert bonus[0, 3] == 0 and bonus[0, 43] != 0


class TestFusedBatch:
    """On a CPU the bonus of a batch is one operator where states and Q are standardised: same as operation by
    operation, over several batches of running moments."""

    @pytest.mark.parametrize("scale", ["standardised", "standardised_sqrt_d", "standardised_d"])
    @pytest.mark.parametrize("count_self", [False, True])
    @pytest.mark.parametrize("rows", [5, 24, 200])  # 5: fewer than k
    def test_equals_the_separate_operations(
        self, scale: str, count_self: bool, rows: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = bonus_preset("qcse")
        config.state_scale, config.value_scale, config.count_self, config.k = scale, "standardised", count_self, 6
        states, values = record_vcse.inputs("hopper")
        fused, separate = (world(config, states, values, seeds=3)[0] for _ in range(2))
        calls = []
        for reward, compute in ((fused, QConditionedEntropy.compute), (separate, Neighbours.compute)):
            monkeypatch.setattr(reward.bonus, "compute", functools.partial(compute, reward.bonus))
        monkeypatch.setattr(
            conditioned, "batch_entropy", lambda *args: calls.append(args) or qcse_ext.bonus.batch_entropy(*args)
        )
        generator = torch.Generator().manual_seed(0)
        for turn in range(4):
            index = torch.randint(len(states), (3, rows), generator=generator)
            part = fused.buffer.gather(index)
            eligible = torch.rand(3, rows, generator=generator) < (0.0 if turn == 2 else 0.9)
            for reward in (fused, separate):
                reward.bonus.agent.table = torch.from_numpy(values)[index]
            for learn in (True, False):
                got, want = (reward.bonus.compute(part, eligible, learn=learn) for reward in (fused, separate))
                torch.testing.assert_close(got[0], want[0], rtol=1e-5, atol=1e-5)
                assert torch.equal(got[1], want[1]) and got[1].any() == (rows > 5 and turn != 2)
                torch.testing.assert_close(got[2], want[2])
            torch.testing.assert_close(fused.bonus.state_dict(), separate.bonus.state_dict())
        assert len(calls) == (8 if rows > 5 else 0)


@pytest.mark.parametrize("kind", ["qcse", "vcse", "se", "rnd"])
def test_state_survives_a_checkpoint(kind: str, tmp_path: Path) -> None:
    states, values = record_vcse.inputs("hopper")

    def fresh(seed: int) -> tuple[IntrinsicReward, Batch]:
        reward, batch = world(preset("sac", "Hopper-v5", bonus=kind).bonus, states, values)
        if seed:  # other random networks: what is loaded must replace them
            reward = IntrinsicReward(reward.config, Table(values), reward.buffer, Streams([seed]))
        return reward, batch

    (one, batch), (two, _) = fresh(0), fresh(7)
    for _ in range(3):
        one.add_to(batch)
    torch.save(one.state_dict(), tmp_path / "state.pt")
    two.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(2):
        a, b = one.add_to(batch), two.add_to(batch)
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_defaults_come_from_the_bonus() -> None:
    config = preset("cal_ql", "antmaze-umaze-v2", bonus="vcse").bonus
    assert (config.weight, config.k, config.critic, config.action) == (0.1, 12, "target", "policy")
    assert preset("cal_ql", "Hopper-v5", bonus="qcse").bonus.k == 10
    with pytest.raises(ConfigError, match="expected one of none, qcse, vcse, se, rnd"):
        bonus_preset("icm")
