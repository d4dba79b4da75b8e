"""An iterator whose items a thread computes ahead of their use."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

Item = TypeVar("Item")


class ReadAhead(Iterator[Item]):
    """Iterates over `items`, which a thread computes up to `depth` items ahead, from now on.

    An exception in the thread is raised by the iteration, after the items before it. `close` ends the thread.
    """

    def __init__(self, items: Generator[Item, None, None], depth: int) -> None:
        self._ready: queue.Queue[tuple[Item] | BaseException | None] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._produce, args=(items,), name="read-ahead", daemon=True)
        self._thread.start()

    def _produce(self, items: Generator[Item, None, None]) -> None:
        try:
            with contextlib.closing(items):
                if all(self._put((item,)) for item in items):
                    self._put(None)
        except BaseException as error:  # it is raised in the consumer
            self._put(error)

    def _put(self, entry: tuple[Item] | BaseException | None) -> bool:
        """Wait for room; False when nobody wants more."""
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(entry, timeout=0.1)
                return True
        return False

    def __next__(self) -> Item:
        if self._stop.is_set():
            raise StopIteration
        entry = self._ready.get()
        if isinstance(entry, tuple):
            return entry[0]
        self.close()
        if entry is None:
            raise StopIteration
        raise entry

    def close(self) -> None:
        """End the thread; what it read ahead is lost."""
        self._stop.set()
        self._thread.join()
