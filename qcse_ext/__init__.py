"""Q-conditioned k-nearest-neighbour statistics for PyTorch: exact, batched, without a gradient.

The functions are :func:`knn`, :func:`entropy` and :func:`conditional_entropy`; the operators beneath are
``torch.ops.qcse.knn`` and ``torch.ops.qcse.entropy``. :mod:`qcse_ext.reference` says what they compute in plain torch.
What a training step needs beside them is in :mod:`qcse_ext.nets` and :mod:`qcse_ext.bonus`.
"""

import pkgutil

import torch

# In the source tree this folder hides the installed package, which alone holds the compiled module.
__path__ = pkgutil.extend_path(__path__, __name__)

try:
    from qcse_ext import _C as _C  # registers all operators
except ImportError as error:  # pragma: no cover - needs a broken installation
    raise ImportError(
        f"the compiled module qcse_ext._C could not be loaded ({error}). Build it for this Python and torch "
        f"{torch.__version__}: pip install --no-build-isolation . in the source tree"
    ) from error

from qcse_ext.knn import build_info, conditional_entropy, entropy, knn

__all__ = ["build_info", "conditional_entropy", "entropy", "knn"]
