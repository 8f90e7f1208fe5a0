"""state.json in each workspace (C5, C6), and what happens to workspaces that somebody finds.

A state is what an attempt was doing: PREP, RUNNING, UPLOADING, then DONE or FAILED. It decides
nothing about leases (registering does: what is not in the spool goes back to its lane); it tells
how long an ended workspace stays, and the log what became of the others.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rae_node.config.layout import Layout
from rae_node.host.moments import Moment, left_s, now_on
from rae_node.supervisor import process_tree
from rae_node.telemetry.log import EventLog
from rae_protocol.clock import Clock
from rae_protocol.models import LeaseRef

STATE = "state.json"
KEPT = ".kept"
_MAX_BYTES = 64 * 1024
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class State:
    """What an attempt was doing at a time: unix, and seconds of a boot (`moments.Moment`).

    `keep_s`: how long an ended one stays.
    """

    task_id: str
    attempt: int
    lease_id: str
    state: str
    at: float
    keep_s: float = 0.0
    boot: float = 0.0
    boot_id: str = ""


def write_state(folder: Path, state: State) -> None:
    """Note it in the workspace, as a whole. Raises OSError.

    Nothing waits for the disk: after a power cut no state at all says the same.
    """
    top = os.open(folder, _FOLDER)
    try:
        part = f"{STATE}.part"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part, dir_fd=top)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with os.fdopen(os.open(part, flags, 0o600, dir_fd=top), "w", encoding="utf-8") as handle:
            json.dump(asdict(state), handle)
        os.rename(part, STATE, src_dir_fd=top, dst_dir_fd=top)
    finally:
        os.close(top)


def read_state(folder: Path) -> State | None:
    """What a workspace says; None when it says nothing readable. A task may have written it."""
    try:
        top = os.open(folder, _FOLDER)
        try:
            file = os.open(STATE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=top)
        finally:
            os.close(top)
        with os.fdopen(file, "rb") as handle:
            if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
                return None
            found = json.loads(handle.read(_MAX_BYTES))
        lease = LeaseRef.model_validate(
            {key: found[key] for key in ("task_id", "attempt", "lease_id")}
        )
        at, keep_s, boot = map(float, (found["at"], found["keep_s"], found.get("boot", 0.0)))
        if not all(map(math.isfinite, (at, keep_s, boot))):
            return None
        return State(
            **lease.model_dump(), state=str(found["state"]), at=at, keep_s=keep_s, boot=boot,
            boot_id=str(found.get("boot_id", "")),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return None


def keep(folder: Path, state: State) -> None:
    """Put an ended workspace aside, under a name that no attempt has. Raises OSError."""
    write_state(folder, state)
    kept = folder.with_name(folder.name + KEPT)
    process_tree.wipe(str(kept))
    folder.rename(kept)


def recover(layout: Layout, log: EventLog, wipe: Callable[[Path], None]) -> None:
    """After every process of an earlier agent is dead: wipe what its attempts left, and say so."""
    for folder in layout.workdir.iterdir():
        if folder.name.endswith(KEPT):
            continue
        found = read_state(folder)
        if found is None:
            log.info("leftover_workspace_wiped", folder=folder.name)
        else:
            spooled = (layout.spool / found.lease_id).exists()
            log.info(
                "attempt_recovered", task_id=found.task_id, attempt=found.attempt,
                state=found.state, becomes="its result waits" if spooled else "queued elsewhere",
            )  # fmt: skip
        wipe(folder)


def expired(workdir: Path, now: Moment | None, keep_s: Callable[..., float]) -> Iterator[Path]:
    """Kept workspaces whose time is over, whatever steps the wall clock did; all without `now`.

    `keep_s`: NodeConfig's. A task may have written a state, or the folder: none stays longer than
    config.yaml says today, and what no attempt can be called goes.
    """
    for folder in workdir.iterdir():
        if not folder.name.endswith(KEPT):
            continue
        found = read_state(folder)
        if (
            found is None
            or found.state not in {"DONE", "FAILED"}
            or folder.name != f"{found.task_id}.{found.attempt}{KEPT}"
            or now is None
            or _is_over(found, min(found.keep_s, keep_s(succeeded=found.state == "DONE")), now)
        ):
            yield folder


def _is_over(found: State, keep_s: float, now: Moment) -> bool:
    """Whether it has stayed so long; also one of the future, which no agent wrote."""
    left = left_s(Moment(found.at, found.boot, found.boot_id), keep_s, now)
    return not 0 < left <= keep_s


class Sweeper:
    """Removes kept workspaces when their time is over, and all of them when the disk is low."""

    def __init__(
        self,
        workdir: Path,
        clock: Clock,
        log: EventLog,
        every_s: float,
        low: Callable[[], bool],
        keep_s: Callable[..., float],
        wipe: Callable[[Path], None],
    ) -> None:
        self._wipe = wipe
        self._workdir, self._clock, self._log = workdir, clock, log
        self._every_s, self._low, self._keep_s = every_s, low, keep_s
        self._over = threading.Event()

    def start(self) -> None:
        """Begin to sweep."""
        threading.Thread(target=self._run, name="sweeper", daemon=True).start()

    def stop(self) -> None:
        """End the thread."""
        self._over.set()

    def sweep(self) -> int:
        """One round; returns how many workspaces went. Raises OSError."""
        now = None if self._low() else now_on(self._clock)
        gone = list(expired(self._workdir, now, self._keep_s))
        for folder in gone:
            self._wipe(folder)
        if gone:
            self._log.info("workspaces_swept", count=len(gone))
        return len(gone)

    def _run(self) -> None:
        while not self._over.is_set():  # the first round is at the start
            try:
                self.sweep()
            except OSError as error:
                self._log.error("sweep_failed", error=str(error))
            self._over.wait(self._every_s)
