"""Compiles oracle.cpp once per session and calls it; draws random and adversarial problems."""

import ctypes
import functools
import pathlib
import shutil
import subprocess
import tempfile
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qcse_ext import _C

HERE = pathlib.Path(__file__).parent
INSTRUCTION_SETS: list[str] = _C.build_info()["cpu_instruction_sets"]
SEARCH_PATHS = ["all", "boxes", "screen", "auto"]


@functools.cache
def _library() -> ctypes.CDLL:
    compiler = shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
    assert compiler is not None, "the bit oracle needs a C++ compiler"
    folder = tempfile.mkdtemp(prefix="qcse-oracle-")
    library = f"{folder}/oracle.so"
    options = ["-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC"]
    if "avx2" in INSTRUCTION_SETS:
        options.append("-mfma")  # std::fma as one instruction rather than a call: same result, six times faster
    subprocess.run([compiler, *options, str(HERE / "oracle.cpp"), "-o", library], check=True)
    return ctypes.CDLL(library)


@dataclass
class Problem:
    """Arguments of qcse_ext.knn, and a line that says how they were drawn."""

    states: Tensor
    values: Tensor
    k: int
    reference_states: Tensor | None = None
    reference_values: Tensor | None = None
    self_index: Tensor | None = None
    origin: str = ""

    def args(self) -> tuple[Tensor, Tensor, int, Tensor | None, Tensor | None, Tensor | None]:
        return (
            self.states,
            self.values,
            self.k,
            self.reference_states,
            self.reference_values,
            self.self_index,
        )


def oracle_knn(problem: Problem) -> tuple[Tensor, Tensor]:
    """Radius and count of every batch entry, by brute force in scalar C++."""
    dtype = torch.float64 if problem.states.dtype == torch.float64 else torch.float32
    *batch, n, dim = problem.states.shape

    def dense(x: Tensor) -> np.ndarray:
        return x.detach().to(dtype).contiguous().numpy()

    states, values = dense(problem.states).reshape(-1, n, dim), dense(problem.values).reshape(-1, n)
    if problem.reference_states is None or problem.reference_values is None:
        ref_states, ref_values, m = states, values, n
        self_index = np.broadcast_to(np.arange(n, dtype=np.int64), values.shape)
    else:
        m = problem.reference_states.shape[-2]
        ref_states, ref_values = dense(problem.reference_states), dense(problem.reference_values)
        ref_states, ref_values = ref_states.reshape(-1, m, dim), ref_values.reshape(-1, m)
        if problem.self_index is None:
            self_index = np.full(values.shape, -1, dtype=np.int64)
        else:
            self_index = problem.self_index.contiguous().numpy().reshape(-1, n)
    radius, count = np.empty_like(values), np.empty(values.shape, dtype=np.int64)
    function = _library().oracle_double if dtype == torch.float64 else _library().oracle_float
    for b in range(values.shape[0]):
        arrays = [states[b], values[b], ref_states[b], ref_values[b], np.ascontiguousarray(self_index[b])]
        arrays += [radius[b], count[b]]
        sizes = [ctypes.c_int64(x) for x in (n, m, dim, problem.k)]
        function(*sizes, *(a.ctypes.data_as(ctypes.c_void_p) for a in arrays))
    shape = (*batch, n)
    return torch.from_numpy(radius).reshape(shape), torch.from_numpy(count).reshape(shape)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equality of bits; NaNs are compared by position, not by payload, and the zeros of a distance have no sign."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return (
        torch.equal(a.isnan(), b.isnan())
        and torch.equal(a.nan_to_num(0.0), b.nan_to_num(0.0))
        and torch.equal(a.isinf(), b.isinf())
    )


def assert_equals_oracle(problem: Problem, context: str, expected: tuple[Tensor, Tensor] | None = None) -> None:
    radius, count = torch.ops.qcse.knn(*problem.args())
    expected_radius, expected_count = oracle_knn(problem) if expected is None else expected
    where = f"{problem.origin}; {context}"
    assert same_bits(radius, expected_radius), f"radius differs: {where}"
    assert torch.equal(count, expected_count), f"count differs: {where}"


KINDS = [
    "normal",
    "integers",
    "duplicates",
    "all equal",
    "equal states",
    "equal values",
    "sorted",
    "reversed",
    "clustered",
    "heavy tails",
    "one outlier",
    "denormal",
    "huge",
    "trajectory",
    "wide values",
    "narrow values",
    "far from zero",
    "unequal scales",
]


def draw_points(rng: np.random.Generator, kind: str, n: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """``[n, dim]`` states and ``[n]`` values in float64, of one of KINDS."""
    s, q = rng.standard_normal((n, dim)), rng.standard_normal(n)
    if kind == "integers":
        s, q = rng.integers(0, 3, (n, dim)).astype(float), rng.integers(0, 3, n).astype(float)
    elif kind == "duplicates":
        rows = rng.integers(0, max(1, n // 5), n)
        s, q = s[rows], q[rows]
    elif kind == "all equal":
        s[:], q[:] = s[:1], q[:1]
    elif kind == "equal states":
        s[:] = s[:1]
    elif kind == "equal values":
        q[:] = q[:1]
    elif kind == "sorted":
        s, q = np.sort(s, axis=0), np.sort(q)
    elif kind == "reversed":
        s, q = -np.sort(-s, axis=0), -np.sort(-q)
    elif kind == "clustered":
        centre = rng.integers(0, 4, n)
        s, q = 1e-3 * s + 10 * rng.standard_normal((4, dim))[centre], 1e-2 * q + centre
    elif kind == "heavy tails":
        s, q = rng.standard_cauchy((n, dim)), rng.standard_cauchy(n)
    elif kind == "one outlier":
        s[rng.integers(n)] *= 1e6
        q[rng.integers(n)] *= 1e6
    elif kind == "denormal":
        s, q = s * 1e-41, q * 1e-41
        if rng.random() < 0.5:
            s = s * 10.0 ** rng.integers(0, 22)
    elif kind == "huge":
        s, q = s * 1e30, q * 10.0 ** rng.integers(18, 38)
    elif kind == "trajectory":
        s, q = np.cumsum(0.1 * s, axis=0), np.cumsum(0.1 * q)
    elif kind == "wide values":
        q = q * 100
    elif kind == "narrow values":
        q = q * 1e-3
    elif kind == "far from zero":
        s, q = s + 1e6 * rng.standard_normal(dim), q + 1e6
    elif kind == "unequal scales":
        s = s * 10.0 ** rng.uniform(-4, 4, dim)
    return s, q


def draw_problem(seed: int) -> Problem:
    """A random problem; the same seed gives the same problem."""
    rng = np.random.default_rng([20230, seed])
    kind = KINDS[rng.integers(len(KINDS))] if rng.random() < 0.8 else "normal"
    n = int(np.exp(rng.uniform(0, np.log(600.99))))
    dim = int(np.exp(rng.uniform(0, np.log(130.99))))
    dtype = [torch.float32, torch.float64, torch.bfloat16, torch.float16][rng.choice(4, p=[0.6, 0.2, 0.12, 0.08])]
    batch = [(), (), (), (1,), (3,), (2, 2)][rng.integers(6)]
    entries = int(np.prod(batch))
    separate = rng.random() < 0.35
    m = int(np.exp(rng.uniform(0, np.log(600.99)))) if separate else n
    with_self = separate and m > 1 and rng.random() < 0.5
    most = min(128, m - 1 if with_self or not separate else m)
    if most < 1:  # a single row has no neighbour
        n = m = 2
        most = 1
    k = 1 + int((most - 1) * rng.random() ** 2)

    def draw(rows: int) -> tuple[Tensor, Tensor]:
        points = [draw_points(rng, kind, rows, dim) for _ in range(entries)]
        s = np.stack([p[0] for p in points]).reshape(*batch, rows, dim)
        q = np.stack([p[1] for p in points]).reshape(*batch, rows)
        if rng.random() < 0.3:
            bad = [np.nan, np.inf, -np.inf]
            for _ in range(rng.integers(1, 1 + max(1, rows // 4))):
                s.reshape(-1)[rng.integers(s.size)] = bad[rng.integers(3)]
                q.reshape(-1)[rng.integers(q.size)] = bad[rng.integers(3)]
        with np.errstate(over="ignore"):
            return torch.from_numpy(s).to(dtype), torch.from_numpy(q).to(dtype)

    def restride(x: Tensor) -> Tensor:
        """Same numbers, other strides."""
        layout = rng.integers(4)
        if layout == 1:
            return x.transpose(-1, 0).contiguous().transpose(-1, 0)
        if layout == 2:
            wide = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 1), 7.0, dtype=x.dtype)
            wide[..., 1::2] = x
            return wide[..., 1::2]
        if layout == 3:
            return x.flip(-1).contiguous().flip(-1) if x.dim() else x
        return x

    states, values = draw(n)
    ref_states = ref_values = self_index = None
    if separate:
        ref_states, ref_values = draw(m)
        if with_self:
            index = rng.integers(-1, m, (*batch, n))
            self_index = torch.from_numpy(index)
            for b in np.ndindex(*batch):
                # Most named references are indeed the query.
                rows = rng.permutation(n)[: n // 2]
                rows = rows[index[b][rows] >= 0]
                ref_states[b][index[b][rows]] = states[b][rows]
                ref_values[b][index[b][rows]] = values[b][rows]
        ref_states, ref_values = restride(ref_states), restride(ref_values)
    origin = f"seed {seed}: {kind}, N {n}, M {m}, D {dim}, k {k}, {dtype}, batch {batch}"
    origin += f", references {separate}, self_index {with_self}"
    return Problem(restride(states), restride(values), k, ref_states, ref_values, self_index, origin)
