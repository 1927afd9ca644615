"""Progress of long work: a bar with rate and remaining time on a terminal, else plain lines."""

import sys
import threading
import time
from types import TracebackType
from typing import Any, Self

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_OF_SHORT_WORK = 2.0


class Progress:
    """Context manager; writes to stderr, so that stdout stays clean for results.

    Args:
        title: Name of the work.
        total: Number of images so far; see :meth:`expect`.
        unit: What is counted, if not images.

    Nothing is shown while nothing is expected. Plain lines are printed every 10 s, even without
    progress, and at the end of work that took 2 s or more.
    """

    def __init__(self, title: str, total: int = 0, *, unit: str = "images") -> None:
        self._title = title
        self._unit = unit
        self._total = 0
        self._done = 0
        self._start = time.monotonic()
        self._ended = threading.Event()
        self._bar = _bar() if sys.stderr.isatty() else None
        self._task = self._bar and self._bar.add_task(title, total=None, rate="")
        self.expect(total)

    def __enter__(self) -> Self:
        if not self._bar:
            threading.Thread(target=self._lines, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._bar:
            self._bar.stop()
        elif self._done and time.monotonic() - self._start > _SECONDS_OF_SHORT_WORK:
            self._line()

    def expect(self, images: int) -> None:
        """Add to the total."""
        self._total += images
        if self._bar and self._total:
            self._bar.update(self._task, total=self._total)
            self._bar.start()

    def advance(self, images: int = 1) -> None:
        """Add to the images that are done."""
        self._done += images
        if self._bar:
            self._bar.update(self._task, advance=images, rate=f"{self._rate():.1f} {self._unit}/s")

    def _lines(self) -> None:
        while not self._ended.wait(_SECONDS_BETWEEN_LINES):
            if self._total:
                self._line()

    def _rate(self) -> float:
        return self._done / max(time.monotonic() - self._start, 1e-9)

    def _line(self) -> None:
        rate, left = self._rate(), self._total - self._done
        eta = f", {left / rate:.0f} s to go" if left > 0 and rate else ""
        print(  # noqa: T201 - the plain form of the bar
            f"{self._title}: {self._done}/{self._total}, {rate:.1f} {self._unit}/s{eta}",
            file=sys.stderr,
            flush=True,
        )


def _bar() -> Any:
    from rich import progress  # only for a terminal
    from rich.console import Console

    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False),  # a store's name is no markup
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[rate]}"),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
    )
