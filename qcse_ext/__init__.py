"""Q-conditioned k-nearest-neighbour statistics for PyTorch: exact, batched, without a gradient.

The functions are :func:`knn`, :func:`entropy` and :func:`conditional_entropy`; the operators beneath are
``torch.ops.qcse.knn`` and ``torch.ops.qcse.entropy``. :mod:`qcse_ext.reference` says what they compute in plain torch.
"""

from qcse_ext.ops import build_info, conditional_entropy, entropy, knn

__all__ = ["build_info", "conditional_entropy", "entropy", "knn"]
