"""qcse: offline-to-online reinforcement learning with the Q-conditioned state entropy bonus (arXiv 2310.19805).

The operator alone lives in `qcse_ext` and needs nothing but torch; this package is the training layer on top of it.
"""

__version__ = "0.1.0"
