"""A line on the terminal while a sweep runs."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

__all__ = ["Progress"]

_SECONDS_BETWEEN = 0.5  # a look at the members waits for the device, so it is rare


class Progress:
    """Shows steps per second, members alive and the best loss so far; says nothing where nobody watches.

    It uses tqdm if that is installed, else one line that it writes itself.
    """

    def __init__(
        self, total: int | None, members: int, *, show: bool | None, note: str = "", at_first: str = ""
    ) -> None:
        self._show = sys.stderr.isatty() if show is None else show
        self._total, self._members = total, members
        self._note = note  # said in a line of its own
        self._at_first = at_first  # what it does before the first step is done
        self._bar: Any = None
        self._best = float("inf")
        self._looked = self._began = time.monotonic()
        self._done = 0

    def __enter__(self) -> Progress:
        if self._show:
            if self._note:
                sys.stderr.write(f"{self._note}\n")
            try:
                from tqdm import tqdm
            except ImportError:
                pass
            else:
                self._bar = tqdm(total=self._total, unit="step", desc=f"sweep of {self._members}", file=sys.stderr)
            self._write(self._at_first)
        return self

    def update(self, steps: int, alive: Tensor, losses: Tensor) -> None:
        """Count steps that were taken, and show where the sweep stands every now and then."""
        self._done += steps
        if not self._show or (time.monotonic() - self._looked < _SECONDS_BETWEEN and self._done != self._total):
            return
        finite = losses[torch.isfinite(losses)]
        if finite.numel():
            self._best = min(self._best, float(finite.min()))
        self._write(f"alive {int(alive.sum())}/{len(alive)}, best loss {self._best:.4g}")
        self._looked = time.monotonic()

    def _write(self, status: str) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(status, refresh=not self._done)
            self._bar.update(self._done - self._bar.n)
        else:
            speed = self._done / max(time.monotonic() - self._began, 1e-9)
            total = "" if self._total is None else f"/{self._total}"
            sys.stderr.write(
                f"\rsweep of {self._members}: step {self._done}{total}, {speed:.1f} steps/s, {status}\x1b[K"
            )
            sys.stderr.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._show:
            sys.stderr.write("\n")
