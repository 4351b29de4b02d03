"""Q-conditioned k-nearest-neighbour statistics for PyTorch: exact, batched, without a gradient.

The functions are :func:`knn`, :func:`entropy` and :func:`conditional_entropy`; the operators beneath are
``torch.ops.qcse.knn`` and ``torch.ops.qcse.entropy``. :mod:`qcse_ext.reference` says what they compute in plain torch.
"""

import pkgutil

# In the source tree this folder hides the installed package, which alone holds the compiled module.
__path__ = pkgutil.extend_path(__path__, __name__)

from qcse_ext.ops import build_info, conditional_entropy, entropy, knn

__all__ = ["build_info", "conditional_entropy", "entropy", "knn"]
