"""Whether a run's options can work, each alone and together."""

from __future__ import annotations

from ..errors import ConfigError
from .algorithms import ALGORITHMS
from .algorithms.base import RANGES as OF_ALL
from .bonuses import BONUSES
from .bonuses.base import RANGES as OF_ALL_BONUSES
from .options import TrainConfig, from_dict
from .plain import to_dict
from .ranges import Range, check_ranges

RANGES: dict[str, Range] = dict(OF_ALL)
for _algorithm in ALGORITHMS.values():
    RANGES |= _algorithm.ranges
for _ranges in (OF_ALL_BONUSES, *(spec.ranges for spec in BONUSES.values())):
    RANGES |= {f"bonus.{name}": value for name, value in _ranges.items()}


def validate(config: TrainConfig) -> None:
    """Raise ConfigError, naming the option, where a value or a combination cannot work."""
    from_dict(to_dict(config))
    check_ranges(config, RANGES)
    if config.offline_steps + config.online_steps == 0:
        raise ConfigError("offline_steps and online_steps: got 0 and 0, expected a step to do")
    critics, subset = config.net.critics, config.critic_subset
    if subset is not None and subset > critics:
        raise ConfigError(f"critic_subset: got {subset}, expected at most net.critics, {critics}")
    if config.init_from is None and config.fresh_optimizers:
        raise ConfigError("fresh_optimizers: got true without init_from, where they are fresh; leave it out")
    if config.init_from is not None and config.online_steps == 0:
        raise ConfigError("online_steps: got 0 with init_from, so there is nothing to do; expected 1 or more")
    to_pretrain = config.offline_steps > 0 and config.init_from is None
    if (to_pretrain or ALGORITHMS[config.algo].needs_data) and config.dataset is None:
        raise ConfigError(
            f"dataset: got none, but algo {config.algo} with {config.offline_steps} offline steps learns from one; "
            "pass --dataset FILE (HDF5 in D4RL's layout; `qcse collect` makes one), or --algo sac --offline-steps 0"
        )
    if 0 < config.online_steps <= config.learning_starts:
        raise ConfigError(
            f"learning_starts: got {config.learning_starts} with {config.online_steps} online steps, so nothing would "
            "be learnt online; expected fewer than online_steps"
        )
    if config.seeds > 1 and config.update_after == "episode":
        raise ConfigError(
            f"update_after: got 'episode' with {config.seeds} seeds, whose episodes end at different steps; expected "
            "'step', or --seeds 1"
        )
    BONUSES[config.bonus.kind].check(config.bonus, config)
