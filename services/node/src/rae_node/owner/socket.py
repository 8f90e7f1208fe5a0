"""The owner's door: one JSON line in, one out, over a unix socket; the peer's uid decides."""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rae_node.config.layout import socket_address
from rae_node.errors import NodeError
from rae_node.telemetry.log import EventLog

OWNER_GROUP = "rae-owner"
_MAX_LINE = 65536
_MAX_ANSWER = 16 * 1024 * 1024
_PATIENCE_S = 10.0
_RETRY_S = 0.1
_MOST, _MOST_OF_A_USER = 64, 8  # connections at once
_CALL_S, _LEAST_S = 25.0, 1.0  # a whole call; the least of it for the answer
PING = "ping"  # the agent asks itself whether it answers

Verb = Callable[[dict[str, Any], int], dict[str, Any]]  # the request, the peer's uid


def may_resume(uid: int, own_uid: int, group: str = OWNER_GROUP) -> bool:
    """Whoever is logged in may pause; lending again is for root, the agent's user, the owners."""
    if uid in {0, own_uid}:
        return True
    try:
        user, owners = pwd.getpwuid(uid), grp.getgrnam(group)
        return owners.gr_gid in os.getgrouplist(user.pw_name, user.pw_gid)
    except (KeyError, OSError):
        return False


class LocalSocket:
    """Serves verbs; those in `guarded` need `may_resume`."""

    def __init__(
        self, path: Path, verbs: Mapping[str, Verb], guarded: frozenset[str], log: EventLog,
        answers_in_s: float = 0.4,
    ) -> None:  # fmt: skip
        """Listen. `answers_in_s`: how long `keep_open` waits for an answer. Raises OSError."""
        self._answers_in_s = answers_in_s
        self._path, self._verbs, self._guarded, self._log = path, verbs, guarded, log
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._served: Counter[int] = Counter()  # open connections by uid
        self._thread: threading.Thread | None = None
        self._file: tuple[int, int, int] | None = None
        self._open()

    def _open(self) -> None:
        self._path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with socket_address(self._path) as address:
            self._socket.bind(address)
        self._path.chmod(0o666)
        self._file = _identity(self._path)
        self._socket.listen(_MOST)

    def start(self) -> None:
        """Begin to answer. Raises RuntimeError when there is no thread."""
        self._thread = threading.Thread(
            target=self._serve, args=(self._socket,), name="local-socket", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._closed.set()
        self._stop_listening()
        self._path.unlink(missing_ok=True)

    def keep_open(self) -> None:
        """Open it again where it is gone, replaced or without its thread; then ask it.

        Raises NodeError when it does not answer: then `pause` may not work.
        """
        if self._closed.is_set():
            return
        try:
            if not self._stands():
                self._log.warning("local_socket_opened_again", path=str(self._path))
                self._stop_listening()
                self._open()
                self.start()
            ask(self._path, {"verb": PING}, self._answers_in_s)
        except (OSError, RuntimeError, NodeError) as error:
            if isinstance(error.__cause__, ConnectionRefusedError):
                self._file = None  # it listens no more
            raise NodeError(
                "blind",
                f"the owner's socket {self._path} does not serve, so that `rae-node pause` may not "
                f"work ({error}); the agent tries again by itself",
            ) from error

    def _stands(self) -> bool:
        """Whether the file is the one that was made, and its thread lives."""
        try:
            found = _identity(self._path)
        except OSError:
            return False
        return found == self._file and self._thread is not None and self._thread.is_alive()

    def _stop_listening(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # a close alone does not end accept()
        self._socket.close()

    def _serve(self, listening: socket.socket) -> None:
        while listening is self._socket and not self._closed.is_set():
            try:
                self._take(listening.accept()[0])
            except Exception:
                # Closed by us; or out of files, memory or threads for a while, which must not end
                # the owner's door.
                self._closed.wait(_RETRY_S)

    def _take(self, connection: socket.socket) -> None:
        """Answer one connection, if there is room for it. Raises whatever went wrong."""
        admitted = None
        try:
            end = time.monotonic() + _CALL_S
            raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            admitted = uid = struct.unpack("3i", raw)[1]
            if self._admit(uid):
                threading.Thread(
                    target=self._answer, args=(connection, uid, end), daemon=True
                ).start()
                return
        except BaseException:
            self._turn_away(connection, admitted)
            raise
        self._turn_away(connection, admitted)

    def _turn_away(self, connection: socket.socket, uid: int | None) -> None:
        connection.close()
        if uid is not None:
            self._leave(uid)

    def _admit(self, uid: int) -> bool:
        """Count a connection; whether there is room for it.

        Root and the agent always have some, and owners whatever others do: one user can have
        thousands of uids (subuid(5)).
        """
        with self._lock:
            self._served[uid] += 1
            mine, all_of_them = self._served[uid], self._served.total()
        if uid in {0, os.getuid()}:
            return True
        return mine <= _MOST_OF_A_USER and (all_of_them <= _MOST or may_resume(uid, os.getuid()))

    def _leave(self, uid: int) -> None:
        with self._lock:
            self._served[uid] -= 1
            if not self._served[uid]:
                del self._served[uid]

    def _answer(self, connection: socket.socket, uid: int, end: float) -> None:
        """One call. `end`: when it is over (monotonic), whatever its sender does."""
        try:
            with connection, contextlib.suppress(OSError):
                try:
                    answer = self._obey(_request(connection), uid)
                except NodeError as error:
                    answer = {"rc": error.rc, "message": error.message}
                except Exception as error:  # one request's trouble is not the agent's
                    self._log.error("local_request_failed", error=repr(error))
                    answer = {"rc": "internal", "message": "The agent failed; see its log."}
                connection.settimeout(max(_LEAST_S, end - time.monotonic()))
                connection.sendall(json.dumps(answer).encode() + b"\n")
        finally:
            self._leave(uid)

    def _obey(self, line: bytes, uid: int) -> dict[str, Any]:
        try:
            request = json.loads(line)
            name = request["verb"]
            if name == PING:
                return {}
            verb = self._verbs[name]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise NodeError(
                "invalid_request", "Unknown verb; send one of " + ", ".join(self._verbs)
            ) from error
        if name in self._guarded and not may_resume(uid, os.getuid()):
            raise NodeError(
                "forbidden",
                f"'{name}' is for root and group {OWNER_GROUP}, pause for everybody; ask as one of "
                "them",
            )
        return verb(request, uid)


def _identity(path: Path) -> tuple[int, int, int]:
    """What tells a socket's file from another one at its place. Raises OSError."""
    found = path.lstat()
    return found.st_dev, found.st_ino, found.st_mode


def ask(path: Path, request: dict[str, Any], timeout_s: float = _PATIENCE_S) -> dict[str, Any]:
    """One request to the agent behind a socket.

    Raises NodeError: `not_running` when no agent answers, else what the agent says.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            _connect(connection, path, timeout_s)
            connection.sendall(json.dumps(request).encode() + b"\n")
            answer = json.loads(_read_line(connection, timeout_s, _MAX_ANSWER))
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise NodeError(
            "not_running",
            f"No agent answers at {path} ({said}); start it with `systemctl start rae-node` where "
            "enable-node has lent the machine. A dev node starts with `rae-node run --dev`, and "
            "--data DIR names it",
        ) from error
    if not isinstance(answer, dict):
        raise NodeError(
            "not_running", f"What answers at {path} is no agent; end it, then start one"
        )
    if "rc" in answer:
        raise NodeError(str(answer["rc"]), str(answer.get("message")))
    return answer


def _connect(connection: socket.socket, path: Path, timeout_s: float) -> None:
    """Wait while others crowd at the door. Raises OSError."""
    limit = time.monotonic() + timeout_s
    while True:
        try:
            with socket_address(path) as address:
                return connection.connect(address)
        except BlockingIOError:  # unix(7): its queue is full
            if time.monotonic() > limit:
                raise
            time.sleep(_RETRY_S)


def _request(connection: socket.socket) -> bytes:
    try:
        return _read_line(connection, _PATIENCE_S)
    except (ValueError, TimeoutError) as error:
        text = f"Not this way: {error}; send one line of JSON with at most {_MAX_LINE} bytes"
        raise NodeError("invalid_request", text) from error


def _read_line(connection: socket.socket, patience_s: float, longest: int = _MAX_LINE) -> bytes:
    """One line, within the time limit. Raises ValueError for what is none or too long, OSError."""
    pieces, total, limit = [], 0, time.monotonic() + patience_s
    while True:
        connection.settimeout(max(0.001, limit - time.monotonic()))
        piece = connection.recv(65536)
        total += len(piece)
        # What is too long is read on all the same: its sender listens only at its end.
        if total <= longest:
            pieces.append(piece)
        if not piece or b"\n" in piece or total > 64 * longest:
            break
    if total > longest:
        raise ValueError("this one is longer")
    if not pieces or b"\n" not in pieces[-1]:
        raise ValueError("this one broke off" if total else "this one is empty")
    return b"".join(pieces)
