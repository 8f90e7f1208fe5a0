"""The owner's own rules out of owner.yaml: hours, `lend`, and programs that mean "I am here"."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from pathlib import Path

from rae_node.guard import owner_rules
from rae_node.guard.owner_file import OwnerFile
from rae_node.guard.owner_rules import STRICT, OwnerRules
from rae_node.guard.policy import Reading
from rae_node.guard.sources.remote import Names
from rae_protocol.clock import Clock


class OwnerSource:
    """Present while the owner's rules forbid work; blind where the file is wrong."""

    name = "owner"

    def __init__(
        self,
        file: OwnerFile,
        clock: Clock,
        *,
        ours: Callable[[], Collection[int]],
        proc: Path = Path("/proc"),
    ) -> None:
        self._file, self._clock, self._ours = file, clock, ours
        self._names = Names(proc)
        self._opening: tuple[OwnerRules, float, float | None] = (STRICT, 0.0, None)

    def read(self) -> Reading:
        """Look. Raises ConfigError for a wrong file, NodeError where /proc hides processes."""
        rules = self._file.rules()
        if rules.zone is None:
            time.tzset()  # the machine's time zone may have been changed
        running = self._running() if rules.present_while else {}
        path, now = str(self._file.path), self._clock.wall()
        found = tuple(owner_rules.causes(rules, now, running, path, self._opens))
        return Reading(self.name, bool(found), found[0].code if found else "", holders=found)

    def _running(self) -> dict[int, str]:
        names, ours = self._names.look(anew=False), self._ours()
        return {int(pid): name for pid, name in names.items() if int(pid) not in ours}

    def _opens(self, rules: OwnerRules, now: float) -> float | None:
        """Searching a week takes milliseconds: once for each opening is enough."""
        known, since, opens = self._opening
        if known is not rules or opens is None or not since <= now < opens:
            opens = owner_rules.opens_at(rules, now)
            self._opening = (rules, now, opens)
        return opens
