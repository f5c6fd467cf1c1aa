"""Ctrl-C, taken between two batches."""

from __future__ import annotations

import signal
import threading
from types import TracebackType
from typing import Any

__all__ = ["Interrupted", "Interrupts"]


class Interrupted(Exception):
    """Ctrl-C was pressed, and what was under way is done."""


class Interrupts:
    """Within it the first Ctrl-C waits until :meth:`check`; the second raises KeyboardInterrupt at once.

    Outside the main thread, where Python handles no signals, and where somebody else handles this one, nothing is
    changed.
    """

    def __init__(self) -> None:
        self.asked = False
        self._taken = False

    def __enter__(self) -> Interrupts:
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._taken = True
            signal.signal(signal.SIGINT, self._note)
        return self

    def _note(self, number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.asked = True

    def check(self) -> None:
        """Raise Interrupted if Ctrl-C was pressed."""
        if self.asked:
            raise Interrupted

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._taken:
            signal.signal(signal.SIGINT, signal.default_int_handler)
