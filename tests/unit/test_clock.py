import pytest

from engine.clock import TOLERANCE_MS, ClockGuard


class Clocks:
    """A machine's monotonic clock and a store's clock, moved by hand."""

    def __init__(self) -> None:
        self.monotonic_seconds = 1_000.0
        self.store_ms = 1_700_000_000_000

    def pass_seconds(self, seconds: float) -> None:
        self.monotonic_seconds += seconds
        self.store_ms += round(seconds * 1000)


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def guard(clocks: Clocks) -> ClockGuard:
    guard = ClockGuard(lambda: clocks.monotonic_seconds)
    assert guard.accept(clocks.store_ms)
    return guard


def test_clocks_that_run_together_are_accepted(clocks: Clocks, guard: ClockGuard) -> None:
    for _ in range(100):
        clocks.pass_seconds(3_600)
        assert guard.accept(clocks.store_ms)


@pytest.mark.parametrize("hours", [-1, 25])
def test_a_jump_is_refused_until_the_clock_is_back(
    clocks: Clocks, guard: ClockGuard, hours: int
) -> None:
    clocks.pass_seconds(1)
    clocks.store_ms += hours * 3_600_000
    assert not guard.accept(clocks.store_ms)
    assert guard.jump_ms == hours * 3_600_000
    clocks.pass_seconds(60)
    assert not guard.accept(clocks.store_ms)
    clocks.store_ms -= hours * 3_600_000
    assert guard.accept(clocks.store_ms)
    assert guard.jump_ms == 0


def test_a_small_correction_is_accepted(clocks: Clocks, guard: ClockGuard) -> None:
    clocks.pass_seconds(1)
    clocks.store_ms -= TOLERANCE_MS - 1
    assert guard.accept(clocks.store_ms)


def test_a_clock_that_was_slewed_for_a_day_is_accepted(clocks: Clocks, guard: ClockGuard) -> None:
    clocks.pass_seconds(86_400)
    clocks.store_ms += round(86_400_000 * 0.0005)
    assert guard.accept(clocks.store_ms)


def test_small_steps_do_not_add_up_to_an_accepted_jump_in_one_look(
    clocks: Clocks, guard: ClockGuard
) -> None:
    clocks.pass_seconds(1)
    clocks.store_ms += 2 * TOLERANCE_MS
    assert not guard.accept(clocks.store_ms)
