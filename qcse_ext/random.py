"""Random numbers of S independent streams in one launch: Philox-4x32-10, a counter-based generator.

A stream is a 64-bit key and a counter, the number of blocks of 128 bits that it has used up; block n of a key is a
function of n and the key alone. So nothing is kept but these two numbers, and what a seed draws depends neither on the
seeds beside it nor on how a device divides the work. The kernels of all devices and the definition give the same bits.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from qcse_ext import registration
from qcse_ext.arguments import expect
from qcse_ext.registration import register_fake, without_autograd

__all__ = ["random", "random_in_torch", "random_rows", "random_rows_in_torch"]

LAWS = {"normal": 0, "unit": 1, "symmetric": 2}  # csrc/random/random.h, as are the limits
MAX_SEGMENTS = 16
ROW_LIMIT = 2**31 - 1
NUMBERS_PER_BLOCK, ROWS_PER_BLOCK = 4, 2

Segments = Sequence[tuple[str, int]]


def random(keys: Tensor, counters: Tensor, segments: Segments) -> list[Tensor]:
    """Numbers of several laws for S seeds, all in one launch.

    Each segment uses up whole blocks, one for every four numbers that it begins. Laws:

    - ``"normal"``: standard normal, by Box and Muller's transform of 31 and 32 random bits, within 5 units in the last
      place of the exact transform; the largest magnitude is 6.67.
    - ``"unit"``: uniform in [0, 1), multiples of 2^-24.
    - ``"symmetric"``: uniform in [-1, 1), multiples of 2^-23.

    Args:
        keys: ``[S]`` int64, any bits.
        counters: ``[S]`` int64, from 0 to 2^48 - 1; moved on in place by the number of blocks used. They must be
            contiguous, and so must the keys. On a GPU a captured graph goes on with them at each replay.
        segments: 1 to 16 pairs of a law and of a count, at least 1: numbers for each seed.

    Returns:
        for each segment ``[S, count]`` float32, contiguous and on the device of the keys.

    Raises:
        RuntimeError: an argument has a wrong shape, dtype or device, or a number is out of range.
        KeyError: there is no such law.

    Source:
        Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3 (SC 2011).
    """
    if not registration.has_kernel("random", keys):
        return random_in_torch(keys, counters, segments)
    counts = [count for _, count in segments]
    numbers = torch.ops.qcse.random(keys, counters, [LAWS[law] for law, _ in segments], counts)
    found, at = [], 0
    for count in counts:
        found.append(numbers[at : at + len(keys) * count].view(len(keys), count))
        at += _round_up(len(keys) * count, NUMBERS_PER_BLOCK)
    return found


def random_rows(
    keys: Tensor, counters: Tensor, count: int, dataset: int, held: int | Tensor, leading: int | None = None
) -> Tensor:
    """Row numbers of a batch of transitions for S seeds, uniform with replacement, in one launch.

    The rows are a dataset's, 0 to ``dataset - 1``, followed by those that a seed holds beside it. A number is
    floor(u n) of a u of 64 random bits, never n itself; a block of a stream makes two.

    Args:
        keys, counters: as for :func:`random`.
        count: B, rows for each seed.
        dataset: rows of the dataset; together with those held at most 2^31 - 1.
        held: rows beside the dataset; or a float64 scalar ``[]`` on the device, so that it may change between the
            replays of a captured graph.
        leading: so many rows at the head of the batch are the dataset's and the others are held ones; None: all are
            drawn from both taken together.

    Returns:
        ``[S, B]`` int64.

    Raises:
        RuntimeError: an argument has a wrong shape, dtype or device, or there is nothing to draw from.
    """
    if not registration.has_kernel("random_rows", keys):
        return random_rows_in_torch(keys, counters, count, dataset, held, leading)
    there = held if isinstance(held, Tensor) else None
    here = 0 if isinstance(held, Tensor) else held
    rows: Tensor = torch.ops.qcse.random_rows(keys, counters, count, dataset, here, there, leading)
    return rows


# --- The definitions --------------------------------------------------------------------------------------------------

WORD = 0xFFFFFFFF


def random_in_torch(keys: Tensor, counters: Tensor, segments: Segments) -> list[Tensor]:
    """:func:`random` in plain torch: its definition, for any device."""
    _check("random", keys, counters)
    if not 1 <= len(segments) <= MAX_SEGMENTS:
        raise RuntimeError(f"qcse_ext.random: expected 1 to {MAX_SEGMENTS} segments, got {len(segments)}")
    laws = {"normal": _normal, "unit": _unit, "symmetric": lambda words: _unit(words) * 2.0 - 1.0}
    found = []
    for law, count in segments:
        if count < 1:
            raise RuntimeError(f"qcse_ext.random: a count must be at least 1, got {count}")
        words = _take(keys, counters, -(-count // NUMBERS_PER_BLOCK))
        found.append(laws[law](words).flatten(1)[:, :count].contiguous())
    return found


def random_rows_in_torch(
    keys: Tensor, counters: Tensor, count: int, dataset: int, held: int | Tensor, leading: int | None = None
) -> Tensor:
    """:func:`random_rows` in plain torch: its definition, for any device."""
    function = "random_rows"
    _check(function, keys, counters)
    if count < 1:
        raise RuntimeError(f"qcse_ext.{function}: count must be at least 1, got {count}")
    if leading is not None and not 0 <= leading <= count:
        raise RuntimeError(f"qcse_ext.{function}: leading must be from 0 to count ({count}), got {leading}")
    known = 0 if isinstance(held, Tensor) else held
    if dataset < 0 or known < 0 or dataset + known > ROW_LIMIT:
        raise RuntimeError(
            f"qcse_ext.{function}: dataset and held must be from 0 on, and at most {ROW_LIMIT} together, got "
            f"{dataset} and {known}"
        )
    some = isinstance(held, Tensor) or (dataset + known if leading is None else known) > 0
    if (leading and dataset == 0) or (not some and leading != count):
        raise RuntimeError(f"qcse_ext.{function}: there are no rows to draw from (dataset {dataset}, held {known})")
    if isinstance(held, Tensor):
        expect(function, "held", held, (), ("keys", keys), torch.float64)
        held = held.long()
    words = _take(keys, counters, -(-count // ROWS_PER_BLOCK)).reshape(len(keys), -1, 2)[:, :count]
    if leading is None:
        return _below(dataset + held, words)
    head, tail = _below(dataset, words[:, :leading]), dataset + _below(held, words[:, leading:])
    return torch.cat([head, tail], dim=1)


def _take(keys: Tensor, counters: Tensor, blocks: int) -> Tensor:
    """The next blocks of each stream, words [S, blocks, 4] as int64 from 0 to 2^32 - 1; moves the counters."""
    block = counters.unsqueeze(1) + torch.arange(blocks, device=keys.device)
    counters += blocks
    a, b = block & WORD, block >> 32 & WORD
    c = d = torch.zeros_like(a)
    key, other_key = (keys & WORD).unsqueeze(1), (keys >> 32 & WORD).unsqueeze(1)
    for _ in range(10):
        p, q = a * 0xD2511F53, c * 0xCD9E8D57  # 64 bits, of which int64 takes one for the sign
        a, b, c, d = (q >> 32 & WORD) ^ b ^ key, q & WORD, (p >> 32 & WORD) ^ d ^ other_key, p & WORD
        key, other_key = key + 0x9E3779B9 & WORD, other_key + 0xBB67AE85 & WORD
    return torch.stack([a, b, c, d], -1)


def _below(high: int | Tensor, words: Tensor) -> Tensor:
    first, second = words.unbind(-1)
    return second * high + (first * high >> 32) >> 32


def _unit(words: Tensor) -> Tensor:
    return (words >> 8).float() * 2.0**-24


def _normal(words: Tensor) -> Tensor:
    """[..., 4] -> [..., 4]: pairs of a word for the radius and one for the angle. The kernels' very operations."""
    radius, angle = _radius(words[..., ::2]), words[..., 1::2]
    quarter = angle + 0x20000000 >> 30  # the nearest of 0, 1/4, 1/2, 3/4, 1 turn
    t = (angle - (quarter << 30)).float() * float.fromhex("0x1.921fb6p-30")
    z = t * t
    sine = z * (1 / 362880) - 1 / 5040
    sine = sine * z + 1 / 120
    sine = sine * z - 1 / 6
    sine = sine * z * t + t
    cosine = z * (-1 / 3628800) + 1 / 40320
    cosine = cosine * z - 1 / 720
    cosine = cosine * z + 1 / 24
    cosine = cosine * z - 0.5
    cosine = cosine * z + 1.0
    swapped = (quarter & 1) != 0
    x, y = torch.where(swapped, sine, cosine), torch.where(swapped, cosine, sine)
    x = torch.where((quarter + 1 & 2) != 0, -x, x)
    y = torch.where((quarter & 2) != 0, -y, y)
    return torch.stack([radius * x, radius * y], -1).flatten(-2)


def _radius(words: Tensor) -> Tensor:
    """sqrt(-2 ln u) of u in (0, 1]; csrc/random/philox.h says how."""
    u = (words >> 1).float() * 2.0**-31 + 2.0**-32
    root_of_half = 0x3F3504F3
    above = u.view(torch.int32) - root_of_half
    e = (above >> 23).float()
    f = ((above & 0x7FFFFF) + root_of_half).view(torch.float32) - 1.0
    s = f / (f + 2.0)
    z = s * s
    series = z * (1 / 11) + 1 / 9
    series = series * z + 1 / 7
    series = series * z + 1 / 5
    series = series * z + 1 / 3
    log_m = f - s * (f - 2.0 * z * series)
    log_u = e * float.fromhex("0x1.62e4p-1") + (log_m + e * float.fromhex("0x1.7f7d1cp-20"))
    return (-2.0 * log_u).double().sqrt().float()  # torch's own root of a float may be off by its last bit


def _round_up(count: int, step: int) -> int:
    return -(-count // step) * step


def _check(function: str, keys: Tensor, counters: Tensor) -> None:
    if keys.dim() != 1 or len(keys) < 1 or keys.dtype != torch.int64:
        raise RuntimeError(
            f"qcse_ext.{function}: keys must have shape [S], not be empty and be int64, got {list(keys.shape)}, "
            f"{str(keys.dtype).removeprefix('torch.')}"
        )
    expect(function, "counters", counters, (len(keys),), ("keys", keys))


# --- No gradient, and the kernels' shapes -----------------------------------------------------------------------------

without_autograd("random", "random_rows")


@register_fake("random")
def _(keys: Tensor, counters: Tensor, laws: Sequence[int], counts: Sequence[int]) -> Tensor:
    numbers = sum(_round_up(keys.shape[0] * count, NUMBERS_PER_BLOCK) for count in counts)
    return keys.new_empty(numbers, dtype=torch.float32)


@register_fake("random_rows")
def _(keys: Tensor, counters: Tensor, count: int, *_: object) -> Tensor:
    return keys.new_empty(keys.shape[0], count)
