"""RAE's side of the protocol: upload, submit, wait, read logs, fetch artifacts, cancel, operate."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import quote

from rae_protocol import answers, models
from rae_protocol.answers import Answer, json_of
from rae_protocol.errors import RaeError, Unreachable
from rae_protocol.names import MAX_RESULT_BYTES, NODE_ID_PATTERN, TASK_ID_PATTERN
from rae_protocol.transport import Backoff, BearerAuth, Transport

T = TypeVar("T")


def uuid7(now: float | None = None) -> str:
    """A UUIDv7 (RFC 9562): unix milliseconds first, so ids sort by age."""
    return uuid7s(1, now)[0]


def uuid7s(count: int, now: float | None = None) -> list[str]:
    """Several, with one call for what is random in them."""
    millis = int((time.time() if now is None else now) * 1000)
    noise = secrets.token_bytes(16 * count)
    fixed, free = millis << 80 | 7 << 76 | 2 << 62, 0xFFF << 64 | (1 << 62) - 1
    values = (noise[at : at + 16] for at in range(0, len(noise), 16))
    return [str(uuid.UUID(int=fixed | int.from_bytes(some, "big") & free)) for some in values]


class RaeClient:
    """Everything a submitter or an operator may ask of control.

    Methods raise RemoteError with control's rc, or Unreachable. Submits carry ids made here, so
    they may be repeated after a lost answer without running anything twice. What is not safe to
    repeat (`requeue`, `add_token`) is sent again only when control has surely not acted; after a
    lost answer Unreachable tells how to find out. `ca_file`: see Transport.
    """

    def __init__(
        self,
        url: str,
        token: str | None,
        *,
        ca_file: str | None = None,
        backoff: Backoff = Backoff(),
        read_timeout_s: float = 30.0,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._http = Transport(
            url, ca_file=ca_file, backoff=backoff, read_timeout_s=read_timeout_s, sleep=sleep
        )
        self._auth = BearerAuth(token)
        self._monotonic = monotonic

    # Tasks

    def submit(self, tasks: Sequence[models.TaskSpec | dict[str, Any]]) -> list[models.TaskRef]:
        """Submit up to 1,000 tasks, all or none. Tasks without an id get one here."""
        specs = []
        for task in tasks:
            body = dict(task) if isinstance(task, dict) else task.model_dump(exclude_unset=True)
            body.setdefault("task_id", uuid7())
            specs.append(
                models.parse(models.TaskSpec, body).model_dump(mode="json", exclude_unset=True)
            )
        data = models.canonical({"tasks": specs})
        read = json_of(models.Submitted, right=lambda found: len(found.tasks) == len(specs))
        return self._post("/tasks", data, read, retry=True).tasks

    def task(self, task_id: str) -> models.TaskView:
        """A task with its history and, while it does not run, the reasons why."""
        return self._get(_task(task_id), _view_of(task_id))

    def tasks(self, **filters: Any) -> models.TaskList:
        """A page of tasks. Filters: state, kind, label, node, submitter, limit, cursor."""
        return self._get(
            "/tasks", json_of(models.TaskList), {k: v for k, v in filters.items() if v}
        )

    def wait(self, task_id: str, timeout_s: float | None = None) -> models.TaskView:
        """Wait until the task has ended and return it. Raises TimeoutError."""
        end = None if timeout_s is None else self._monotonic() + timeout_s
        while True:
            left = 25.0 if end is None else max(0.0, min(25.0, end - self._monotonic()))
            view = self._get(_task(task_id), _view_of(task_id), {"wait": f"{left:g}"}, left)
            if view.state.final:
                return view
            if end is not None and self._monotonic() >= end:
                raise TimeoutError(f"task {task_id} is still {view.state.value}")

    def events(
        self,
        after: int = 0,
        wait_s: float = 0.0,
        task_id: str | None = None,
        incarnation: str | None = None,
    ) -> models.EventList:
        """Transitions after a cursor; waits for the first one up to `wait_s`.

        Pass `next` and `incarnation` of the answer before. `lost` in the answer says that events
        after the cursor were removed; RemoteError `unknown_cursor`, that control was restored
        since and the events must be read from 0 again.
        """
        path = _task(task_id) + "/events" if task_id else "/events"
        params: dict[str, Any] = {"after": after, "wait": f"{wait_s:g}"}
        if incarnation is not None:
            params["incarnation"] = incarnation
        return self._get(path, json_of(models.EventList), params, wait_s)

    def stream_log(
        self, task_id: str, attempt: int | None = None, *, follow: bool = True
    ) -> Iterator[bytes]:
        """The log of the latest (or the named) attempt: as it grows, until that attempt ends, or
        (without `follow`) what there is now."""
        offset, wait = 0, 25.0 if follow else 0.0
        while True:
            params: dict[str, Any] = {"offset": offset, "wait": f"{wait:g}"}
            if attempt is not None:
                params["attempt"] = attempt
            piece = self._get(_task(task_id) + "/log", answers.log_from(offset), params, wait)
            attempt, offset = piece.attempt or None, piece.offset
            if piece.data:
                yield piece.data
            elif not follow or piece.complete:
                return

    def result(self, task_id: str) -> Any:
        """The value that the task returned. Raises RemoteError when it has none."""
        read = json_of(models.TaskResult, right=lambda found: found.task_id == task_id)
        return self._get(_task(task_id) + "/result", read).result

    def fetch_artifact(self, task_id: str, name: str, target: Path) -> int:
        """Write an artifact to a file (replaced as a whole). Returns its size in bytes."""
        # Not the artifact's name and more: it may be as long as a name can be.
        partial = target.with_name(f".{os.getpid()}-{secrets.token_hex(8)}.part")
        path = f"{_task(task_id)}/artifacts/{quote(name)}"
        try:
            size = self._get(path, answers.file_at(partial, MAX_RESULT_BYTES))
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        return size

    def cancel(self, task_id: str, reason: str | None = None) -> models.TaskView:
        """Cancel; again on a cancelled task is fine, on a finished one it is 409."""
        return self._task_verb(task_id, "cancel", reason)

    def requeue(self, task_id: str, reason: str | None = None) -> models.TaskView:
        """Queue a failed, cancelled or expired task again, with fresh counters.

        A repeat could start it once more after it has ended again: not repeated.
        """
        look = f"`raectl task {task_id}` (GET /tasks/{task_id}) shows its state and its attempts"
        return self._task_verb(task_id, "requeue", reason, look)

    def upload_blob(self, content: bytes | Path) -> str:
        """Upload bytes or a file (at most 16 MiB) unless control has it. Returns the SHA-256."""
        data = content if isinstance(content, bytes) else content.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        path = f"/blobs/{digest}"
        try:
            self._call("HEAD", path, read=answers.has_blob(digest))
        except Unreachable:  # without a body only "it is there" says enough; PUT gets an answer
            read = json_of(models.BlobStored, right=lambda found: found.sha256 == digest)
            self._call("PUT", path, read=read, data=data, retry=True)
        return digest

    # Nodes and tokens

    def nodes(self, include_all: bool = False) -> list[models.NodeView]:
        """Online nodes, or every enrolled one."""
        params = {"all": "1"} if include_all else {}
        return self._get("/nodes", json_of(models.NodeList), params).nodes

    def node(self, node_id: str) -> models.NodeView:
        """One node, whatever its state."""
        return self._get(_node(node_id), _seen_of(node_id))

    def enrol(self, node_id: str, kind: str = "hmac", trusted: bool = False) -> models.Enrolled:
        """Admit a node; the same call again returns the same secret."""
        body = models.canonical({"node_id": node_id, "kind": kind, "trusted": trusted})
        read = json_of(models.Enrolled, right=lambda found: found.node_id == node_id)
        return self._post("/nodes/enrol", body, read, retry=True)

    def node_verb(self, node_id: str, verb: str, reason: str | None = None) -> models.NodeView:
        """`drain`, `resume` or `revoke` a node."""
        body = models.canonical({"reason": reason} if reason else {})
        return self._post(f"{_node(node_id)}/{verb}", body, _seen_of(node_id), retry=True)

    def add_token(self, name: str, role: str) -> models.TokenView:
        """Make a token; its text is in this answer and nowhere else. Not repeated."""
        read = json_of(models.TokenView, right=lambda found: found.name == name)
        body = models.canonical({"name": name, "role": role})
        look = f"if `raectl tokens list` shows {name}, revoke it, for its text is lost"
        return self._post_once("/tokens", body, read, look)

    def tokens(self) -> list[models.TokenView]:
        """All tokens, without their texts."""
        return self._get("/tokens", json_of(models.TokenList)).tokens

    def revoke_token(self, token_id: str) -> models.TokenView:
        """End a token at once, by its id or name."""
        read = json_of(
            models.TokenView, right=lambda found: token_id in {found.token_id, found.name}
        )
        path = f"/tokens/{quote(token_id, safe='')}/revoke"
        return self._post(path, b"{}", read, retry=True)

    def health(self) -> dict[str, Any]:
        """What /readyz says. Raises RemoteError `not_ready`."""
        return self._call("GET", "/readyz", read=json_of(models.Ready)).model_dump()

    def _task_verb(
        self, task_id: str, verb: str, reason: str | None, look: str | None = None
    ) -> models.TaskView:
        path, read = f"{_task(task_id)}/{verb}", _view_of(task_id)
        body = models.canonical({"reason": reason} if reason else {})
        if look is None:
            return self._post(path, body, read, retry=True)
        return self._post_once(path, body, read, look)

    def _get(
        self,
        path: str,
        read: Callable[[Answer], T],
        params: dict[str, Any] | None = None,
        wait_s: float = 0.0,
    ) -> T:
        return self._call("GET", path, read=read, params=params, retry=True, wait_s=wait_s)

    def _post_once(self, path: str, data: bytes, read: Callable[[Answer], T], look: str) -> T:
        """For what must not be done twice; `look` tells how to find out whether it was done."""
        try:
            return self._post(path, data, read, retry="unsent")
        except Unreachable as error:
            if error.unsent:
                raise
            way_out = f"Control may have acted all the same; before you try again: {look}."
            raise Unreachable(error.cause or "", reason=error.reason, way_out=way_out) from error

    def _post(
        self,
        path: str,
        data: bytes,
        read: Callable[[Answer], T],
        *,
        retry: bool | Literal["unsent"],
    ) -> T:
        return self._call(
            "POST", path, read=read, data=data, content_type="application/json", retry=retry
        )

    def _call(self, method: str, path: str, *, read: Callable[[Answer], T], **options: Any) -> T:
        return self._http.call(method, path, read=read, auth=self._auth, **options)


def _view_of(task_id: str) -> Callable[[Answer], models.TaskView]:
    return json_of(models.TaskView, right=lambda found: found.task_id == task_id)


def _seen_of(node_id: str) -> Callable[[Answer], models.NodeView]:
    return json_of(models.NodeView, right=lambda found: found.node_id == node_id)


def _task(task_id: str) -> str:
    """The path of a task; what cannot be an id never becomes another path."""
    if not re.fullmatch(TASK_ID_PATTERN, task_id):
        text = f"'{task_id}' cannot be a task_id: 1 to 64 letters, digits, _ and -"
        raise RaeError("unknown_task", text)
    return f"/tasks/{task_id}"


def _node(node_id: str) -> str:
    if not re.fullmatch(NODE_ID_PATTERN, node_id):
        raise RaeError("unknown_node", f"'{node_id}' cannot be a node_id")
    return f"/nodes/{node_id}"
