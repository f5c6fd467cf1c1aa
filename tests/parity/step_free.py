"""Cases of the comparison with optax; see case.Case."""

from __future__ import annotations

from parity.case import Case

CASES: dict[str, Case] = {}
