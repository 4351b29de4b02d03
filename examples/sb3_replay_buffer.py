"""Stable-Baselines3: a replay buffer that adds the bonus to what it samples. python examples/sb3_replay_buffer.py"""

import argparse
from typing import Any

import torch
from bonus import qcse_bonus
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples


class BonusReplayBuffer(ReplayBuffer):
    """Samples with rewards r + weight * tanh(h(s | min Q(s, a))), by the critics of the moment.

    It has no critics before the model is made: set `critic` to the model's afterwards.
    """

    critic: Any = None

    def __init__(self, *args: Any, weight: float = 0.1, k: int = 12, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.weight, self.k = weight, k
        self.bonus_mean = 0.0

    def sample(self, batch_size: int, env: Any = None) -> ReplayBufferSamples:
        batch = super().sample(batch_size, env)
        with torch.no_grad():
            q = torch.cat(self.critic(batch.observations, batch.actions), dim=1).amin(1)
        bonus = qcse_bonus(batch.observations, q, self.k).unsqueeze(1)
        self.bonus_mean = bonus.mean().item()
        return batch._replace(rewards=batch.rewards + self.weight * bonus)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", default="Hopper-v5")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--weight", type=float, default=0.1, help="of the bonus (default: 0.1)")
    arguments = parser.parse_args()
    model = SAC(
        "MlpPolicy",
        arguments.env,
        replay_buffer_class=BonusReplayBuffer,
        replay_buffer_kwargs={"weight": arguments.weight},
        seed=0,
        verbose=1,
    )
    model.replay_buffer.critic = model.critic
    model.learn(arguments.steps, log_interval=4)
    print(f"mean bonus of the last batch: {model.replay_buffer.bonus_mean:.3f}")


if __name__ == "__main__":
    main()
