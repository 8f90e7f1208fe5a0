"""Control inside the test's own process: real ledger, real Redis, injected clock, no gunicorn."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gevent
import redis
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from rae_control.auth.root_keys import load_roots
from rae_control.config import ControlConfig
from rae_control.ledger import nodes as ledger_nodes
from rae_control.mesh.mesh import Mesh
from rae_control.queue.dev_redis import arguments, find_server
from rae_control.queue.rq_queue import RqQueue
from rae_control.server.gunicorn_app import die_with_parent
from rae_protocol import signing
from rae_protocol.errors import TABLE
from tests.messages import faults
from tests.until import until as tests_until


class ManualClock:
    """Starts at the real wall time; only `advance` and `step` move it."""

    def __init__(self) -> None:
        self.offset = 0.0
        self._start = time.time()
        self._boot = 1000.0
        self._boots = 1

    def step(self, seconds: float) -> None:
        """Set the wall clock: no time passes."""
        self._start += seconds

    def wall(self) -> float:
        return self._start + self.offset

    def boot(self) -> float:
        return self._boot + self.offset

    def boot_id(self) -> str:
        return f"boot {self._boots}"

    def reboot(self) -> None:
        """The boot clock begins anew."""
        self._boots += 1
        self._boot = 5.0 - self.offset

    def advance(self, seconds: float) -> None:
        self.offset += seconds


# Greenlets run meanwhile.
until = partial(tests_until, sleep=gevent.sleep)


@dataclass
class Server:
    """A Redis server that a test may stop and start again."""

    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.folder / 'redis.sock'}"

    def start(self) -> None:
        (self.folder / "log").mkdir(exist_ok=True)
        command = arguments(find_server(), self.folder, self.folder / "redis.sock")
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - ends with the tests, however they end
        )
        client = redis.Redis.from_url(self.url)
        until(lambda: _answers(client), "Redis answers")
        client.close()

    def stop(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


def build(data: Path, server: Server, clock: ManualClock, config: ControlConfig) -> Mesh:
    roots = load_roots(data)
    mesh = Mesh(data, config, clock, RqQueue(server.url, 0.5), roots)
    for name, role in (("alice", "submit"), ("bob", "submit"), ("root", "admin"), ("eve", "read")):
        if not mesh.ledger.read(
            lambda db, n=name: db.execute("SELECT 1 FROM tokens WHERE name = ?", (n,)).get
        ):
            mesh.write(lambda tx, n=name, r=role: ledger_nodes.add_token(tx, n, r, f"token-of-{n}"))
    # What an earlier control may have taken is refused (retry_signed); be older than that.
    clock.advance(0.5)
    tick(mesh, clock, 1 + config.skew_ahead_s)
    return mesh


def tick(mesh: Mesh, clock: ManualClock, seconds: float) -> None:
    """Let time pass as a running reaper sees it: second by second."""
    for _ in range(int(seconds)):
        clock.advance(1)
        mesh.reaper.tick()


@dataclass
class Api:
    """Calls as RAE, an operator or a node would send them."""

    client: FlaskClient
    clock: ManualClock
    secrets: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)

    def rae(self, method: str, path: str, body: Any = None, *, who: str = "alice") -> TestResponse:
        headers = {"Authorization": f"Bearer token-of-{who}"}
        if isinstance(body, bytes):
            return self.client.open(path, method=method, data=body, headers=headers)
        return self.client.open(path, method=method, json=body, headers=headers)

    def submit(self, *tasks: dict[str, Any], who: str = "alice") -> list[dict[str, Any]]:
        answer = self.rae("POST", "/tasks", {"tasks": list(tasks)}, who=who)
        assert answer.status_code == 201, answer.json
        found: list[dict[str, Any]] = answer.json["tasks"]
        return found

    def task(self, task_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.rae("GET", f"/tasks/{task_id}").json
        return found

    def enrol(self, node_id: str, kind: str = "hmac", trusted: bool = False) -> str:
        body = {"node_id": node_id, "kind": kind, "trusted": trusted}
        answer = self.rae("POST", "/nodes/enrol", body, who="root")
        assert answer.status_code == 201, answer.json
        self.secrets[node_id] = answer.json["enrolment_secret"]
        return self.secrets[node_id]

    def register(self, node_id: str, **extra: Any) -> TestResponse:
        body = {"node_id": node_id, "capabilities": {"runners": ["cli", "python"]}, "ack": True,
                "machine": "m1", "instance": "i1", "slots": ["cpu0", "cpu1"], **extra}  # fmt: skip
        raw = json.dumps(body).encode()
        fields = signing.signed_fields(
            self.secrets[node_id].encode(),
            node_id,
            "POST",
            "/nodes/register",
            self.clock.wall(),
            raw,
        )
        headers = {
            "Authorization": f"RAE-HMAC {fields.header()}",
            "Content-Type": "application/json",
        }
        answer = self.client.post("/nodes/register", data=raw, headers=headers)
        if answer.status_code == 200:
            self.tokens[node_id] = answer.json["node_token"]
        return answer

    def join(self, node_id: str, **extra: Any) -> None:
        self.enrol(node_id)
        answer = self.register(node_id, **extra)
        assert answer.status_code == 200, answer.json

    def node(
        self, node_id: str, method: str, path: str, body: Any = None, *, ts: float | None = None,
        fields: signing.SignatureFields | None = None, content_type: str = "application/json",
    ) -> TestResponse:  # fmt: skip
        raw = (
            b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        )
        token = self.tokens[node_id]
        if fields is None:
            key = signing.session_key(self.secrets[node_id], token)
            now = self.clock.wall() if ts is None else ts
            fields = signing.signed_fields(key, node_id, method, path, now, raw)
        headers = {"Authorization": f"Bearer {token}", "RAE-Signature": fields.header()}
        if raw:
            headers["Content-Type"] = content_type
        return self.client.open(path, method=method, data=raw, headers=headers)

    def poll(self, node_id: str, query: str = "slots=cpu0,cpu1") -> dict[str, Any]:
        answer = self.node(node_id, "GET", f"/tasks/poll?{query}")
        assert answer.status_code == 200, answer.json
        found: dict[str, Any] = answer.json
        return found

    def claim(self, node_id: str, query: str = "slots=cpu0,cpu1") -> dict[str, Any]:
        """Poll and open the envelope; returns the lease's reference."""
        envelope = until(lambda: self.poll(node_id, query).get("task"), "a task for the node")
        task = json.loads(base64.b64decode(envelope["payload"]))
        return {name: task[name] for name in ("task_id", "attempt", "lease_id")}

    def take(self, node_id: str, query: str = "slots=cpu0,cpu1") -> dict[str, Any]:
        """Poll, open the envelope, ack; returns the lease's reference."""
        ref = self.claim(node_id, query)
        answer = self.node(node_id, "POST", "/tasks/ack", ref)
        assert answer.status_code == 200, answer.json
        return ref

    def result(
        self, node_id: str, ref: dict[str, Any], status: str = "succeeded", **extra: Any
    ) -> TestResponse:
        return self.node(node_id, "POST", "/tasks/result", {**ref, "status": status, **extra})

    def blob(self, data: bytes, who: str = "alice") -> str:
        digest = hashlib.sha256(data).hexdigest()
        assert self.rae("PUT", f"/blobs/{digest}", data, who=who).status_code in {200, 201}
        return digest


ECHO: dict[str, Any] = {"kind": "cli", "params": {"command": "true"}}


def multipart(result: dict[str, Any], name: str, content: bytes) -> bytes:
    def head(field: str) -> bytes:
        return f'--xyz\r\nContent-Disposition: form-data; name="{field}\r\n\r\n'.encode()

    metadata = head('metadata"') + json.dumps(result).encode()
    part = head(f'artifacts/{name}"; filename="f"') + content
    return metadata + b"\r\n" + part + b"\r\n--xyz--\r\n"


def refused(answer: Any, rc: str) -> dict[str, Any]:
    """The answer is an error of the table with this rc, a sentence and a detail."""
    body: dict[str, Any] = answer.json
    assert (answer.status_code, body["rc"]) == (TABLE[rc][0], rc), body
    assert set(body) == {"rc", "message", "detail"}
    assert body["message"].endswith(".")
    assert faults(body["message"]) == []
    return body


def rq_info(server: Server, *arguments: str) -> str:
    command = [str(Path(sys.executable).with_name("rq")), "info", "-u", server.url,
               "-S", "rq.serializers.JSONSerializer", "--raw", *arguments]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def shown(server: Server) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """What rq info shows: queues with (queued, executing), workers with their state."""
    queues, workers = {}, {}
    for line in rq_info(server).splitlines():
        words = line.replace(",", "").split()
        if words[0] == "queue":
            queues[words[1]] = (int(words[2]), int(words[3]))
        elif words[0] == "worker":
            workers[words[1]] = line.split(")")[1].split()[0]
    return queues, workers


def settled(mesh: Mesh) -> None:
    until(
        lambda: not mesh.keeper._ops and not mesh.keeper._slots_changed,
        "the keeper has written everything",
    )
    gevent.sleep(0.05)
