"""The training loop: offline updates, then online fine-tuning, with evaluation, logs and checkpoints.

A step is one gradient update offline and one environment step (followed by `updates_per_step` updates) online;
steps count on from one phase into the other. All state changes between two loop iterations are in the checkpoint,
so a run that is stopped anywhere continues as if it had not been.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..config import TrainConfig
from ..config.plain import json_text, parse_json
from ..envs.episodes import Evaluator
from ..envs.scores import normalized_score
from ..errors import NonFiniteLossError, WriteError
from . import checkpoint
from .experiment import Experiment, WrapEnv, as_it_is
from .folder import RunFolder, check_stored
from .interaction import Interaction
from .machine import describe_changes, machine_facts, moves_bits
from .pretrained import Pretrained
from .rehearsal import rehearse
from .signals import stoppable

EVALUATION_SEED = 1_000_000  # evaluation episode i starts from this + 1000 * seed + i, at every evaluation


class RunInterrupted(Exception):
    """Ctrl-C or SIGTERM ended the run at a step; its checkpoint is written."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped at step {step}")


class Trainer:
    """One run; `run()` trains to the end.

    Args:
        config: the run's options, validated here.
        out: the run folder, created if need be.
        state: a checkpoint to continue from.
        wrap_env: applied to each training environment, for example to record what happens in it.
        stop_at_return: end the run after an evaluation with at least this mean return.
        quiet: no progress bar and no lines.
        before_save: called before each checkpoint is written.

    Raises:
        ConfigError, EnvError, DatasetError, CheckpointError: as its parts do.
    """

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        state: Mapping[str, Any] | None = None,
        wrap_env: WrapEnv = as_it_is,
        stop_at_return: float | None = None,
        quiet: bool = False,
        before_save: Callable[[], None] = lambda: None,
    ) -> None:
        pretrained = None
        if state is not None:
            checkpoint.check_parameters(config, state, out)
        elif config.init_from is not None:
            pretrained = Pretrained(config.init_from)
        self.experiment = Experiment(config, wrap_env, progress=not quiet, pretrained=pretrained)
        self.config, self.out, self.quiet = config, out, quiet
        self.stop_at_return, self.before_save = stop_at_return, before_save
        self.agent, self.buffer, self.reward = self.experiment.agent, self.experiment.buffer, self.experiment.reward
        self.seeds = self.experiment.seeds
        self.interaction = Interaction(self.experiment)
        self.folder = RunFolder(out, self.seeds)

        self.first_step = 0 if config.init_from is None else config.offline_steps
        self.step = self.first_step
        self.origin = {} if pretrained is None else pretrained.facts(config)  # of the networks that the run began with
        self.total_steps = config.offline_steps + config.online_steps
        self.evaluated_at = -1
        self.pending = 0  # updates that the latest environment step still calls for
        self.wall_before = 0.0
        self.evaluator: Evaluator | None = None
        self.last_score = self.last_return_mean = float("nan")  # of the latest evaluation, over all seeds
        self.stopped: Callable[[], bool] = lambda: False
        self.facts = machine_facts() | {"device": str(self.experiment.device), "data": self.experiment.data_facts}
        self.started = self.saved_at = time.monotonic()
        self.speed_mark = (self.started, 0)
        self.resumed: dict[str, Any] | None = None  # what of the checkpoint counts when the run goes on
        self.extended = False  # beyond the last step that it was started with
        if state is not None:
            with checkpoint.fitting(out):
                self._load(state)

    @property
    def phase(self) -> str:
        """Of the step that was done last; before the first one, the phase that the run begins with."""
        return "offline" if self.step <= self.config.offline_steps and self.config.offline_steps > 0 else "online"

    @property
    def finished(self) -> bool:
        return self.step >= self.total_steps

    # The loop.

    def run(self) -> None:
        """Train until the last step; on Ctrl-C, SIGTERM or a hang-up save and raise RunInterrupted.

        Raises:
            InUseError: another process trains in the folder.
            WriteError: something could not be written; the last checkpoint is whole.
        """
        if self.finished:
            return
        with self.folder.owned():
            try:
                self._train()
            except OSError as error:
                again = self.folder.how_to_go_on()
                raise WriteError(
                    f"{error.filename or self.out}: {error.strerror or error}", f"make room or mend it, then {again}"
                ) from error

    def _train(self) -> None:
        config = self.config
        if self.resumed is None:
            checkpoint.refuse_begun(self.out)
        if 0 < config.online_steps and self.step <= config.offline_steps:
            rehearse(self.experiment, self.out)
        facts = self.facts | ({"init_from": self.origin} if self.origin else {})
        self.folder.begin(config, facts, self.resumed, self.extended)
        self.started = self.saved_at = time.monotonic()
        self.speed_mark = (self.started, self.step)
        with stoppable() as self.stopped, self._progress() as bar:
            if self.step == self.first_step:  # a resumed run, too, may not have got beyond its first evaluation
                self._before_first_step(bar)
            while not self.finished:
                if self.step < config.offline_steps:
                    self.update()
                else:
                    self._online_step(bar)
                self.step += 1
                bar.update(1)
                self._boundary(bar)
        self.folder.close()

    def _before_first_step(self, bar: tqdm[Any]) -> None:
        if self.step >= self.config.offline_steps and not self.reward.online:
            self.reward.start_online()
        self.save()
        self._evaluate(bar)
        self.save()

    def _online_step(self, bar: tqdm[Any]) -> None:
        """One environment step and the updates that it calls for; a resumed run may be amid the latter."""
        if self.pending == 0:
            self.pending = self.interaction.step(self.step - self.config.offline_steps)
        while self.pending > 0:
            self.update()
            self.pending -= 1
            if self.pending > 0:  # after an episode there may be a thousand
                self._save_if_due(bar)

    def _boundary(self, bar: tqdm[Any]) -> None:
        """What happens between two steps: the phase's end, logs, evaluation, checkpoint."""
        config, step, keep = self.config, self.step, self.config.keep_checkpoints
        phase_end = step == config.offline_steps
        if phase_end:
            self.reward.start_online()
        if step % config.log_every == 0 or phase_end or self.finished:
            self._log_metrics()
        if step % config.eval_every == 0 or phase_end or self.finished:
            self._evaluate(bar)
            if keep == "evaluations" or (keep == "offline_end" and phase_end):
                self.folder.checkpoints.keep(self.state_dict())
            self.save()
        self._save_if_due(bar)

    def _save_if_due(self, bar: tqdm[Any]) -> None:
        if self.stopped() or time.monotonic() - self.saved_at >= self.config.checkpoint_seconds:
            self.save()
        if self.stopped() and not self.finished:
            bar.close()
            raise RunInterrupted(self.step)

    def update(self) -> None:
        """One update of the phase at hand."""
        metrics = self.experiment.update_step(self.step >= self.config.offline_steps)
        if self.experiment.device.type == "cpu":  # on a GPU this would wait for it: there, before rows and checkpoints
            self.check_finite(metrics)

    def check_finite(self, metrics: Mapping[str, Tensor]) -> None:
        """NonFiniteLossError where a loss, [S] each, is NaN or infinite; the batch that it happened on is saved."""
        losses = {name: value for name, value in metrics.items() if name.startswith("loss/")}
        if not losses or bool(torch.isfinite(torch.stack(list(losses.values()))).all()):
            return
        assert self.experiment.update_step.latest is not None
        batch, noise = self.experiment.update_step.latest
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
        means = self.experiment.update_step.means()
        self.check_finite(means)
        rows = {name: value.tolist() for name, value in means.items()}
        self.experiment.update_step.clear()
        for s, log in enumerate(self.folder.logs):
            row: dict[str, Any] = {"step": self.step, "phase": self.phase, "updates": self.agent.updates}
            row["steps_per_second"] = steps / seconds if seconds > 0 else float("nan")
            row["train/return"] = self.interaction.last_return[s]
            row["train/length"] = self.interaction.last_length[s]
            log.write("train", row | {name: values[s] for name, values in rows.items()})

    def _evaluate(self, bar: tqdm[Any]) -> None:
        if self.evaluated_at == self.step:
            return
        episodes = self.config.eval_episodes
        if self.evaluator is None:
            self.evaluator = Evaluator(self.config.env, episodes * len(self.seeds))
        result = self.experiment.evaluate(self.evaluator, [EVALUATION_SEED + 1000 * seed for seed in self.seeds])
        scores = normalized_score(self.experiment.task.family, result.returns)
        self.evaluated_at, mean = self.step, float(result.returns.mean())
        self.last_return_mean = mean
        self.last_score = mean if np.isnan(scores).any() else float(scores.mean())
        for s, log in enumerate(self.folder.logs):
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

    @contextmanager
    def _progress(self) -> Iterator[tqdm[Any]]:
        hide = True if self.quiet else None  # None: shown on a terminal only
        with tqdm(total=self.total_steps, initial=self.step, unit="step", disable=hide, desc=self.out.name) as bar:
            yield bar

    # State.

    def save(self) -> None:
        """Write a checkpoint."""
        self.before_save()
        self.check_finite(self.experiment.update_step.means())
        self.saved_at = time.monotonic()
        self.folder.checkpoints.save(self.state_dict(), self.buffer, self.interaction.settled)

    def state_dict(self) -> dict[str, Any]:
        """All that a checkpoint holds but the buffer."""
        return self.experiment.state_dict() | {
            "step": self.step,
            "episodes": self.interaction.state_dict(),
            "log_rows": [log.state() for log in self.folder.logs],
            "evaluated_at": self.evaluated_at,
            "pending": self.pending,
            "chosen": self.interaction.chosen,
            "total_steps": self.total_steps,
            "wall_seconds": self._wall(),
            "moves_bits": moves_bits(self.facts),
            "origin": json_text(self.origin),
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        stored = check_stored(state, self.config, self.out)
        self.experiment.load_state_dict(state, self.out)
        before = state["moves_bits"] if "moves_bits" in state else {"threads": state["threads"]}
        if changes := describe_changes(before, moves_bits(self.facts)):
            print(
                f"warning: this run goes on with others than so far: {changes}. Its results will not be bit for bit "
                "those of one that never stopped (--threads, when a run starts, fixes the threads)",
                file=sys.stderr,
            )
        self.step, self.evaluated_at, self.pending = state["step"], state["evaluated_at"], state["pending"]
        self.extended = self.config.online_steps > stored.online_steps
        if not self.extended:
            self.total_steps = state["total_steps"]
        self.wall_before, self.origin = state["wall_seconds"], parse_json(state.get("origin", "{}"), "origin")
        self.interaction.load_state_dict(state["episodes"])
        self.interaction.chosen = state["chosen"]
        self.resumed = {
            "log_rows": state["log_rows"],
            "buffer": {name: value for name, value in state["buffer"].items() if name != "rows"},
            "config": state["config"],
            "files": state.get("files", {}),
        }
        if not self.finished:
            self.experiment.load_environments(state)
