"""The node's side of the protocol: registers, polls, acks, reports and hands back."""

from __future__ import annotations

import base64
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import requests

from rae_protocol import answers, models, signing
from rae_protocol.errors import EnvelopeError, RemoteError
from rae_protocol.transport import Backoff, BearerAuth, Caller, Transport

T = TypeVar("T")
SIGN_TRIES = 3
# What anybody in between may say of the time, before control has signed anything.
UNSIGNED_OFFSET_MAX_S = 86400.0
_SEEN_MAX = 4096
_MOST_PAUSE_S = 10.0


@dataclass(frozen=True, slots=True)
class Polled:
    """What a poll brought: at most one task, the reasons when none, and orders.

    `periods` are those by which the task is leased.
    """

    task: models.LeasedTask | None
    reasons: Sequence[models.Reason]
    commands: Sequence[models.Command]
    wanted: models.Wanted | None = None
    periods: models.Periods = field(default_factory=models.Periods)


class _Signing(Caller):
    """Signs each request, and takes an answer that is signed to that request."""

    def __init__(self, client: NodeClient, key: bytes) -> None:
        self._client, self._key = client, key

    def check(self, response: requests.Response, body_sha256: Callable[[], str]) -> float | None:
        given = response.headers.get(signing.ANSWER_HEADER)
        if given is None:
            if self._client.answers_are_signed:
                raise answers.Unsigned("it is not signed, as control's answers to this node are")
            return None  # an older control
        fields = signing.parse_answer(given)
        request = response.request
        answered = signing.Answered(
            signing.parse_signature(self._header(request)).nonce,
            str(request.headers.get("Content-Type", "")), response.status_code, body_sha256(),
        )  # fmt: skip
        if not signing.answer_matches(fields, self._key, answered):
            raise ValueError("its RAE-Answer is not control's signature of it")
        self._client.answers_are_signed = True
        return float(fields.ts)

    def _header(self, request: requests.PreparedRequest) -> str:
        return str(request.headers[signing.SIGNATURE_HEADER])


class _RegisterAuth(_Signing):
    def __init__(self, client: NodeClient) -> None:
        super().__init__(client, client.secret.encode())

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        fields = self._client.signed(self._key, request)
        request.headers["Authorization"] = f"{signing.REGISTER_SCHEME} {fields.header()}"
        return request

    def _header(self, request: requests.PreparedRequest) -> str:
        return str(request.headers["Authorization"]).partition(" ")[2]


class _SessionAuth(_Signing):
    def __init__(self, client: NodeClient, token: str) -> None:
        super().__init__(client, signing.session_key(client.secret, token))
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        fields = self._client.signed(self._key, request)
        request.headers["Authorization"] = f"Bearer {self._token}"
        request.headers[signing.SIGNATURE_HEADER] = fields.header()
        return request


class NodeClient:
    """Every call of the node contract. Thread-safe.

    Methods raise RemoteError with control's rc, Unreachable, or (poll) EnvelopeError. Repeated
    automatically: what control takes twice without harm. Never repeated: register and poll.

    From the first signed answer on, one without a signature is not control's (`Unreachable`).
    """

    def __init__(
        self,
        url: str,
        node_id: str,
        secret: str,
        *,
        kind: str = "hmac",
        ca_file: str | None = None,
        public_keys: Sequence[str] = (),
        backoff: Backoff = Backoff(tries=4, base_s=0.2, cap_s=4.0),
        read_timeout_s: float = 15.0,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.node_id = node_id
        self.secret = secret
        self.token: str | None = None
        self.answers_are_signed = False
        self._hmac = kind == "hmac"
        self._keys = tuple(public_keys)
        self._now = now
        self._sleep = sleep
        self._http = Transport(
            url,
            ca_file=ca_file,
            backoff=backoff,
            read_timeout_s=read_timeout_s,
            now=now,
            sleep=sleep,
            unsigned_offset_max_s=UNSIGNED_OFFSET_MAX_S,
        )
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._seen_lock = threading.Lock()

    @property
    def clock_offset_s(self) -> float:
        """Control's clock minus ours, in seconds; 0 below half a second (unsigned: below two)."""
        return self._http.clock_offset_s

    def signed(self, key: bytes, request: requests.PreparedRequest) -> signing.SignatureFields:
        """Sign a prepared request on control's clock."""
        body = request.body or b""
        raw = body.encode() if isinstance(body, str) else bytes(body)
        now = self._now() + self._http.clock_offset_s
        return signing.signed_fields(
            key, self.node_id, str(request.method), request.path_url, now, raw
        )

    def register(self, request: models.RegisterRequest) -> models.Registered:
        """Introduce the node; the token that comes back signs every later call."""
        auth = _RegisterAuth(self) if self._hmac else BearerAuth(self.secret)
        read = answers.json_of(models.Registered, answers.MAX_SMALL_BYTES)
        answer = self._known_fields("/nodes/register", request, read, auth)
        self.token = answer.node_token
        return answer

    def heartbeat(self, beat: models.Heartbeat) -> models.HeartbeatAnswer:
        """Say that the node lives. Not repeated: the caller's rhythm is the retry."""
        read = answers.json_of(models.HeartbeatAnswer, answers.MAX_SMALL_BYTES)
        return self._known_fields("/nodes/heartbeat", beat, read, self._auth())

    def poll(
        self, *, wait_s: float, slots: Sequence[str] | None, vram_free_mb: float | None = None
    ) -> Polled:
        """Ask for a task for one of the free slots; no slots: for commands. Never repeated."""
        params: dict[str, Any] = {"wait": f"{wait_s:g}"}
        if slots is not None:
            params["slots"] = ",".join(slots)
        if vram_free_mb is not None:
            params["vram_free_mb"] = f"{vram_free_mb:.0f}"
        read = answers.json_of(models.PollAnswer, answers.MAX_TASK_BYTES, self._is_poll)
        answer = self._signed_call(
            "GET", "/tasks/poll", read=read, auth=self._auth(), params=params, wait_s=wait_s
        )
        task = None if answer.task is None else self._accept(answer.task)
        return Polled(task, answer.reasons, answer.commands, answer.wanted, answer)

    def ack(self, lease: models.LeaseRef) -> None:
        """Take the task on; work may start only after this returned."""
        self._about_task("/tasks/ack", models.Ack(**_ref(lease)), retry=True)

    def progress(self, lease: models.LeaseRef, pct: float, note: str | None = None) -> None:
        """Report progress; the next report makes up for a lost one."""
        body = models.Progress(**_ref(lease), pct=pct, note=note)
        self._about_task("/tasks/progress", body, retry=False)

    def log(self, lease: models.LeaseRef, offset: int, data: bytes) -> None:
        """Send a piece of the log from an offset on."""
        text = base64.b64encode(data).decode()
        body = models.LogChunk(**_ref(lease), offset=offset, data=text)
        self._about_task("/tasks/log", body, retry=False)

    def result(
        self, result: models.Result, artifacts: Sequence[tuple[str, Path]] = ()
    ) -> models.ResultAnswer:
        """Deliver the outcome with the artifacts (name, path). The same one twice is fine."""
        if not artifacts:
            return self._about_task("/tasks/result", result, retry=True)
        with ExitStack() as stack:
            files: list[tuple[str, tuple[str, Any, str]]] = [
                ("metadata", ("metadata.json", models.encode(result), "application/json"))
            ]
            for name, path in artifacts:
                handle = stack.enter_context(path.open("rb"))
                files.append((f"artifacts/{name}", (path.name, handle, "application/octet-stream")))
            # Not repeated here: an open file is read once. The spool tries again.
            return self._signed_call(
                "POST", "/tasks/result", read=answers.about_task(result.task_id),
                auth=self._auth(), files=files,
            )  # fmt: skip

    def yield_task(
        self, lease: models.LeaseRef, reason: str, detail: str | None, stopped_ms: float | None
    ) -> None:
        """Hand a task back after its work was stopped."""
        body = models.parse(
            models.YieldRequest,
            {**_ref(lease), "reason": reason, "detail": detail, "stopped_ms": stopped_ms},
        )
        self._about_task("/tasks/yield", body, retry=True)

    def goodbye(self, reason: str | None = None) -> None:
        """Leave on purpose: control closes the session and whatever is leased to it."""
        body = models.Goodbye(node_id=self.node_id, reason=reason)
        read = answers.json_of(
            models.NodeView, answers.MAX_SMALL_BYTES, lambda node: node.node_id == self.node_id
        )
        self._post("/nodes/goodbye", body, read, retry=False)

    def fetch_input(
        self,
        lease: models.LeaseRef,
        name: str,
        target: Path,
        max_bytes: int,
        sha256: str | None = None,
    ) -> None:
        """Write an input to a new file, when it came whole. Raises RemoteError, Unreachable."""
        self._signed_call(
            "GET",
            f"/tasks/{lease.task_id}/inputs/{quote(name)}",
            read=answers.file_at(target, max_bytes, sha256),
            auth=self._auth(),
            params={"attempt": lease.attempt, "lease_id": lease.lease_id},
            retry=True,
        )

    def _auth(self) -> Caller:
        if self.token is None:
            raise RemoteError("register_again", "The node has no session yet.", 401, {})
        return _SessionAuth(self, self.token) if self._hmac else BearerAuth(self.token)

    def _about_task(
        self, path: str, body: models.LeaseRef | models.Result, *, retry: bool
    ) -> models.ResultAnswer:
        return self._post(path, body, answers.about_task(body.task_id), retry=retry)

    def _post(
        self, path: str, body: models.Model, read: Callable[[answers.Answer], T], *, retry: bool
    ) -> T:
        return self._signed_call(
            "POST", path, read=read, auth=self._auth(), data=models.encode(body), retry=retry
        )

    def _known_fields(
        self, path: str, body: models.Model, read: Callable[[answers.Answer], T], auth: Caller
    ) -> T:
        """Send a body, without the optional fields that a control of an older release refuses."""
        data = models.encode(body)
        while True:
            try:
                return self._signed_call("POST", path, read=read, auth=auth, data=data)
            except RemoteError as error:
                unknown = models.unknown_fields(error.detail)
                if error.rc != "invalid_body" or not unknown:
                    raise
                fewer = models.without(data, unknown)
                if fewer == data or not models.accepts(body, fewer):
                    raise
                data = fewer

    def _signed_call(
        self, method: str, path: str, *, read: Callable[[answers.Answer], T], **options: Any
    ) -> T:
        """A call that is signed again when only the clock stood in the way."""
        if "data" in options:
            options["content_type"] = "application/json"
        for left in reversed(range(SIGN_TRIES)):
            try:
                return self._http.call(method, path, read=read, **options)
            except RemoteError as error:
                # The signature was refused before anything was looked at, so this repeats nothing.
                if error.rc not in {"retry_signed", "skew"} or not left or options.get("files"):
                    raise
                if error.rc == "retry_signed":
                    self._sleep(min(error.retry_after_s or 1.0, _MOST_PAUSE_S))
        raise AssertionError("the last try returns or raises")

    def _is_poll(self, answer: models.PollAnswer) -> bool:
        """Every field has a default, so that `{}` would pass; control sends both lists."""
        if not {"reasons", "commands"} <= answer.model_fields_set:
            return False
        # What is signed tells by itself whether it is control's; that is looked at later.
        return (
            self._hmac
            or answer.task is None
            or models.parse_leased(answer.task).node_id == self.node_id
        )

    def _accept(self, given: dict[str, Any]) -> models.LeasedTask:
        try:
            body = signing.open_envelope(given, self._keys) if self._hmac else given
            task = models.parse_leased(body)
        except ValueError as error:
            raise EnvelopeError(f"the answer holds no task: {error}") from error
        if self._hmac and task.node_id != self.node_id:
            raise EnvelopeError(f"the task is meant for node {task.node_id}")
        if self._hmac and task.expires_at <= self._now() + self._http.clock_offset_s:
            raise EnvelopeError("the task's envelope has expired")
        with self._seen_lock:
            if task.lease_id in self._seen:  # a proxy may repeat an answer
                raise EnvelopeError("the task's lease was seen before")
            self._seen[task.lease_id] = None
            while len(self._seen) > _SEEN_MAX:
                self._seen.popitem(last=False)
        return task


def _ref(lease: models.LeaseRef) -> dict[str, Any]:
    return {"task_id": lease.task_id, "attempt": lease.attempt, "lease_id": lease.lease_id}
