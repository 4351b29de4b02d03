"""The training loop: offline updates, then online fine-tuning, with evaluation, logs and checkpoints.

A step is one gradient update offline and one environment step (followed by `updates_per_step` updates) online;
steps count on from one phase into the other. All state changes between two loop iterations are in the checkpoint,
so a run that is stopped anywhere continues as if it had not been.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from qcse_ext.nets import critic

from . import checkpoint, trust
from .agents import AGENTS
from .agents.sac import SAC
from .buffer import NO_RETURN, ReplayBuffer
from .config import TrainConfig, differences, from_json, read_config, to_dict, validate
from .datasets import Transitions, load_dataset, mean_and_spread, monte_carlo_returns, normalized_score
from .envs import EpisodeRecorder, EvalResult, Evaluator, check_compatible, make_env, task_for, use_unit_actions
from .errors import CheckpointError, ConfigError, NonFiniteLossError, WriteError
from .files import own
from .log import RunLog, append_machine_facts, describe_changes, machine_facts, moves_bits, write_json
from .reward import IntrinsicReward
from .signals import stoppable
from .step import WARM_UP, CudaGraph, UpdateStep, capturable
from .streams import Streams

MAY_MOVE = ("dataset",)  # options that may change from one part of a run to the next: the file is known by its content
HOST = ("device", "threads")  # those that evaluation may choose anew
EVALUATION_SEED = 1_000_000  # evaluation episode i starts from this + 1000 * seed + i, at every evaluation


def resolve_device(name: str) -> torch.device:
    """'auto' -> the first CUDA device if there is one, else the CPU; ConfigError where a device is not usable."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("neither a CPU nor a CUDA device")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device: got {name!r}, which cannot be used here ({reason}); expected auto, cpu or cuda"
        ) from None
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # a graph captures what the current device launches, and nothing of the others
    return device


def use_precision(precision: str, device: torch.device) -> None:
    """Let torch's products on a GPU use TF32 or not; ConfigError where the device cannot do what is asked."""
    if precision == "tf32" and device.type != "cuda":
        raise ConfigError(f"precision: got 'tf32' on {device}, which has none; expected float32 or bf16")
    if precision == "bf16" and device.type == "cpu" and not critic.has_bf16():
        raise ConfigError("precision: got 'bf16', but this CPU lacks AVX512-BF16 or AVX512-VBMI2; expected float32")
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks instead of returning them to the system.

    An update allocates and frees the same megabytes again and again; by default glibc maps each anew, and the page
    faults cost a third of a small CQL update. Elsewhere than on glibc this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # malloc.h's names; glibc allows 32 MiB for the last
        for option, megabytes in ((trim_threshold, 2000), (top_pad, 64), (mmap_threshold, 32)):
            mallopt(option, megabytes << 20)


class RunInterrupted(Exception):
    """Ctrl-C or SIGTERM ended the run at a step; its checkpoint is written."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped at step {step}")


class Trainer:
    """One run: everything that its configuration names, built; `run()` trains to the end.

    Args:
        config: the run's options, validated here.
        out: the run folder, created if need be.
        state: a checkpoint to continue from.
        wrap_env: applied to each training environment, for example to record what happens in it.
        stop_at_return: end the run after an evaluation with at least this mean return.
        quiet: no progress bar and no lines.
        learns: False builds what evaluation needs only: neither dataset nor buffers.
        before_save: called before each checkpoint is written.
        rehearses: the run whose options are tried here, on its dataset (see `_rehearse`).
    """

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        state: dict[str, Any] | None = None,
        wrap_env: Callable[[gym.Env], gym.Env] = lambda env: env,
        stop_at_return: float | None = None,
        quiet: bool = False,
        learns: bool = True,
        before_save: Callable[[], None] = lambda: None,
        rehearses: Trainer | None = None,
    ) -> None:
        self.task = task_for(config.env)
        validate(config)
        if state is not None:
            trust.check_parameters(config, state, out)
        keep_freed_memory()
        self.config, self.out, self.quiet = config, out, quiet
        self.stop_at_return, self.before_save = stop_at_return, before_save
        self.device = resolve_device(config.device)
        use_precision(config.precision, self.device)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.seeds = list(range(config.seed, config.seed + config.seeds))
        self.envs = [EpisodeRecorder(wrap_env(make_env(config.env))) for _ in self.seeds]
        self.learns = learns
        given = config.dataset if learns and rehearses is None else None
        exact, limit = config.d4rl_transitions, self.task.max_episode_steps
        self.data = None if given is None else load_dataset(given, not quiet, exact, limit)
        if self.data is not None:
            use_unit_actions(self.envs[0].env, self.data, config.action_units)
            check_compatible(self.envs[0].env, self.data)
        observation_space, action_space = self.envs[0].env.observation_space, self.envs[0].env.action_space
        self.state_dim, self.action_dim = observation_space.shape[0], action_space.shape[0]

        self.streams = Streams(self.seeds, self.device)
        self.agent: SAC = AGENTS[config.algo](self.state_dim, self.action_dim, config, self.streams)
        self.mean, self.spread = self._observation_scale()
        self.fingerprint = "" if self.data is None else self.data.fingerprint()  # before it is scaled in place
        dataset = None if self.data is None else self._dataset_columns(self.data)
        if rehearses is not None:
            self.mean, self.spread, dataset = rehearses.mean, rehearses.spread, rehearses.buffer.dataset
        capacity = min(config.online_buffer, max(config.online_steps, 1)) if learns else 1
        try:
            self.buffer = ReplayBuffer(dataset, len(self.seeds), capacity, self.state_dim, self.action_dim, self.device)
        except RuntimeError as error:
            raise ConfigError(
                f"online_buffer: {capacity:,} transitions for {len(self.seeds)} seeds do not fit in memory "
                f"({str(error).splitlines()[0]}); expected fewer"
            ) from None
        self.reward = IntrinsicReward(config.bonus, self.agent, self.buffer, self.streams, config.reward_scale)
        self.data_facts = {}
        if self.data is not None:
            facts = {"source": self.data.source, "task": config.task, "path": self.data.path, "rows": len(self.data)}
            self.data_facts = self.data.metadata | facts
        self.data = None  # the buffer holds it now

        self.step = 0
        self.total_steps = config.offline_steps + config.online_steps
        self.evaluated_at = -1
        self.pending = 0  # updates that the latest environment step still calls for
        self.chosen: Tensor | None = None  # the next actions [S, A], where `overlap` has chosen them already
        self.wall_before = 0.0
        make_graph = CudaGraph if capturable(config, self.device) else None
        self.logs: list[RunLog] = []
        self.update_step = UpdateStep(config, self.agent, self.buffer, self.reward, self.streams, make_graph)
        self.logged_at = 0
        # Slots and learner's rewards of each seed's current episode, for Monte-Carlo returns.
        self.episode_slots: list[list[int]] = [[] for _ in self.seeds]
        self.episode_rewards: list[list[float]] = [[] for _ in self.seeds]
        self.last_return = [float("nan")] * len(self.seeds)
        self.last_length = [float("nan")] * len(self.seeds)
        self.evaluator: Evaluator | None = None
        self.last_score = self.last_return_mean = float("nan")  # of the latest evaluation, over all seeds
        self._stopped: Callable[[], bool] = lambda: False
        self.facts = machine_facts() | {"device": str(self.device)} if learns and rehearses is None else {}
        self.started = time.monotonic()
        self.checkpoints = checkpoint.Checkpoints(out)
        self._resumed: dict[str, Any] | None = None
        if state is not None:
            try:
                self._load(state)
            except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
                raise CheckpointError(
                    f"checkpoint: what {out} holds does not fit its configuration, or was written by another version "
                    f"of qcse ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}); restore it "
                    "from a copy, or start a new run with another --out"
                ) from error

    # Building.

    def _observation_scale(self) -> tuple[np.ndarray, np.ndarray]:
        if self.config.normalize_observations and self.data is not None:
            return mean_and_spread(self.data.observations)
        return np.zeros(self.state_dim, np.float32), np.ones(self.state_dim, np.float32)

    def _normalized(self, observations: np.ndarray) -> np.ndarray:
        return ((observations - self.mean) / self.spread).astype(np.float32)

    def _dataset_columns(self, data: Transitions) -> dict[str, Tensor]:
        """The buffer's columns, made in the dataset's own memory: a second copy would not fit where one just does."""
        config = self.config
        if config.normalize_observations:
            for states in (data.observations, data.next_observations):
                np.subtract(states, self.mean, out=states)
                np.divide(states, self.spread, out=states)
        np.clip(data.actions, -1.0, 1.0, out=data.actions)
        rewards = (data.rewards * config.reward_scale + config.reward_bias).astype(np.float32)
        returns = np.full(len(data), NO_RETURN, np.float32)
        if config.needs_returns:
            returns = self._monte_carlo_returns(rewards, data.episode_end, data.bootstrap)
        columns = {
            "observations": data.observations,
            "actions": data.actions,
            "rewards": rewards,
            "next_observations": data.next_observations,
            "bootstrap": data.bootstrap,
            "returns": returns,
            "bonus": np.zeros(len(data), np.float32),
        }
        return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in columns.items()}

    def _monte_carlo_returns(self, rewards: np.ndarray, end: np.ndarray, bootstrap: np.ndarray) -> np.ndarray:
        # With a negative bias (antmaze: 10 r - 5) an episode that never saw a reward would go on paying the bias.
        bias = self.config.reward_bias
        return monte_carlo_returns(rewards, end, bootstrap, self.config.discount, bias if bias < 0 else None)

    # The loop.

    @property
    def phase(self) -> str:
        """Of the step that was done last; before the first one, the phase that the run begins with."""
        return "offline" if self.step <= self.config.offline_steps and self.config.offline_steps > 0 else "online"

    def run(self) -> None:
        """Train until the last step; on Ctrl-C, SIGTERM or a hang-up save and raise RunInterrupted.

        Raises:
            InUseError: another process trains in the folder.
            WriteError: something could not be written; the last checkpoint is whole.
        """
        if self.finished:
            return
        with ExitStack() as stack:
            for folder in dict.fromkeys((self.out, *self.folders)):
                stack.enter_context(own(folder))
            try:
                self._train()
            except OSError as error:
                begun = (self.out / checkpoint.NAME).exists()
                again = (
                    f"go on from the last checkpoint with `qcse train --resume {self.out}`" if begun else "start again"
                )
                raise WriteError(
                    f"{error.filename or self.out}: {error.strerror or error}", f"make room or mend it, then {again}"
                ) from error

    def _train(self) -> None:
        config, resumed = self.config, self._resumed
        if resumed is None:
            checkpoint.refuse_begun(self.out)
        if 0 < config.online_steps and self.step <= config.offline_steps:
            self._rehearse()
        facts = self.facts | {"data": self.data_facts}
        for folder, seed in {self.out: config.seed, **dict(zip(self.folders, self.seeds, strict=True))}.items():
            folder.mkdir(exist_ok=True)
            seeds = config.seeds if folder == self.out else 1
            if resumed is None:
                write_json(folder / "config.json", to_dict(dataclasses.replace(config, seed=seed, seeds=seeds)))
                trust.mark_run(folder, config.env)
            append_machine_facts(folder / "machine.json", facts)
        # Without a checkpoint the run starts anew; what it had logged before it was stopped is cut.
        log_rows = resumed["log_rows"] if resumed else [{"train_rows": 0, "eval_rows": 0}] * len(self.seeds)
        self.logs = [RunLog(folder, resume_rows=rows) for folder, rows in zip(self.folders, log_rows, strict=True)]
        if resumed is not None:  # what was written after the checkpoint will be written again
            self.checkpoints.resume(resumed)
        self.started = self.saved_at = time.monotonic()
        self.speed_mark = (time.monotonic(), self.step)
        with stoppable() as self._stopped, self._progress() as bar:
            if self.step == 0:  # a resumed run, too, may not have got beyond its first evaluation
                if config.offline_steps == 0 and not self.reward.online:
                    self.reward.start_online()
                self._save()
                self._evaluate(bar)
                self._save()
            while not self.finished:
                if self.step < config.offline_steps:
                    self._update()
                else:
                    self._online_step(bar)
                self.step += 1
                bar.update(1)
                self._boundary(bar)
        for log in self.logs:
            log.close()

    def _rehearse(self) -> None:
        """Do once what each phase will do, so that nothing can fail for the first time after hours of the other.

        What takes part is thrown away: networks, generators, environments and a buffer of its own, with as many rows as
        the bonus's search needs. Evaluation is not in it: the untrained policy's comes first in any run.
        """
        config = self.config
        rows = 2 if config.bonus.kind == "none" else config.bonus.k + 1
        short = dataclasses.replace(
            config,
            offline_steps=min(config.offline_steps, 1),
            online_steps=max(rows, config.bonus.reference_size),
            online_buffer=max(rows, config.bonus.reference_size),
            learning_starts=0,
            random_steps=min(config.random_steps, rows - 1),
            updates_per_step=1,
        )
        held = random.getstate(), np.random.get_state()  # environments may draw from these
        with torch.random.fork_rng():
            trial = Trainer(short, self.out, quiet=True, rehearses=self)
            trial.update_step(online=False) if short.offline_steps else None
            trial.step = short.offline_steps
            trial.reward.start_online()
            for _ in range(rows):
                trial._act()
                trial.step += 1
            for s, slots in enumerate(trial.episode_slots):
                if slots:
                    trial._episode_end(s, terminal=False)
            trial.buffer.online["observations"][:, :rows] += 1e-3 * torch.arange(rows, device=self.device).view(-1, 1)
            turns = short.policy_every or 1  # until the policy has moved; a graph is captured once it is warm
            for _ in range(turns if self.device.type == "cpu" else max(turns, WARM_UP + 2)):
                trial.update_step(online=True)
            path = self.out / ".rehearsal.partial"  # a name that is swept away, should this process be killed here
            checkpoint.save(path, trial._state() | {"rows": trial.buffer.rows_of(0, rows)})
            path.unlink()
        random.setstate(held[0])
        np.random.set_state(held[1])
        for env in trial.envs:
            env.env.close()

    @property
    def folders(self) -> list[Path]:
        """One run folder per seed: `out` itself, or its sub-folders where there are several."""
        return [self.out] if len(self.seeds) == 1 else [self.out / f"seed{seed}" for seed in self.seeds]

    @property
    def finished(self) -> bool:
        return self.step >= self.total_steps

    def _boundary(self, bar: tqdm) -> None:
        """What happens between two steps: the phase's end, logs, evaluation, checkpoint."""
        config, step = self.config, self.step
        phase_end = step == config.offline_steps
        if phase_end:
            self.reward.start_online()
        if step % config.log_every == 0 or phase_end or self.finished:
            self._log_metrics()
        evaluate = step % config.eval_every == 0 or phase_end or self.finished
        if evaluate:
            self._evaluate(bar)
        if evaluate:
            self._save()
        self._save_if_due(bar)

    def _save_if_due(self, bar: tqdm) -> None:
        if self._stopped() or time.monotonic() - self.saved_at >= self.config.checkpoint_seconds:
            self._save()
        if self._stopped() and not self.finished:
            bar.close()
            raise RunInterrupted(self.step)

    def _online_step(self, bar: tqdm) -> None:
        """One environment step and the updates that it calls for; a resumed run may be amid the latter."""
        if self.pending == 0:
            self._act()
        while self.pending > 0:
            self._update()
            self.pending -= 1
            if self.pending > 0:  # after an episode there may be a thousand
                self._save_if_due(bar)

    def _act(self) -> None:
        config = self.config
        taken = self.step - config.offline_steps
        if taken == 0:
            for s in range(len(self.seeds)):
                self._begin_episode(s)
        observations = np.stack([env.observation for env in self.envs])
        actions = self._choose(observations, taken) if self.chosen is None else self.chosen
        self._environment_step(observations, actions.numpy())
        if config.overlap:  # before the updates are launched: reading the action waits for those of the step before
            self.chosen = self._choose(np.stack([env.observation for env in self.envs]), taken + 1)
        updates = config.updates_per_step
        if config.update_after == "episode":  # the first seed's episodes; there is one environment a seed
            updates *= int(self.last_length[0]) if self.envs[0].episode_length == 0 else 0
        self.pending = updates if self.buffer.added >= max(config.learning_starts, 1) else 0

    def _choose(self, observations: np.ndarray, taken: int) -> Tensor:
        """Exploring actions [S, A] on the host, for the online step that `taken` others precede."""
        if taken < self.config.random_steps:
            return self.streams.uniform("exploration", (self.action_dim,), -1.0, 1.0).cpu()
        noise = self.streams.normal("exploration", (1, self.action_dim))
        states = torch.from_numpy(self._normalized(observations)).to(self.device)
        return self.agent.act(states.unsqueeze(1), noise).squeeze(1).cpu()

    def _environment_step(self, observations: np.ndarray, actions: np.ndarray) -> None:
        config = self.config
        results = [env.step(action) for env, action in zip(self.envs, actions, strict=True)]
        next_observations = np.stack([r[0] for r in results])
        rewards = np.array([r[1] for r in results], np.float32) * config.reward_scale + config.reward_bias
        terminated = np.array([r[2] for r in results])
        unknown = torch.full((len(self.envs),), NO_RETURN)
        slot = self.buffer.add(
            observations=torch.from_numpy(self._normalized(observations)),
            actions=torch.from_numpy(actions),
            rewards=torch.from_numpy(rewards.astype(np.float32)),
            next_observations=torch.from_numpy(self._normalized(next_observations)),
            bootstrap=torch.from_numpy(1.0 - terminated.astype(np.float32)),
            returns=unknown,
            bonus=torch.zeros(len(self.envs)),
        )
        if self.reward.active and config.bonus.when == "store":
            index = torch.full((len(self.envs), 1), self.buffer.dataset_size + slot, device=self.device)
            bonus = self.reward.of_stored(index)
            self.buffer.online["bonus"][:, slot] = bonus.squeeze(1)
        for s, (_, _, done, cut) in enumerate(results):
            self.episode_slots[s].append(slot)
            self.episode_rewards[s].append(float(rewards[s]))
            if done or cut:
                self._episode_end(s, terminal=done)
                self._begin_episode(s)

    def _begin_episode(self, s: int) -> None:
        generator = self.streams.generators("environment")[s]
        self.envs[s].reset(int(torch.randint(2**31 - 1, (1,), generator=generator)))

    def _episode_end(self, s: int, terminal: bool) -> None:
        config, calibration = self.config, self.config.cql.calibration_online
        slots, rewards = self.episode_slots[s], np.array(self.episode_rewards[s], np.float32)
        self.last_return[s], self.last_length[s] = self.envs[s].episode_return, float(len(slots))
        self.episode_slots[s], self.episode_rewards[s] = [], []
        if config.algo != "cal_ql" or calibration == "off":
            return
        kept = min(len(slots), self.buffer.capacity)  # a longer episode has overwritten its own beginning
        index = torch.tensor(slots[-kept:], device=self.device)
        end, bootstrap = np.zeros(len(rewards), bool), np.ones(len(rewards), np.float32)
        end[-1], bootstrap[-1] = True, float(not terminal)
        returns = self._monte_carlo_returns(rewards, end, bootstrap)
        if calibration == "return_with_bonus" and self.reward.active:
            rows = (index + self.buffer.dataset_size).expand(len(self.seeds), kept)
            if config.bonus.when == "store":
                bonus = self.buffer.gather(rows).bonus
            else:
                bonus = self.reward.of_stored(rows, learn=False)
            weighted = np.zeros_like(rewards)
            weighted[-kept:] = self.reward.weight * bonus[s].cpu().numpy()
            returns = returns + monte_carlo_returns(weighted, end, bootstrap, config.discount)
        returns = returns[-kept:]
        self.buffer.online["returns"][s, index] = torch.from_numpy(returns).to(self.device)

    def _update(self) -> None:
        metrics = self.update_step(self.step >= self.config.offline_steps)
        if self.device.type == "cpu":  # on a GPU this would wait for the device: there, before each row and checkpoint
            self._check_finite(metrics)

    def _check_finite(self, metrics: dict[str, Tensor]) -> None:
        losses = {name: value for name, value in metrics.items() if name.startswith("loss/")}
        if not losses or bool(torch.isfinite(torch.stack(list(losses.values()))).all()):
            return
        assert self.update_step.latest is not None
        batch, noise = self.update_step.latest
        path = self.out / "nonfinite_batch.pt"
        values = {name: value.tolist() for name, value in losses.items()}
        arrays = {"batch": batch.state_dict(), "noise": {name: value.cpu() for name, value in noise.items()}}
        checkpoint.save(path, arrays | {"step": self.step, "losses": values})
        bad = ", ".join(f"{name} = {value}" for name, value in values.items())
        raise NonFiniteLossError(
            f"step {self.step + 1}: a loss is not finite ({bad}); expected finite losses. The batch is in "
            f"{path}, the last good state in {self.out / checkpoint.NAME}. Try smaller learning rates "
            "(--critic-lr, --policy-lr), a smaller --reward-scale, or look at the dataset's rewards"
        )

    # Logs and evaluation.

    def _wall(self) -> float:
        return self.wall_before + time.monotonic() - self.started

    def _log_metrics(self) -> None:
        now = time.monotonic()
        seconds, steps = now - self.speed_mark[0], self.step - self.speed_mark[1]
        self.speed_mark = (now, self.step)
        means = self.update_step.means()
        self._check_finite(means)
        rows = {name: value.tolist() for name, value in means.items()}
        self.update_step.clear()
        for s, log in enumerate(self.logs):
            row: dict[str, Any] = {"step": self.step, "phase": self.phase, "updates": self.agent.updates}
            row["steps_per_second"] = steps / seconds if seconds > 0 else float("nan")
            row["train/return"], row["train/length"] = self.last_return[s], self.last_length[s]
            log.write("train", row | {name: values[s] for name, values in rows.items()})

    def _evaluate(self, bar: tqdm) -> None:
        if self.evaluated_at == self.step:
            return
        episodes = self.config.eval_episodes
        if self.evaluator is None:
            self.evaluator = Evaluator(self.config.env, episodes * len(self.seeds))
        result = self.evaluate(self.evaluator, [EVALUATION_SEED + 1000 * seed for seed in self.seeds])
        scores = normalized_score(self.task.family, result.returns)
        self.evaluated_at, mean = self.step, float(result.returns.mean())
        self.last_return_mean = mean
        self.last_score = mean if np.isnan(scores).any() else float(scores.mean())
        for s, log in enumerate(self.logs):
            part = slice(s * episodes, (s + 1) * episodes)
            row = {
                "step": self.step,
                "phase": self.phase,
                "return_mean": float(result.returns[part].mean()),
                "return_std": float(result.returns[part].std()),
                "normalized_score": float(scores[part].mean()),
                "episode_length": float(result.lengths[part].mean()),
                "wall_seconds": round(self._wall(), 3),
            }
            if result.successes is not None:
                row["success_rate"] = float(result.successes[part].mean())
            log.write("eval", row)
        bar.set_postfix(score=f"{self.last_score:.1f}")
        if bar.disable and not self.quiet:
            line = f"step {self.step:>8} {self.phase:>7}  return {mean:9.1f}  score {self.last_score:6.1f}"
            print(f"{line}  {self._wall():7.1f} s", flush=True)
        if self.stop_at_return is not None and mean >= self.stop_at_return:
            self.total_steps = self.step

    def evaluate(self, evaluator: Evaluator, first_seeds: Sequence[int]) -> EvalResult:
        """Episodes of each seed's deterministic policy, one seed's after the other's; a pure function of the weights.

        Args:
            evaluator: with as many episodes for each of the S policies.
            first_seeds: [S], the environment seed of each policy's first episode; the next has one more.
        """
        episodes = len(evaluator) // len(self.seeds)

        def policies(observations: np.ndarray) -> Tensor:
            states = torch.from_numpy(self._normalized(observations)).to(self.device)
            return self.agent.act(states.view(len(self.seeds), episodes, -1)).flatten(0, 1)

        return evaluator.evaluate(policies, [first + i for first in first_seeds for i in range(episodes)])

    @contextmanager
    def _progress(self) -> Iterator[tqdm]:
        hide = True if self.quiet else None  # None: shown on a terminal only
        with tqdm(total=self.total_steps, initial=self.step, unit="step", disable=hide, desc=self.out.name) as bar:
            yield bar

    # State.

    def _save(self) -> None:
        self.before_save()
        self._check_finite(self.update_step.means())
        self.saved_at = time.monotonic()
        # Monte-Carlo returns of the running episodes are still to be filled in.
        settled = self.buffer.added - max(len(slots) for slots in self.episode_slots)
        self.checkpoints.save(self._state(), self.buffer, settled)

    def _state(self) -> dict[str, Any]:
        """All that a checkpoint holds but the buffer."""
        return {
            "config": json.dumps(to_dict(self.config)),
            "step": self.step,
            "agent": self.agent.state_dict(),
            "reward": self.reward.state_dict(),
            "streams": self.streams.state_dict(),
            "environments": [env.state_dict() for env in self.envs],
            "episodes": {
                "slots": self.episode_slots,
                "rewards": self.episode_rewards,
                "last_return": self.last_return,
                "last_length": self.last_length,
            },
            "metrics": self.update_step.state_dict(),
            "log_rows": [log.state() for log in self.logs],
            "evaluated_at": self.evaluated_at,
            "pending": self.pending,
            "chosen": self.chosen,
            "total_steps": self.total_steps,
            "wall_seconds": self._wall(),
            "moves_bits": moves_bits(self.facts),
            "dataset": self.fingerprint,
            "observation_scale": [torch.from_numpy(self.mean), torch.from_numpy(self.spread)],
        }

    def _load(self, state: dict[str, Any]) -> None:
        mean, spread = state["observation_scale"]
        self.mean, self.spread = mean.cpu().numpy(), spread.cpu().numpy()
        stored = from_json(state["config"], f"{self.out / checkpoint.NAME}: config")
        changed = [
            d for d in differences(stored, self.config) if d[0] not in (*MAY_MOVE, *(() if self.learns else HOST))
        ]
        if changed:
            listing = "; ".join(f"{name}: {a!r} when it started, {b!r} now" for name, a, b in changed)
            raise CheckpointError(
                f"{self.out / 'config.json'} does not fit the checkpoint beside it ({listing}); restore it, or start a "
                "new run with another --out"
            )
        self.step = state["step"]
        self.agent.load_state_dict(state["agent"])
        if not self.learns:
            return
        if state["dataset"] != self.fingerprint:
            raise CheckpointError(
                f"dataset: {self.config.dataset} has changed since this run started (fingerprint {self.fingerprint!r}, "
                f"the checkpoint has {state['dataset']!r}); restore the file, or start a new run with another --out"
            )
        before = state["moves_bits"] if "moves_bits" in state else {"threads": state["threads"]}
        if changes := describe_changes(before, moves_bits(self.facts)):
            print(
                f"warning: this run goes on with others than so far: {changes}. Its results will not be bit for bit "
                "those of one that never stopped (--threads, when a run starts, fixes the threads)",
                file=sys.stderr,
            )
        self.step, self.evaluated_at, self.pending = state["step"], state["evaluated_at"], state["pending"]
        self.chosen = state["chosen"]
        self.total_steps, self.wall_before = state["total_steps"], state["wall_seconds"]
        self.reward.load_state_dict(state["reward"])
        checkpoint.load_buffer(self.out, self.buffer, state)
        self.streams.load_state_dict(state["streams"])
        episodes = state["episodes"]
        self.episode_slots, self.episode_rewards = episodes["slots"], episodes["rewards"]
        self.last_return, self.last_length = episodes["last_return"], episodes["last_length"]
        self.update_step.load_state_dict(state["metrics"])
        self._resumed = {
            "log_rows": state["log_rows"],
            "buffer": {"segments": state["buffer"]["segments"]},
            "files": state.get("files", {}),
        }
        if not self.finished:
            for env, env_state in zip(self.envs, state["environments"], strict=True):
                env.load_state_dict(env_state)


def folder_of(config: TrainConfig) -> Path:
    """The run folder of a new run, as named or by default."""
    return config.out or Path("runs") / f"{config.env}-{config.algo}-{config.bonus.kind}-seed{config.seed}"


def check_new(out: Path) -> None:
    """ConfigError where a folder holds a run already."""
    remains = ("config.json", checkpoint.NAME, checkpoint.PREVIOUS, "train.csv", "eval.csv", "buffer")
    for name in remains:
        if (out / name).exists():
            raise ConfigError(
                f"out: {out} already holds a run ({name}); continue it with `qcse train --resume {out}`, or name "
                "another --out"
            )


def check_folder(out: Path) -> None:
    """ConfigError where a folder could not be made or written; nothing is made."""
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise ConfigError(f"out: {out} cannot be a folder, because {nearest} is a file; name another --out")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"out: {out} cannot be made, because {nearest} may not be written; name another --out")


def stored_config(out: Path) -> TrainConfig:
    """The configuration of an existing run folder."""
    path = out / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{out} is not a run folder: {path} does not exist; expected the --out of a qcse run")
    return read_config(path)


def group_of(out: Path) -> Path | None:
    """The folder that holds the checkpoint of this run folder, where several seeds were trained together."""
    group = out.absolute().parent
    alone = (out / checkpoint.NAME).exists() or not (group / checkpoint.NAME).exists()
    return None if alone else group


def load_policy(out: Path, device: str = "auto", threads: int | None = None) -> tuple[Trainer, int]:
    """A run folder's policy at its checkpoint, in a trainer that can evaluate but not learn, and which of its seeds
    the folder belongs to. Neither the dataset nor the device that it was trained on is needed."""
    own, group = stored_config(out), group_of(out)
    folder = out if group is None else group
    config = dataclasses.replace(stored_config(folder), device=device, threads=threads)
    trust.check_run(folder, config.env)
    state = checkpoint.load_run(folder, buffer=False)
    if state is None:
        raise CheckpointError(f"checkpoint: {folder} has none yet; train on with `qcse train --resume {folder}`")
    return Trainer(config, folder, state, quiet=True, learns=False), own.seed - config.seed


def refuse_contradictions(stored: TrainConfig, asked: TrainConfig, out: Path) -> None:
    """ConfigError where a resumed run was asked for something else than what it was started with."""
    changed = [d for d in differences(stored, asked) if d[0] not in ("out", *MAY_MOVE)]
    if asked.out is not None and stored.out != asked.out and asked.out.resolve() != out.resolve():
        changed.append(("out", str(out), str(asked.out)))
    if changed:
        listing = "; ".join(f"{name}: the run has {a!r}, the command line says {b!r}" for name, a, b in changed)
        raise ConfigError(
            f"--resume {out} contradicts the stored configuration: {listing}. Leave these flags out, or start a new run"
        )
