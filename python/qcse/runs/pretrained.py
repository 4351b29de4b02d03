"""The offline end of one run as the beginning of others."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import TrainConfig, check_fits, from_json, offline_options
from ..errors import CheckpointError
from ..learn.agents import AGENTS
from ..learn.agents.sac import SAC
from ..learn.agents.takeover import take_over
from ..learn.streams import Streams
from . import checkpoint
from .folder import group_of, stored_config


def run_of(path: Path) -> Path:
    """The run folder that a path given as init_from belongs to: a run folder, or one of its checkpoint files.

    Raises:
        CheckpointError: it is neither.
    """
    folder = checkpoint.run_of(path)
    if not path.exists() or not (folder / "config.json").is_file():
        what = f"there is no {path}" if not path.exists() else f"there is no {folder / 'config.json'}"
        raise CheckpointError(
            f"init_from: {path} is not a run folder, nor a checkpoint in one: {what}; expected the --out of a run that "
            f"has been pre-trained, or a file in its {checkpoint.KEPT}/" + _kept(folder)
        )
    return folder


def source_config(path: Path) -> TrainConfig:
    """Options of the run that `path`, as given for init_from, belongs to; its offline phase ends at that checkpoint.

    Raises:
        CheckpointError: there is no such run, or no checkpoint that a run could start from.
    """
    config = stored_config(run_of(path))
    if path.is_file():
        config.offline_steps = _step_of(path, checkpoint.load(path))
    return config


class Pretrained:
    """What a run starts from that has no offline phase of its own: networks, normalisers and random streams of another.

    Args:
        path: a run folder, whose offline end is meant, or one of its checkpoint files.

    Attributes:
        config: options of the run that it is of; where `path` is the folder of one seed of several, of that one.
        step: which that run had done.
        mean, spread: [D] each, that observations are standardised by.

    Raises:
        CheckpointError: no run folder, none of its checkpoints is of the offline end, or it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path, folder = path, run_of(path)
        self.config = stored_config(folder)
        group = group_of(folder)  # where several seeds were trained together
        self._file, self._state = _find(path, folder if group is None else group)
        with checkpoint.fitting(folder):
            self._group = from_json(self._state["config"], f"{self._file}: config")
            self.step = _step_of(self._file, self._state)
            mean, spread = self._state["observation_scale"]
            self.mean: NDArray[np.float32] = mean.numpy()
            self.spread: NDArray[np.float32] = spread.numpy()
        checkpoint.check_parameters(self._group, self._state, folder)
        self.seeds = range(self.config.seed, self.config.seed + self.config.seeds)

    def check(self, config: TrainConfig) -> None:
        """ConfigError where a run with these options cannot start from here; a warning where it can, and its values
        will be of another reward than those that were learnt."""
        check_fits(config, self._group, self.step, str(self.path))
        for name in ("discount", "reward_scale", "reward_bias"):
            had, got = getattr(self._group, name), getattr(config, name)
            if had != got:
                learnt = f"it was {had} when {self.path} learnt its values, which go on as they are"
                print(f"warning: {name} is {got}; {learnt}", file=sys.stderr)

    def facts(self, config: TrainConfig) -> dict[str, Any]:
        """Where the networks of a run with these options are from, for people and for reports: path, digest, algorithm,
        step and seeds of the checkpoint; `otherwise`: the options with which its offline phase had others."""
        had, has = offline_options(self._group), offline_options(config)
        for name in ("seed", "seeds", "dataset", "device", "threads"):  # repetitions differ in them, too
            had.pop(name)
        return {
            "checkpoint": self._file.absolute(),
            "sha256": self._state["sha256"],
            "algo": self._group.algo,
            "step": self.step,
            "seeds": list(self.seeds),
            "otherwise": {name: had[name] for name in had if had[name] != has.get(name)},
        }

    def check_data(self, config: TrainConfig, fingerprint: str) -> None:
        """CheckpointError where a run's data should be those of the pre-training and are not."""
        same = all(
            getattr(config, name) == getattr(self._group, name)
            for name in ("dataset", "d4rl_transitions", "action_units")
        )
        if same and fingerprint and fingerprint != self._state["dataset"]:
            raise CheckpointError(
                f"dataset: {config.dataset} has changed since {self.path} was trained on it (fingerprint "
                f"{fingerprint!r}, its checkpoint has {self._state['dataset']!r}); restore the file, or name another "
                "with --dataset"
            )

    def row_of(self, seed: int) -> int:
        """Whose of the checkpoint's networks a seed starts with: its own, or one in turn."""
        place = (seed - self.seeds.start) % len(self.seeds)
        return self.seeds.start - self._group.seed + place

    def give(self, agent: SAC, streams: Streams, fresh_optimizer: bool) -> None:
        """Put networks and random streams into those of a run that begins; seeds that are not among this one's have
        streams of their own.

        Raises:
            ConfigError: the algorithm has other networks.
            CheckpointError: the checkpoint does not hold what its configuration says.
        """
        with checkpoint.fitting(self.path):
            state_dim, config = len(self.mean), self._group
            own = Streams(range(config.seed, config.seed + config.seeds), agent.device)
            source = AGENTS[config.algo](state_dim, agent.action_dim, config, own)
            source.load_state_dict(self._state["agent"])
            rows = {seed: self.row_of(seed) for seed in streams.seeds}
            take_over(agent, source, list(rows.values()), fresh_optimizer)
            agent.updates = self.step
            streams.go_on(self._state["streams"], {seed: row for seed, row in rows.items() if seed in self.seeds})


def _find(path: Path, folder: Path) -> tuple[Path, dict[str, Any]]:
    """The checkpoint that is meant: its file, and what is in it."""
    if path.is_file():
        return path, checkpoint.load(path)
    config = stored_config(folder)
    end = config.offline_steps
    if end == 0:
        raise CheckpointError(
            f"init_from: {folder} has no offline phase whose end could be meant; name one of its checkpoints"
            + _kept(folder)
        )
    if config.init_from is not None:
        raise CheckpointError(
            f"init_from: {folder} has no offline phase of its own, it started from {config.init_from}; name that one, "
            "or one of its checkpoints" + _kept(folder)
        )
    kept = checkpoint.kept(folder, end)
    if kept.exists():
        return kept, checkpoint.load(kept)
    state = checkpoint.load_run(folder, buffer=False)
    done = 0 if state is None else _step_of(folder / checkpoint.NAME, state)
    if state is None or done < end:
        raise CheckpointError(
            f"init_from: {folder} has done {done} of the {end} steps of its offline phase; finish it with "
            f"`qcse train --resume {folder}`, or name one of its checkpoints" + _kept(folder)
        )
    if done > end:
        raise CheckpointError(
            f"init_from: {folder} is at step {done} and has not kept the checkpoint of its offline end, step {end} "
            "(--keep-checkpoints offline_end does); name another run, or one of its checkpoints" + _kept(folder)
        )
    return folder / checkpoint.NAME, state


def _kept(folder: Path) -> str:
    found = sorted(map(str, folder.glob(f"{checkpoint.KEPT}/*.pt")))
    return f" ({', '.join(found[:3])}{', ...' if len(found) > 3 else ''})" if found else ""


def _step_of(path: Path, state: Mapping[str, Any]) -> int:
    step = state.get("step")
    if not isinstance(step, int) or step < 1:
        raise CheckpointError(f"init_from: {path} is at step {step!r}; expected one at which something is learnt")
    return step
