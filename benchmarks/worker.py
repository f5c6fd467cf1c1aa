"""A process of its own for each contender: its memory, caches and failures are its own, and it can be given up.

The parent calls a function by name and gets back what it returned; both travel as lines of JSON.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


class NotOfferedError(Exception):
    """The peer has nothing of the kind, so it is absent from the row."""


class FailedError(Exception):
    """What a worker could not do, in one line."""


class Worker:
    """A fresh Python process that runs functions of this package.

    Args:
        env: environment variables beside those of this process.
    """

    def __init__(self, env: Mapping[str, str] | None = None) -> None:
        self._log = tempfile.TemporaryFile()  # closed by close()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            bufsize=0,
            start_new_session=True,  # so that the compilers that it starts end with it
            env={**os.environ, **(env or {})},
        )

    def call(self, function: str, timeout: float = 600.0, **arguments: Any) -> Any:
        """Run ``module:function`` of this package with keyword arguments that JSON can hold.

        Raises:
            NotOfferedError: the function raised it.
            FailedError: the function raised something else, the process died, or it took longer than ``timeout``
                seconds. In the last two cases the worker is closed.
        """
        assert self._process.stdin
        request = json.dumps({"function": function, "arguments": arguments}) + "\n"
        try:
            self._process.stdin.write(request.encode())
            answer = json.loads(self._read_line(timeout))
        except (BrokenPipeError, ValueError):
            words = self._last_words()
            self.close()
            raise FailedError(f"its process died: {words}") from None
        except TimeoutError:
            self.close()
            raise FailedError(f"more than {timeout:.0f} s") from None
        if "error" in answer:
            raise (NotOfferedError if answer["absent"] else FailedError)(answer["error"])
        return answer["result"]

    def _read_line(self, timeout: float) -> bytes:
        assert self._process.stdout
        out, line, until = self._process.stdout, b"", time.monotonic() + timeout
        while not line.endswith(b"\n"):
            if not select.select([out], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError
            piece = out.read(1 << 16)
            if not piece:
                break
            line += piece
        return line

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit status {self._process.wait()}"

    @property
    def alive(self) -> bool:
        """Whether it can still be called."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the process and all that it started; again does nothing."""
        if self._log.closed:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            pipe.close()
        self._log.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def main() -> None:
    """Answer requests until the parent goes away."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes to the log
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        request = json.loads(line)
        module, _, name = request["function"].partition(":")
        try:
            result = getattr(importlib.import_module(f"benchmarks.{module}"), name)(**request["arguments"])
            answer = {"result": result}
        except Exception as error:
            traceback.print_exc()
            text = (str(error).strip().splitlines() or [""])[0]
            absent = type(error).__name__ == NotOfferedError.__name__  # this module runs as __main__ here
            answer = {"error": text if absent else f"{type(error).__name__}: {text}", "absent": absent}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
