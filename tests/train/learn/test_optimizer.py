"""The fused optimiser, its operator's definition standing in for a GPU's kernel, against torch's Adam."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcse.config import from_flat
from qcse.learn.agents import AGENTS
from qcse.learn.agents.takeover import take_over
from qcse.learn.optimizer import FusedAdam, make_adam, step_with_targets
from qcse.learn.streams import Streams
from qcse_ext import registration
from qcse_ext.nets.adam import adam_in_torch_

CPU = torch.device("cpu")
SHAPES = [(3, 4), (1,), (2, 5, 1), (7,), (4, 4)]
