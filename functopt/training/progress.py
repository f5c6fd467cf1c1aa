"""A line on the terminal while a run goes on."""

from __future__ import annotations

import sys
import time
from typing import Any

from functopt.training.callbacks import Callback
from functopt.training.run import Run

__all__ = ["Progress"]

_SECONDS_BETWEEN = 0.5  # a look at the loss waits for the device, so it is rare


class Progress(Callback):
    """A bar with the running loss, and a line for every epoch.

    Args:
        show: by default, if standard error is a terminal and tqdm is installed.

    Raises:
        ImportError: it is to be shown, and tqdm is missing.
    """

    order = 50

    def __init__(self, show: bool | None = None) -> None:
        self._bar: Any = None
        self._looked = 0.0
        self._make: Any = None
        if show or (show is None and sys.stderr.isatty()):
            try:
                from tqdm import tqdm
            except ImportError as error:
                if show:
                    raise ImportError("progress needs tqdm: pip install 'functopt[examples]'") from error
            else:
                self._make = tqdm

    def begin_fit(self, run: Run) -> None:
        """Show the bar."""
        if self._make is not None:
            self._bar = self._make(total=run.total_steps, unit="step", desc=f"epoch 1/{run.epochs}", file=sys.stderr)

    def begin_epoch(self, run: Run) -> None:
        """Say which epoch it is."""
        if self._bar is not None:
            self._bar.set_description(f"epoch {run.epoch + 1}/{run.epochs}", refresh=False)

    def after_batch(self, run: Run) -> None:
        """Move the bar now and then."""
        if self._bar is not None and (time.monotonic() - self._looked > _SECONDS_BETWEEN):
            self._move(run)

    def after_epoch(self, run: Run) -> None:
        """Write the epoch's losses and metrics above the bar."""
        if self._bar is not None and run.row is not None:
            self._move(run)
            shown = ((name, value) for name, value in run.row.items() if name not in ("epoch", "step"))
            values = ", ".join(f"{name} {value:.4g}" for name, value in shown)
            self._bar.write(f"epoch {run.epoch + 1}/{run.epochs}: {values}", file=sys.stderr)

    def after_fit(self, run: Run) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._move(run)
            self._bar.close()
            self._bar = None

    def _move(self, run: Run) -> None:
        if run.running_loss is not None:
            self._bar.set_postfix_str(f"loss {run.running_loss.item():.4g}", refresh=False)
        self._bar.update(run.step - self._bar.n)
        self._looked = time.monotonic()
