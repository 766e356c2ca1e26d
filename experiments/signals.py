"""Signals that end a run: Ctrl-C, SIGTERM, SIGHUP. They are noted as well as raised.

Python drops what a handler raises where nothing can receive it, as in a garbage collector's callback or a destructor.
What was noted is raised again at the next `check`, and Python's words about what it dropped are left out.
"""

from __future__ import annotations

import contextlib
import functools
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

_NOTED: list[int] = []


@contextlib.contextmanager
def interrupting() -> Iterator[None]:
    """Each of the signals raises ``KeyboardInterrupt(number)``, at the end at the latest; an ignored one stays so."""
    before, hook = {}, sys.unraisablehook
    if threading.current_thread() is threading.main_thread():
        _NOTED.clear()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):  # nohup ignores SIGHUP
                before[number] = signal.signal(number, _interrupt)
        sys.unraisablehook = functools.partial(_without_noted, hook)
    try:
        yield
        check()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if before:
            _NOTED.clear()
        sys.unraisablehook = hook


def noted() -> bool:
    """Whether one of the signals has come."""
    return bool(_NOTED)


def check() -> None:
    """Raises ``KeyboardInterrupt(number)`` where a signal has come; called between units, chunks and figures."""
    if _NOTED:
        raise KeyboardInterrupt(_NOTED[0])


def _without_noted(hook: Callable[[Any], object], dropped: Any) -> None:
    if not (_NOTED and isinstance(dropped.exc_value, KeyboardInterrupt)):
        hook(dropped)


def _interrupt(number: int, _frame: Any) -> None:
    _NOTED.append(number)
    raise KeyboardInterrupt(number)
