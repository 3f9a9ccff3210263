"""Signals wait for the end of a step, and a second SIGINT does not."""

import signal
import threading
from collections.abc import Iterator

import pytest

from instantstyle.utils.signals import DeferredSignals


@pytest.fixture(autouse=True)
def default_handler() -> Iterator[None]:
    """SIGINT interrupts, also where the tests were started in a background that ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_handlers_are_given_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with DeferredSignals() as signals:
        assert not signals.received
        signal.raise_signal(number)
        assert signals.received
    assert signal.getsignal(number) is before


def test_a_second_sigint_interrupts_and_a_launchers_sigterm_does_not() -> None:
    with DeferredSignals() as signals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
            signal.raise_signal(number)
        assert signals.received
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_other_threads_are_left_alone() -> None:
    before, received = signal.getsignal(signal.SIGINT), list[bool]()

    def work() -> None:
        with DeferredSignals() as signals:
            received.append(signals.received or signal.getsignal(signal.SIGINT) is not before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert received == [False]
