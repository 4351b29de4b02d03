"""python -m qcse_ext.bench: the operator against what a user would run instead, timed side by side in one process.

Every implementation gets the same points and finds the distance to the k-th neighbour of every row. torch and KeOps
solve the joint problem, max of state distance and value gap, and the count; faiss, scikit-learn, SciPy and flashlib
can't, and solve the easier one in the states alone. Runs are interleaved, medians are reported, and each answer is
compared, on 512 random rows, with what the CPU finds looking at every pair. What is not installed, or fails, is left
out, saying so. The exit status is 1 if qcse fails or an answer of ours is not exact.

On a GPU a call is timed by itself (eager) and as one of up to 20 in a replayed CUDA graph, where the host plays no part
(graph); with inputs that may lie in the caches (warm) and with inputs that come from memory (cold).
"""

from qcse_ext.bench.command import main
from qcse_ext.bench.implementations import IMPLEMENTATIONS, Implementation
from qcse_ext.bench.judge import Judge
from qcse_ext.bench.measuring import measure
from qcse_ext.bench.records import Answer, Record

__all__ = ["IMPLEMENTATIONS", "Answer", "Implementation", "Judge", "Record", "main", "measure"]
