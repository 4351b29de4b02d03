"""Measurements of the training step: `qcse bench`."""

from __future__ import annotations

from .candidates import configuration, corl_module, corl_step, our_step, random_transitions
from .command import bench

__all__ = ["bench", "configuration", "corl_module", "corl_step", "our_step", "random_transitions"]
