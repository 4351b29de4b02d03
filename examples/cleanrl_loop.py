"""A training loop in one file, in CleanRL's manner (DDPG), with the bonus. python examples/cleanrl_loop.py"""

import argparse
import copy

import gymnasium as gym
import numpy as np
import torch
from bonus import qcse_bonus
from torch import nn


def mlp(inputs: int, outputs: int, *last: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, outputs), *last)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", default="Pendulum-v1")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--weight", type=float, default=0.1, help="of the bonus (default: 0.1)")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    env = gym.make(arguments.env)
    size, actions, high = env.observation_space.shape[0], env.action_space.shape[0], float(env.action_space.high[0])
    actor, critic = mlp(size, actions, nn.Tanh()), mlp(size + actions, 1)
    targets = copy.deepcopy(nn.ModuleList([actor, critic]))
    actor_optimizer, critic_optimizer = (torch.optim.Adam(net.parameters(), lr=1e-3) for net in (actor, critic))
    rows = np.zeros((arguments.steps, 2 * size + actions + 2), np.float32)
    state, _ = env.reset(seed=0)
    for step in range(arguments.steps):
        with torch.no_grad():
            action = actor(torch.as_tensor(state, dtype=torch.float32)).numpy()
        action = np.clip(action + 0.1 * rng.standard_normal(actions), -1, 1)
        following, reward, terminated, truncated, _ = env.step(high * action)
        rows[step] = np.concatenate([state, action, [reward], following, [terminated]])
        state = env.reset()[0] if terminated or truncated else following
        if step < 256:
            continue
        batch = torch.from_numpy(rows[rng.integers(0, step, 128)])
        s, a, r, after, over = batch.split([size, actions, 1, size, 1], dim=1)
        q = critic(torch.cat([s, a], 1))
        r = r + arguments.weight * (bonus := qcse_bonus(s, q.squeeze(1))).unsqueeze(1)  # the bonus
        with torch.no_grad():
            target = r + 0.99 * (1 - over) * targets[1](torch.cat([after, targets[0](after)], 1))
        critic_optimizer.zero_grad()
        (q - target).square().mean().backward()
        critic_optimizer.step()
        actor_optimizer.zero_grad()
        critic(torch.cat([s, actor(s)], 1)).mean().neg().backward()
        actor_optimizer.step()
        for old, new in zip(targets.parameters(), [*actor.parameters(), *critic.parameters()]):
            old.data.lerp_(new.data, 0.005)
    print(f"mean bonus of the last batch: {bonus.mean():.3f}")


if __name__ == "__main__":
    main()
