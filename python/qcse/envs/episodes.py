"""Episodes: exact resumption in their middle, and evaluation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import EnvError
from .make import make_env
from .spaces import name_of

_log = logging.getLogger(__name__)

Policy = Callable[[NDArray[np.float32]], Any]  # observations [E, D] -> actions [E, A], array or tensor


class EpisodeRecorder:
    """One environment that can be put back, bit for bit, to where it was in the middle of an episode.

    A simulator's visible state does not determine what it computes next (contacts, warm starts, lagged positions), so
    the episode is lived through again: from its seed, with the same actions.

    Args:
        env: from `make_env`, or a name for it.

    Attributes:
        env: the environment; to be stepped through this object only.
        observation: [D] float32, the latest one; None before the first reset.
        episode_return: sum of rewards in the current episode.
        episode_length: its steps so far.
        done: True where the next call must be `reset`.
    """

    def __init__(self, env: gymnasium.Env[Any, Any] | str) -> None:
        self.env = make_env(env) if isinstance(env, str) else env
        self.observation: NDArray[np.float32] | None = None
        self.episode_return = 0.0
        self.done = True
        self._start: dict[str, Any] = {"seed": None}  # what the current episode began from
        self._actions: list[NDArray[np.float32]] = []

    @property
    def sizes(self) -> tuple[int, int]:
        """D and A."""
        observation, action = self.env.observation_space.shape, self.env.action_space.shape
        assert observation is not None and action is not None
        return observation[0], action[0]

    @property
    def episode_length(self) -> int:
        return len(self._actions)

    def reset(self, seed: int) -> NDArray[np.float32]:
        """Begin an episode; returns its first observation, [D] float32. An episode in progress is given up.

        Args:
            seed: for the environment's reset(seed=...). Each episode has one of its own, so that it can be repeated
                whatever generators the environment has.
        """
        self._start = {"seed": seed}
        return self._begin()

    def _begin(self) -> NDArray[np.float32]:
        self._actions = []
        self.episode_return = 0.0
        self.done = False
        if "generator" in self._start:
            self.env.unwrapped.np_random = _generator(self._start["generator"])
        self.observation, _ = self.env.reset(seed=self._start.get("seed"))
        return self.observation

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool]:
        """Take an action [A] in [-1, 1]; returns (observation [D] float32, reward, terminated, truncated).

        A state that is terminal in the very step of the time limit is terminal: truncated is then False.
        """
        if self.done:
            raise RuntimeError("EpisodeRecorder.step: no episode is in progress; call reset first")
        # A copy: the caller may reuse the array, and the episode must be repeatable.
        action = np.array(action, dtype=np.float32)
        observation, reward, terminated, truncated, _ = self.env.step(action)
        self._actions.append(action)
        self.observation = observation
        self.episode_return += float(reward)
        self.done = bool(terminated or truncated)
        return observation, float(reward), bool(terminated), bool(truncated and not terminated)

    def state_dict(self) -> dict[str, Any]:
        """Everything `load_state_dict` needs: tensors, numbers, strings and dicts of them only."""
        state: dict[str, Any] = {"versions": _versions(), **self._start}
        if self.observation is not None:
            shape = self.env.action_space.shape
            assert shape is not None
            actions = np.stack(self._actions) if self._actions else np.empty((0, *shape), np.float32)
            state["actions"] = torch.from_numpy(actions)
            state["observation"] = torch.from_numpy(np.array(self.observation))
            state["done"] = self.done
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Live through the stored episode again and stop where it stood.

        With the versions and the machine that stored it the result is the same to the bit. Where the replay comes out
        slightly apart, that is logged as a warning, and the episode goes on from where the replay ended. States of
        earlier versions, which hold the generator before the reset instead of a seed, are understood.

        Raises:
            EnvError: another kind of environment, or a replay that ends before the stored episode did.
        """
        if "actions" not in state:
            self._start, self._actions, self.observation, self.done = {"seed": None}, [], None, True
            return
        actions = state["actions"].numpy()
        if actions.shape[1:] != self.env.action_space.shape:
            raise EnvError(
                f"env: the stored episode has actions of shape {actions.shape[1:]}, the environment takes "
                f"{self.env.action_space.shape}; resume with the environment that it was stored with"
            )
        self._start = {name: state[name] for name in ("seed", "generator") if name in state}
        self._begin()
        for done, action in enumerate(actions):
            if self.done:
                raise EnvError(
                    f"env: the stored episode has {len(actions)} steps, but repeated it ended after {done}; it was "
                    f"stored with {_spell(state['versions'])}, here are {_spell(_versions())}: resume with the former"
                )
            self.step(action)
        stored = state["observation"].numpy()
        if self.observation is None or stored.shape != self.observation.shape:
            raise EnvError(
                f"env: the stored observation has shape {stored.shape}, the environment's has "
                f"{self.env.observation_space.shape}; resume with the environment that it was stored with"
            )
        if self.done != state["done"] or not np.array_equal(stored, self.observation):
            _log.warning(
                "env: the episode in progress of %s was repeated, but its state differs by up to %.3g from the stored "
                "one (stored with %s, here are %s; or its reset(seed=...) does not determine its episodes); training "
                "goes on, but not bit for bit as if it had never stopped",
                name_of(self.env),
                float(np.abs(stored - self.observation).max()),
                _spell(state["versions"]),
                _spell(_versions()),
            )


def _generator(plain: dict[str, Any]) -> np.random.Generator:
    """Gymnasium's generator of a state of an earlier version."""
    bits = np.random.PCG64()
    bits.state = {
        "bit_generator": plain["kind"],
        "state": {"state": int(plain["state"]), "inc": int(plain["inc"])},
        "has_uint32": int(plain["has_uint32"]),
        "uinteger": int(plain["uinteger"]),
    }
    return np.random.Generator(bits)


def _versions() -> dict[str, str]:
    found = {"gymnasium": str(gymnasium.__version__), "numpy": str(np.__version__)}
    try:
        import mujoco
    except ImportError:
        return found
    return {**found, "mujoco": str(mujoco.__version__)}


def _spell(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


@dataclass(frozen=True, eq=False)
class EvalResult:
    """One entry per episode.

    Attributes:
        returns: [E] float64, undiscounted.
        lengths: [E] int64, steps.
        successes: [E] bool, goal reached at some step, as the environment tells; None where it tells nothing.
    """

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    successes: NDArray[np.bool_] | None


class Evaluator:
    """Runs whole episodes side by side, on environments that are made once.

    Episode i is seeded with seed + i, and nothing is carried from one call to the next: the result is a pure function
    of policy, seed and number of episodes.
    """

    def __init__(self, env_id: str, episodes: int) -> None:
        if episodes < 1:
            raise ValueError(f"Evaluator: got {episodes} episodes, expected at least 1")
        self.env_id = env_id
        self._envs = [make_env(env_id) for _ in range(episodes)]

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self._envs)

    def evaluate(self, policy_fn: Policy, seed: int | Sequence[int]) -> EvalResult:
        """Run every episode to its end.

        Args:
            policy_fn: observations [E, D] float32 -> actions [E, A] in [-1, 1], array or tensor. It is always called
                with all E rows; the rows of episodes that have ended hold their last observation and are ignored.
            seed: of the first episode, the next having one more; or a seed for each episode.

        Raises:
            EnvError: the policy's actions have another shape or are not finite.
        """
        count = len(self._envs)
        seeds = range(seed, seed + len(self)) if isinstance(seed, int) else seed
        observations = np.stack([env.reset(seed=s)[0] for env, s in zip(self._envs, seeds, strict=True)])
        returns, lengths = np.zeros(count), np.zeros(count, np.int64)
        successes, told = np.zeros(count, np.bool_), False
        running = list(range(count))
        shape = (count, *(self._envs[0].action_space.shape or ()))
        while running:
            actions = policy_fn(observations.copy())
            if isinstance(actions, torch.Tensor):
                actions = actions.detach().cpu().numpy()
            actions = np.asarray(actions, np.float32)
            if actions.shape != shape:
                raise EnvError(f"evaluation: the policy gave actions of shape {actions.shape}, expected {shape}")
            if not np.isfinite(actions[running]).all():
                raise EnvError(f"evaluation: the policy gave NaN or infinite actions in step {int(lengths.max())}")
            for i in tuple(running):
                observations[i], reward, terminated, truncated, info = self._envs[i].step(actions[i])
                returns[i] += reward
                lengths[i] += 1
                success = info.get("success", info.get("is_success"))
                if success is not None:
                    told = True
                    successes[i] |= bool(success)
                if terminated or truncated:
                    running.remove(i)
        return EvalResult(returns, lengths, successes if told else None)

    def close(self) -> None:
        for env in self._envs:
            env.close()


def evaluate(policy_fn: Policy, env_id: str, episodes: int, seed: int) -> EvalResult:
    """One evaluation with environments of its own; see `Evaluator.evaluate`."""
    evaluator = Evaluator(env_id, episodes)
    try:
        return evaluator.evaluate(policy_fn, seed)
    finally:
        evaluator.close()
