"""A wish to stop that long work heeds when it next can: SIGINT and SIGTERM, heard while the work goes on.

Signals are heard by a thread, over Python's wakeup descriptor: a Python handler runs only when the main thread comes
back from C, and one step of a large model, or waiting for another process, may keep it there.
"""

import os
import signal
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from threading import Thread

__all__ = ["StopRequest", "Stopped"]


class Stopped(KeyboardInterrupt):
    """Work ended early because it was asked to; the message says what it left and where it goes on.

    Attributes:
        signal: number of the signal that asked.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = number


class StopRequest:
    """Whether work was asked to stop.

    Args:
        signals: which signals ask, while `listening`. The second one ends the process at once, with status 128 + its
            number, wherever it is.
        on_ask: called at the first one, from another thread.

    Attributes:
        signal: number of the signal that asked first; 0 until then.
    """

    def __init__(self, signals: Collection[int] = (), on_ask: Callable[[], object] = lambda: None) -> None:
        self.signals, self.on_ask = signals, on_ask
        self.signal = 0

    @contextmanager
    def listening(self) -> Generator[None]:
        """Hear the signals until the block ends; only in a program's main thread, unless there are none to hear."""
        if not self.signals:
            yield
            return
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        listener = Thread(target=self._listen, args=(reader,), daemon=True)
        listener.start()
        woken = signal.set_wakeup_fd(writer)
        handlers = {number: signal.signal(number, lambda *_: None) for number in self.signals}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(woken)
            os.close(writer)  # which ends the thread
            listener.join()
            os.close(reader)

    def _listen(self, reader: int) -> None:
        while told := os.read(reader, 1):
            if (number := told[0]) not in self.signals:
                continue
            if self.signal:
                os._exit(128 + number)
            self.signal = number
            self.on_ask()
