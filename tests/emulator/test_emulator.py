"""The emulator itself: what CUDA promises comes out right, and each rule that a kernel breaks is reported."""

import numpy as np
import pytest
from emulated import Emulator, EmulatorError

SEEDS = range(6)
LANE = np.arange(32)


def _right() -> dict[str, np.ndarray]:
    from_left = np.where(LANE < 3, LANE, LANE - 3)
    from_right = np.where(LANE > 28, LANE, LANE + 3)
    ballot = sum(1 << lane for lane in range(0, 32, 3))
    turns = 5 * np.arange(6 * 32).reshape(6, 32)
    block = np.arange(3 * 64).reshape(3, 64)
    return {
        "shuffles": 100 + np.concatenate([(LANE + 31) % 32, from_left, from_right, LANE ^ 5]),
        "votes": np.repeat([ballot, 2, 496, -9, 22, 124], 32),
        "half_warp_vote": np.repeat([0xFFFF, -1], 16),
        "barrier_votes": np.repeat([16, 1, 1], 64),
        "reverse_block": block[:, ::-1].ravel(),
        "reverse_warp": LANE[::-1],
        "atomic_sum": np.repeat(2016, 3 * 64),
        "copied": 3 * block[:, ::-1].ravel(),
        "last_block": np.array([21, 6, 1, 2, 3, 4, 5, 6]),
        "handed_over": 7 * LANE[::-1],
        "copied_in_turns": np.concatenate([np.tile(turns[:, ::-1], 2).ravel(), turns.ravel()]),
        "peeked": np.ones(64),
    }


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", _right())
def test_right_kernels_run_and_are_not_accused(emulator: Emulator, name: str, seed: int) -> None:
    expected = _right()[name]
    emulator.configure(seed=seed)
    assert np.array_equal(emulator.self_kernel(name, len(expected)), expected)


WRONG = {
    "no_barrier": {"data race", "uninitialised read"},
    "no_second_barrier": {"data race"},
    "shuffle_is_no_barrier": {"data race"},
    "plain_sum": {"data race"},
    "same_element": {"data race"},
    "barrier_in_branch": {"barrier divergence"},
    "barrier_after_return": {"barrier divergence"},
    "barriers_differ_in_number": {"barrier divergence"},
    "vote_in_branch": {"bad mask", "deadlock"},
    "not_in_own_mask": {"bad mask"},
    "shuffle_from_outside_mask": {"bad mask"},
    "past_shared_array": {"out of bounds"},
    "before_shared_array": {"out of bounds"},
    "past_output": {"out of bounds"},
    "shared_not_written": {"uninitialised read"},
    "global_not_written": {"uninitialised read"},
    "shared_too_large": {"shared memory"},
    "host_memory": {"host memory"},
    "misaligned": {"misaligned access"},
    "copy_not_awaited": {"read of a pending copy"},
    "copy_without_barrier": {"read of a pending copy", "data race", "uninitialised read"},
    "copy_over_readers": {"data race", "read of a pending copy"},
    "last_block_without_release": {"data race"},
    "last_block_without_acquire": {"data race"},
    "gate_not_waited_for": {"data race", "uninitialised read"},
    "gate_not_prepared": {"uninitialised read"},
    "gate_prepared_without_barrier": {"data race", "uninitialised read"},
    "gate_that_never_opens": {"deadlock"},
    "gate_that_opens_early": {"data race", "uninitialised read"},
    "gate_of_the_opening_before": {"data race", "uninitialised read"},
    "arrival_before_the_write": {"data race", "uninitialised read"},
    "turns_without_order": {"data race"},
    "turns_without_copies": {"read of a pending copy", "data race"},
    "copies_bring_nothing_else": {"data race"},
    "copies_are_not_the_threads_own": {"data race", "read of a pending copy"},
    "filled_over_readers": {"data race"},
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", WRONG)
def test_wrong_kernels_are_reported(emulator: Emulator, name: str, seed: int) -> None:
    emulator.configure(seed=seed)
    elements = {"past_output": 64, "same_element": 1}.get(name, 9 * 64)
    with pytest.raises(EmulatorError) as caught:
        emulator.self_kernel(name, elements)
    assert caught.value.kind in WRONG[name], str(caught.value)


def test_a_report_names_source_line_memory_and_thread(emulator: Emulator) -> None:
    with pytest.raises(EmulatorError, match=r"self_kernels\.cpp:\d+.*byte 256 of the shared array of 256.*lane 31"):
        emulator.self_kernel("past_shared_array", 64)


def test_the_emulator_survives_a_failed_launch(emulator: Emulator) -> None:
    with pytest.raises(EmulatorError):
        emulator.self_kernel("barrier_after_return", 64)
    assert np.array_equal(emulator.self_kernel("reverse_warp", 32), LANE[::-1])


def test_a_seed_repeats_its_schedule(emulator: Emulator) -> None:
    emulator.configure(seed=7)
    messages = []
    for _ in range(2):
        with pytest.raises(EmulatorError) as caught:
            emulator.self_kernel("plain_sum", 64)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
