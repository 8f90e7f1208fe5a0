"""A task's inputs: from the task itself, from control, or from a URL, into its workspace."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from rae_node.attempt.download import Pace, fetch_url
from rae_node.context import AgentContext
from rae_node.errors import Dropped, HandBack, TaskFailure, Verdict, verdict
from rae_node.runners.capabilities import disk_free_mb
from rae_node.session.backoff import Pauses
from rae_node.session.session import Link
from rae_node.workspace.workspace import Workspace, inline_bytes
from rae_protocol.abort import Aborted, Aborter
from rae_protocol.errors import RaeError
from rae_protocol.models import LeasedInput, LeaseRef
from rae_protocol.names import MAX_RESULT_BYTES

MIB = 1024 * 1024
BAD_NAMES = frozenset({errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG})
_LOOK_S = 0.5


@dataclass(frozen=True, slots=True)
class Inputs:
    """Fetches for one lease, and leaves the disk its reserve (`disk_low_mb`).

    `look()` raises when the work was stopped, and `calls` are aborted then; `patience_s` is how
    long one of control's inputs may take to come; `url_limit`: how long all of those from URLs
    together may take, and what sets that.
    """

    context: AgentContext
    link: Link
    lease: LeaseRef
    calls: Aborter
    look: Callable[[], None]
    patience_s: float
    url_limit: tuple[float, str]

    def fetch(self, inputs: Mapping[str, LeasedInput], workspace: Workspace) -> None:
        """All of them. Raises TaskFailure, HandBack, Dropped, OSError."""
        left_s, size, most_mb = self.url_limit[0], 0, self.context.settings.workspace_max_mb
        for name, given in inputs.items():
            self._look()
            began = self.context.clock.monotonic()
            try:
                self._one(name, given, workspace, began + left_s)
                size += workspace.settle(name, given, self._look)
            except Aborted:
                self._look()
                raise
            except OSError as error:
                if error.errno in BAD_NAMES:
                    text = f"Input '{name}' cannot have this name: {error.strerror}"
                    raise TaskFailure("E_INPUT", text) from error
                raise
            if size > most_mb * MIB:
                raise TaskFailure(
                    "E_INPUT",
                    f"With '{name}' the inputs exceed {most_mb:g} MiB; send less, or split them",
                )
            if given.url is not None:
                left_s -= self.context.clock.monotonic() - began

    def _look(self) -> None:
        """Raises when the work was stopped, or when the disk's reserve is used up."""
        self.look()
        settings, folder = self.context.settings, self.context.layout.workdir
        free_mb = disk_free_mb(folder)
        if free_mb is not None and free_mb < settings.disk_low_mb:
            raise TaskFailure(
                "E_INPUT",
                f"The node's disk had less than {settings.disk_low_mb:g} MiB left while the inputs "
                "came; send less, or require disk_gb for each input twice",
            )

    def _one(self, name: str, given: LeasedInput, workspace: Workspace, url_end: float) -> None:
        if given.inline is not None:
            workspace.target(name).write_bytes(inline_bytes(name, given))
        elif given.url is not None:
            self._from_url(name, given, given.url, workspace, url_end)
        else:
            self._from_control(name, given, workspace)

    def _from_url(
        self, name: str, given: LeasedInput, url: str, workspace: Workspace, end: float
    ) -> None:
        settings, clock = self.context.settings, self.context.clock
        least, window_s = settings.input_least_bytes_per_sec, settings.input_slow_sec
        pace = Pace(name, least, window_s, clock.monotonic())

        def check() -> float:
            self._look()
            now = clock.monotonic()
            pace.check(now)
            if now >= end:
                limit_s, which = self.url_limit
                raise TaskFailure(
                    "E_TIMEOUT",
                    f"Input '{name}': the task's URLs took longer than {limit_s:g} s; raise "
                    f"{which}, the smallest limit, or upload the input instead",
                )
            return min(_LOOK_S, window_s, end - now)

        most = given.size or int(settings.input_max_mb * MIB)
        hosts, silence_s = self.context.config.input_url_hosts, settings.http_timeout_sec
        target = workspace.target(name)
        self.calls.run(partial(fetch_url, name, url, target, hosts, most, silence_s, pace.came),
                       check)  # fmt: skip

    def _from_control(self, name: str, given: LeasedInput, workspace: Workspace) -> None:
        """Try until it is there or the lease is over: control being away is no fault of anybody.

        Raises HandBack when heartbeats keep the lease up and the input does not come.
        """
        settings, clock = self.context.settings, self.context.clock
        pauses = Pauses(settings.retry_base_sec, settings.retry_cap_sec)
        limit = given.size if given.size is not None else MAX_RESULT_BYTES
        end = clock.boot() + self.patience_s
        while True:
            target = workspace.target(name)
            fetch = partial(
                self.context.client.fetch_input, self.lease, name, target, limit, given.sha256
            )
            try:
                self.calls.run(partial(self.link.call, fetch), self._looked)
                return
            except RaeError as error:
                found = verdict(error)
                if found is Verdict.STALE:
                    raise Dropped(f"input: {error.rc}") from error
                if found is Verdict.REFUSED:
                    raise TaskFailure("E_INPUT", f"Input '{name}': {error.message}") from error
                if clock.boot() >= end:
                    raise HandBack("deadline", f"Input '{name}': {error.message}") from error
            self.calls.wait(pauses.next())
            self._look()

    def _looked(self) -> float:
        self._look()
        return _LOOK_S
