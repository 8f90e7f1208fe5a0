"""What a detector is, and the deadline behind which each of them is asked."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

from rae_node.guard.policy import Reading


class Source(Protocol):
    """One detector. `read` may fail or hang: the caller takes that for "cannot tell"."""

    name: str

    def read(self) -> Reading:
        """Look now. May raise anything."""
        ...


class Watched:
    """A source behind a deadline. A hung one is blind until it answers; it is not asked twice."""

    def __init__(self, source: Source, answers: threading.Event | None = None) -> None:
        """`answers` is set with each answer, for who waits for several."""
        self.name = source.name
        self._answers = answers or threading.Event()
        self.problem = ""  # why it could not tell; for people
        self._source = source
        self._ask, self._answered = threading.Event(), threading.Event()
        self._reading: Reading | None = None
        self._asked = False
        self._late = False
        threading.Thread(target=self._run, name=f"source-{self.name}", daemon=True).start()

    @property
    def settled(self) -> bool:
        """Whether `reading` would not wait."""
        return self._late or self._answered.is_set()

    def ask(self) -> None:
        """Start to look, unless it still does."""
        if not self._asked:
            self._asked = True
            self._answered.clear()
            self._ask.set()

    def look(self, timeout_s: float) -> Reading:
        """Ask, unless it was asked already, and wait."""
        self.ask()
        return self.reading(timeout_s)

    def reading(self, timeout_s: float) -> Reading:
        """What it saw, or that it cannot tell. Waits no longer, and not for a known laggard."""
        if not self._answered.wait(0.0 if self._late else timeout_s):
            self._late = True
            self.problem = f"{self.name} did not answer in time; it is asked again and again"
            return Reading(self.name, present=None)
        self._asked = False
        if self._late:  # what it saw is of an unknown age: ask again before believing it
            self._late = False
            return Reading(self.name, present=None)
        return self._reading or Reading(self.name, present=None)

    def _run(self) -> None:
        while True:
            self._ask.wait()
            self._ask.clear()
            try:
                self._reading, self.problem = self._source.read(), ""
            except Exception as error:  # whatever a detector's trouble is, it means "cannot tell"
                self._reading, self.problem = None, str(error) or repr(error)
            self._answered.set()
            self._answers.set()


def look_once(sources: Sequence[Source], timeout_s: float) -> tuple[list[Reading], dict[str, str]]:
    """What each sees now, all asked at the same time; and, by source, why a blind one is that."""
    watched = [Watched(source) for source in sources]
    for one in watched:
        one.ask()
    readings = [one.reading(timeout_s) for one in watched]
    return readings, {one.name: one.problem for one in watched if one.problem}
