"""The intrinsic reward against brute force in float64, and the traps that a bonus can fall into."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import digamma

from qcse.config import BonusConfig, preset
from qcse.learn.agents.sac import SAC
from qcse.learn.bonuses.moments import RunningMoments
from qcse.learn.buffer import COLUMNS, Batch, ReplayBuffer
from qcse.learn.reward import IntrinsicReward
from qcse.learn.streams import Streams

D, A, DATASET, ONLINE = 4, 2, 50, 60
CPU = torch.device("cpu")


class World:
    """An agent with small networks, a dataset and a filled online buffer, for S seeds."""

    def __init__(self, bonus: BonusConfig, seeds: int = 1, online: int = ONLINE, reward_scale: float = 1.0) -> None:
        config = preset("sac", "Hopper-v5")
        config.net.policy_hidden = config.net.critic_hidden = (8,)
        self.streams = Streams(list(range(seeds)))
        self.agent = SAC(D, A, config, self.streams)
        for critics in (self.agent.critics, self.agent.targets):
            critics.net.weights[-1].data *= 100.0  # Q varies as much as the states, so that it conditions
        generator = torch.Generator().manual_seed(5)

        def columns(rows: int) -> dict[str, torch.Tensor]:
            tail = {"observations": (D,), "next_observations": (D,), "actions": (A,)}
            return {name: torch.randn(rows, *tail.get(name, ()), generator=generator) for name in COLUMNS}

        self.buffer = ReplayBuffer(columns(DATASET), seeds, 2 * ONLINE, D, A, CPU)
        for _ in range(online):
            self.buffer.add(**{name: value.expand(seeds, *value.shape[1:]) for name, value in columns(1).items()})
        self.reward = IntrinsicReward(bonus, self.agent, self.buffer, self.streams, reward_scale)
        self.reward.start_online()

    def batch(self, index: list[int]) -> Batch:
        return self.buffer.gather(torch.tensor([index] * len(self.streams)))

    def bonus(self, index: list[int]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        batch = self.batch(index)
        before = batch.rewards.clone()
        diagnostics = self.reward.add_to(batch)
        return batch.rewards - before, diagnostics


def plain(**changes: object) -> BonusConfig:
    """No scaling and no squash: the formula as it stands."""
    values = {"kind": "qcse", "k": 3, "state_scale": "none", "value_scale": "none", "squash": "none"} | changes
    return BonusConfig(**values)


def online(slots: list[int]) -> list[int]:
    return [DATASET + slot for slot in slots]


def brute_force(world: World, queries: list[int], candidates: list[int], k: int, offset: float) -> np.ndarray:
    """digamma(n + 1) / D + log(2 rho + offset) in float64; candidates are distinct global row numbers."""

    def points(index: list[int]) -> tuple[np.ndarray, np.ndarray]:
        batch = world.batch(index)
        q = world.agent.min_q(batch.observations, batch.actions)
        return batch.observations[0].double().numpy(), q[0].double().numpy()

    states, values = points(queries)
    states_c, values_c = points(candidates)
    out = []
    for row, index in enumerate(queries):
        others = [c for c, candidate in enumerate(candidates) if candidate != index]
        ds = np.linalg.norm(states[row] - states_c[others], axis=1)
        dq = np.abs(values[row] - values_c[others])
        radius = np.sort(np.maximum(ds, dq))[k - 1]
        out.append(digamma((dq < radius).sum() + 1) / D + math.log(2 * radius + offset))
    return np.array(out)


def test_bonus_is_the_formula_over_the_online_rows_of_the_batch() -> None:
    world = World(plain())
    index = [3, 7, *online([0, 5, 9, 20, 33, 41, 59])]
    got, diagnostics = world.bonus(index)
    want = brute_force(world, index[2:], index[2:], 3, 1e-5)
    assert got[0, :2].tolist() == [0.0, 0.0]  # the dataset's rows get none, and are nobody's neighbour
    assert got[0, 2:].numpy() == pytest.approx(want, abs=1e-5)
    assert diagnostics["bonus/covered"].item() == 1.0
    assert diagnostics["bonus/mean"].item() == pytest.approx(want.mean(), abs=1e-5)
    assert diagnostics["bonus/std"].item() == pytest.approx(want.std(), abs=1e-5)


def test_rows_known_to_be_offline_change_nothing() -> None:
    index = [3, 7, 11, *online([0, 5, 9, 20, 33, 9, 59])]
    for transitions in ("online", "all"):
        whole, known = World(plain(transitions=transitions)), World(plain(transitions=transitions))
        one, two = whole.batch(index), known.batch(index)
        want, got = whole.reward.add_to(one), known.reward.add_to(two, offline=3)
        assert torch.allclose(one.rewards, two.rewards, atol=1e-6) and want.keys() == got.keys()
        for name, value in want.items():
            assert torch.allclose(value, got[name], atol=1e-6), name
        assert (two.rewards != known.batch(index).rewards).sum() == (7 if transitions == "online" else 10)


def test_all_transitions_are_candidates_where_asked() -> None:
    world = World(plain(transitions="all"))
    index = [3, 7, 11, *online([0, 5, 9])]
    got, _ = world.bonus(index)
    assert got[0].numpy() == pytest.approx(brute_force(world, index, index, 3, 1e-5), abs=1e-5)


@pytest.mark.parametrize("critic", ["online", "target", "frozen"])
def test_buffer_references_are_the_whole_online_buffer(critic: str) -> None:
    world = World(plain(references="buffer", critic=critic))
    index = [1, *online([4, 4, 17])]
    got, _ = world.bonus(index)
    want = brute_force(world, index[1:], online(list(range(ONLINE))), 3, 1e-5)
    assert got[0, 1:].numpy() == pytest.approx(want, abs=1e-5) and got[0, 0] == 0


def test_sampled_references_are_what_the_stream_draws() -> None:
    world = World(plain(references="sample", reference_size=40))
    state = world.streams.state_dict()
    drawn = sorted(set(world.buffer.sample_online(world.streams, 40)[0].tolist()))
    world.streams.load_state_dict(state)
    index = online([4, 17, 31])
    assert world.bonus(index)[0][0].numpy() == pytest.approx(brute_force(world, index, drawn, 3, 1e-5), abs=1e-5)


def test_which_critic_gives_q() -> None:
    def perturbed(critic: str) -> torch.Tensor:
        world = World(plain(critic=critic))
        with torch.no_grad():
            for parameter in world.agent.critics.parameters():
                parameter.mul_(1.7)
        return world.bonus(online(list(range(12))))[0]

    frozen, target, current = perturbed("frozen"), perturbed("target"), perturbed("online")
    assert torch.equal(frozen, target)  # neither has moved
    assert not torch.equal(frozen, current)


def test_a_transition_drawn_twice_stands_once() -> None:
    world = World(plain())
    distinct = online([0, 5, 9, 20, 33, 41])
    once, _ = world.bonus(distinct)
    twice, diagnostics = world.bonus(distinct + distinct[:4])
    assert torch.equal(twice[0, :6], once[0]) and torch.equal(twice[0, 6:], once[0, :4])
    assert diagnostics["bonus/zero_radius"].item() == 0.0


def test_no_bonus_until_k_plus_one_distinct_candidates() -> None:
    world = World(plain(k=5))
    few, diagnostics = world.bonus(online([0, 1, 2, 3, 4] * 8))
    assert torch.equal(few, torch.zeros_like(few)) and diagnostics["bonus/covered"].item() == 0.0
    enough, diagnostics = world.bonus(online([0, 1, 2, 3, 4, 5] * 8))
    assert diagnostics["bonus/covered"].item() == 1.0 and (enough != 0).all()


@pytest.mark.parametrize("references", ["batch", "sample", "buffer"])
def test_an_empty_online_buffer_gives_no_bonus(references: str) -> None:
    world = World(plain(references=references), online=0)
    got, diagnostics = world.bonus(list(range(10)))
    assert torch.equal(got, torch.zeros_like(got))
    assert all(torch.isfinite(value).all() for value in diagnostics.values())


def test_equal_states_stay_finite_and_are_reported() -> None:
    world = World(plain())
    for name in ("observations", "actions"):
        world.buffer.online[name][:, 0:5] = world.buffer.online[name][:, 0:1]
    got, diagnostics = world.bonus(online(list(range(10))))
    assert diagnostics["bonus/zero_radius"].item() == pytest.approx(0.5)
    # no Q gap is below a radius of 0, so the count is 0
    want = float(digamma(1)) / D + math.log(1e-5)
    assert got[0, :5].numpy() == pytest.approx(np.full(5, want), abs=1e-5)


def test_weight_decays_and_joins_where_asked() -> None:
    index = online(list(range(12)))
    unit, _ = World(plain()).bonus(index)
    world = World(plain(weight=0.5, decay=0.1, join="before"), reward_scale=10.0)
    for factor in (5.0, 4.5, 4.05):
        got, diagnostics = world.bonus(index)
        assert torch.allclose(got, factor * unit, rtol=1e-5, atol=1e-5)
        assert diagnostics["bonus/weight"].item() == pytest.approx(factor)


def test_default_scaling_does_not_saturate_and_the_literal_one_does() -> None:
    generator = torch.Generator().manual_seed(0)
    shares = {}
    for scale in ("standardised_sqrt_d", "standardised"):
        config = BonusConfig(kind="qcse", k=10, state_scale=scale)
        streams = Streams([0])
        agent = SAC(17, A, preset("sac", "Hopper-v5"), streams)
        columns = {"observations": torch.randn(256, 17, generator=generator) * 3.0}
        columns |= {"next_observations": columns["observations"], "actions": torch.zeros(256, A)}
        buffer = ReplayBuffer(None, 1, 256, 17, A, CPU)
        for row in range(256):
            rows = {name: value[row : row + 1] for name, value in columns.items()}
            buffer.add(
                **rows, rewards=torch.zeros(1), bootstrap=torch.ones(1), returns=torch.zeros(1), bonus=torch.zeros(1)
            )
        batch = buffer.gather(buffer.all_online())
        shares[scale] = IntrinsicReward(config, agent, buffer, streams).add_to(batch)["bonus/saturated"].item()
    assert shares["standardised"] > 0.95 and shares["standardised_sqrt_d"] < 0.05


@pytest.mark.parametrize("squash", ["tanh", "standardised_tanh", "none"])
def test_squash(squash: str) -> None:
    index = online(list(range(20)))
    entropy = World(plain()).bonus(index)[0]
    got = World(plain(squash=squash)).bonus(index)[0]
    standardised = (entropy - entropy.mean()) / entropy.std(correction=0)
    want = {"tanh": torch.tanh(entropy), "standardised_tanh": torch.tanh(standardised), "none": entropy}[squash]
    assert torch.allclose(got, want, atol=1e-4)


def test_seeds_do_not_touch_each_other() -> None:
    config = BonusConfig(kind="qcse", k=3)
    both = World(config, seeds=2)
    both.buffer.online["observations"][1] *= 2.0
    got, _ = both.bonus(online(list(range(15))))
    alone, _ = World(config, seeds=1).bonus(online(list(range(15))))
    assert torch.allclose(got[0], alone[0], atol=1e-6)
    assert not torch.allclose(got[1], got[0], atol=1e-3)


def test_no_gradient_flows_through_the_bonus() -> None:
    world = World(plain())
    batch = world.batch(online(list(range(12))))
    batch.observations.requires_grad_(True)
    world.reward.add_to(batch)
    assert not batch.rewards.requires_grad


def test_state_survives_a_checkpoint() -> None:
    config = BonusConfig(kind="qcse", k=3, critic="frozen", squash="standardised_tanh", decay=0.01)
    world, index = World(config), online(list(range(20)))
    world.bonus(index)
    other = World(config)
    other.reward.load_state_dict(world.reward.state_dict())
    assert torch.equal(world.bonus(index[5:])[0], other.bonus(index[5:])[0])


def test_stored_bonus_is_used_as_it_is() -> None:
    world = World(plain(references="buffer", when="store"))
    index = torch.tensor([online([7, 8])])
    stored = world.reward.of_stored(index)
    want = brute_force(world, online([7, 8]), online(list(range(ONLINE))), 3, 1e-5)
    assert stored[0].numpy() == pytest.approx(want, abs=1e-5)
    world.buffer.online["bonus"][:, [7, 8]] = stored
    assert torch.allclose(world.bonus(online([8, 7]))[0][0], stored[0].flip(0), atol=1e-6)


class TestRunningMoments:
    def test_exact_over_equal_batches(self) -> None:
        x = torch.randn(10, 2, 30, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1
        moments = RunningMoments((2, 5), 1000, CPU)
        for batch in x:
            moments.update(batch, torch.ones(2, 30, dtype=torch.bool))
        flat = x.transpose(0, 1).reshape(2, 300, 5)
        assert torch.allclose(moments.mean, flat.mean(1), atol=1e-5)
        assert torch.allclose(moments.variance, flat.var(1, correction=0), rtol=1e-4)

    def test_masked_rows_do_not_count(self) -> None:
        x = torch.tensor([[1.0, 2.0, 3.0, float("nan")], [5.0, 5.0, 5.0, 5.0]])
        valid = torch.tensor([[True, True, True, False], [False] * 4])
        moments = RunningMoments((2,), 10, CPU)
        moments.update(x, valid)
        assert moments.mean.tolist() == [2.0, 0.0] and moments.variance.tolist() == pytest.approx([2 / 3, 1.0])
        assert moments.batches.tolist() == [1.0, 0.0]

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 1e30, -3e38])
    @pytest.mark.parametrize("channels", [(), (3,)])
    def test_a_row_that_is_not_finite_or_overflows_is_left_out(self, bad: float, channels: tuple[int, ...]) -> None:
        x = torch.randn(2, 6, *channels, generator=torch.Generator().manual_seed(0))
        valid = torch.ones(2, 6, dtype=torch.bool)
        got, want = (RunningMoments((2, *channels), 10, CPU) for _ in range(2))
        for batch in range(3):
            bad_x, fewer = x.clone() + batch, valid.clone()
            if batch == 1:
                bad_x[(0, 2, *(0 for _ in channels))] = bad
                bad_x[1] = bad  # a batch without any valid row
                fewer[0, 2], fewer[1] = False, False
            got.update(bad_x, valid)
            want.update(bad_x, fewer)
            for name, moment in want.state_dict().items():
                assert torch.equal(got.state_dict()[name], moment) and moment.isfinite().all()

    def test_forgets_after_its_horizon(self) -> None:
        moments = RunningMoments((1,), 5, CPU)
        for value in [0.0] * 50 + [1.0] * 50:
            moments.update(torch.full((1, 4), value), torch.ones(1, 4, dtype=torch.bool))
        assert moments.mean.item() == pytest.approx(1.0, abs=1e-4)

    def test_a_constant_channel_is_only_centred(self) -> None:
        moments = RunningMoments((1, 1), 5, CPU)
        moments.update(torch.full((1, 4, 1), 3.0), torch.ones(1, 4, dtype=torch.bool))
        assert torch.equal(moments.standardise(torch.full((1, 2, 1), 4.0)), torch.ones(1, 2, 1))
