"""The process of a command: its streams, its signals, its warnings, and what its children inherit."""

import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from compressor.process.children import safe_children

SECONDS_UNTIL_AGAIN = 0.05
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interrupted(KeyboardInterrupt):
    """A signal that asks the process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number  # as shells have it


@contextmanager
def guarded_process() -> Iterator[None]:
    """What holds while a command runs; afterwards all is as it was, for callers within Python."""
    with ExitStack() as stack:
        _open_streams()
        stack.enter_context(safe_children())
        if not sys.warnoptions:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        if threading.current_thread() is threading.main_thread():
            stack.enter_context(_interrupted_by_signals())
        yield


def _open_streams() -> None:
    """Streams that were closed lead nowhere; names that are no UTF-8 leave stdout as they are."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="surrogateescape")


@contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """Raise `Interrupted` at a signal, also where Python would swallow it: in a destructor, or a weak reference's call.

    Signals that whoever started the process lets it ignore (nohup) stay ignored.
    """
    handled = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _interrupt) for number in handled}
    hook, to_come = sys.unraisablehook, list[threading.Timer]()

    def raise_again(swallowed: Any) -> None:
        if not isinstance(swallowed.exc_value, Interrupted):
            return hook(swallowed)
        number = swallowed.exc_value.args[0]
        again = threading.Timer(SECONDS_UNTIL_AGAIN, os.kill, (os.getpid(), number))
        again.daemon = True
        to_come.append(again)
        return again.start()

    sys.unraisablehook = raise_again
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_IGN)
        sys.unraisablehook = hook
        for again in to_come:  # a signal after the end would meet whoever handled it before us
            again.cancel()
            again.join()
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, _frame: object) -> None:
    raise Interrupted(number)
