"""A task's inputs: from the task itself, from control, or from a URL, into its workspace."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from rae_node.errors import Dropped, HandBack, TaskFailure, Verdict, verdict
from rae_node.link import Link
from rae_node.outfit import Outfit
from rae_node.pauses import Pauses
from rae_node.workspace import Workspace, fetch_url, inline_bytes
from rae_protocol.errors import RaeError
from rae_protocol.models import LeasedInput, LeaseRef
from rae_protocol.names import MAX_RESULT_BYTES

MIB = 1024 * 1024
BAD_NAMES = frozenset({errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG})


@dataclass(frozen=True, slots=True)
class Inputs:
    """Fetches for one lease. `look()` raises when the work was stopped, `stopped` says so early;
    `patience_s` is how long one input may take to come."""

    outfit: Outfit
    link: Link
    lease: LeaseRef
    stopped: threading.Event
    look: Callable[[], None]
    patience_s: float

    def fetch(self, inputs: Mapping[str, LeasedInput], workspace: Workspace) -> None:
        """All of them. Raises TaskFailure, HandBack, Dropped, OSError."""
        for name, given in inputs.items():
            self.look()
            try:
                self._one(name, given, workspace)
            except OSError as error:
                if error.errno in BAD_NAMES:
                    text = f"Input '{name}' cannot have this name: {error.strerror}"
                    raise TaskFailure("E_INPUT", text) from error
                raise

    def _one(self, name: str, given: LeasedInput, workspace: Workspace) -> None:
        target, settings = workspace.target(name), self.outfit.settings
        if given.inline is not None:
            target.write_bytes(inline_bytes(name, given))
        elif given.url is not None:
            limit = given.size or int(settings.input_max_mb * MIB)
            hosts, timeout_s = self.outfit.config.input_url_hosts, settings.http_timeout_sec
            fetch_url(name, given.url, target, hosts, limit, timeout_s, self.look)
        else:
            self._from_control(name, given, workspace)
        workspace.settle(name, given)

    def _from_control(self, name: str, given: LeasedInput, workspace: Workspace) -> None:
        """Try until it is there or the lease is over: control being away is no fault of anybody.

        Raises HandBack when heartbeats keep the lease up and the input does not come.
        """
        settings, clock = self.outfit.settings, self.outfit.clock
        pauses = Pauses(settings.retry_base_sec, settings.retry_cap_sec)
        limit = given.size if given.size is not None else MAX_RESULT_BYTES
        end = clock.boot() + self.patience_s
        while True:
            target = workspace.target(name)
            fetch = partial(
                self.outfit.client.fetch_input, self.lease, name, target, limit, given.sha256
            )
            try:
                return self.link.call(fetch)
            except RaeError as error:
                found = verdict(error)
                if found is Verdict.STALE:
                    raise Dropped(f"input: {error.rc}") from error
                if found is Verdict.REFUSED:
                    raise TaskFailure("E_INPUT", f"Input '{name}': {error.message}") from error
                if clock.boot() >= end:
                    raise HandBack("deadline", f"Input '{name}': {error.message}") from error
            self.stopped.wait(pauses.next())
            self.look()
