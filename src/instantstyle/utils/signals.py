"""Signals that ask a long computation to stop at the end of its present step."""

import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any


class DeferredSignals:
    """While entered, the signals only set `received`; a second SIGINT raises KeyboardInterrupt at once.

    SIGTERM never does: a launcher that was interrupted sends it to its processes after their own SIGINT.  Python
    delivers signals to the main thread alone; in other threads nothing is changed.
    """

    def __init__(self, signals: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM)) -> None:
        self.signals = signals
        self.received = False
        self._interrupted = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "DeferredSignals":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in self.signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._interrupted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True
        self._interrupted |= number == signal.SIGINT
