"""The load of `make bench`, in a process of its own (`python -m tools.bench.load JOB < JSON`).

What it burns is counted apart from what it measures: the answer is one JSON line with `cpu_s`.
Connections stay open and are signed by hand, because a slow generator would measure itself.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from typing import Any
from urllib.parse import urlsplit

from urllib3 import encode_multipart_formdata

from rae_protocol import models, signing
from rae_protocol.node_client import NodeClient

TRUE = {"kind": "cli", "params": {"command": "true"}}
URGENT = {**TRUE, "priority": 9}


class Wire:
    """One kept connection. Raises OSError, http.client.HTTPException, RuntimeError (not 2xx)."""

    def __init__(self, url: str, token: str) -> None:
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=120)
        self._token = token

    def call(
        self, method: str, target: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Any:
        """Send, and return the JSON that comes back."""
        raw = (
            body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        )
        sent = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        sent |= self.more_headers(method, target, raw) | (headers or {})
        self._connection.request(method, target, raw or None, sent)
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {target}: {answer.status} {content[:300]!r}")
        return json.loads(content)

    def more_headers(self, _method: str, _target: str, _raw: bytes) -> dict[str, str]:
        """What a submitter sends besides its token."""
        return {}


class NodeWire(Wire):
    """A registered `hmac` node; it takes the envelope's word for the task."""

    def __init__(self, url: str, node_id: str, secret: str) -> None:
        client = NodeClient(url, node_id, secret)
        request = models.RegisterRequest(node_id=node_id, ack=True, machine=node_id, slots=["cpu0"])
        token = client.register(request).node_token
        super().__init__(url, token)
        self.node_id = node_id
        self._key = signing.session_key(secret, token)

    def more_headers(self, method: str, target: str, raw: bytes) -> dict[str, str]:
        """The signature."""
        fields = signing.signed_fields(self._key, self.node_id, method, target, time.time(), raw)
        return {"RAE-Signature": fields.header()}

    def poll(self, wait_s: float = 0) -> dict[str, Any] | None:
        """The lease of a task, or None."""
        envelope = self.call("GET", f"/tasks/poll?wait={wait_s:g}&slots=cpu0").get("task")
        if envelope is None:
            return None
        task = json.loads(base64.b64decode(envelope["payload"]))
        return {key: task[key] for key in ("task_id", "attempt", "lease_id")}

    def finish(self, lease: dict[str, Any]) -> None:
        """Ack, then deliver."""
        self.call("POST", "/tasks/ack", lease)
        self.call("POST", "/tasks/result", {**lease, "status": "succeeded", "result": 1})


def nodes_of(job: dict[str, Any]) -> list[NodeWire]:
    """All nodes of a job, registered."""
    return [NodeWire(job["url"], name, secret) for name, secret in job["nodes"].items()]


def timed(call: Callable[[], Any], taken: list[float]) -> Any:
    """What a call returns; the milliseconds that it took come to the others."""
    began = time.perf_counter()
    answer = call()
    taken.append(1000 * (time.perf_counter() - began))
    return answer


def together(*work: Callable[[], Any]) -> list[Any]:
    """What all these return, each run in a thread of its own."""
    with ThreadPoolExecutor(len(work)) as pool:
        return [one.result() for one in [pool.submit(call) for call in work]]


def claimed(node: NodeWire) -> dict[str, Any]:
    """Poll until there is a task."""
    while (lease := node.poll(5)) is None:
        pass
    return lease


def lifecycles(job: dict[str, Any]) -> dict[str, Any]:
    """`number` times submit, claim, ack, result; `batch` a submit; as many threads as nodes."""
    wires, batch = nodes_of(job), job["batch"]
    left = count()

    def run(node: NodeWire) -> None:
        rae = Wire(job["url"], job["token"])
        while next(left) < job["number"]:
            if batch == 1:
                rae.call("POST", "/tasks", TRUE)
            node.finish(claimed(node))

    def submit() -> None:
        rae = Wire(job["url"], job["token"])
        for _ in range(job["number"] // batch if batch > 1 else 0):
            rae.call("POST", "/tasks", {"tasks": [TRUE] * batch})

    began = time.monotonic()
    together(submit, *(partial(run, wire) for wire in wires))
    return {"seconds": time.monotonic() - began}


def claims(job: dict[str, Any]) -> dict[str, Any]:
    """How long a poll takes that gets a task: milliseconds each, `number` of them."""
    taken: list[float] = []
    wire = nodes_of(job)[0]
    for _ in range(job["number"]):
        lease = timed(wire.poll, taken)
        if lease is None:
            raise RuntimeError("nothing was queued for this node")
        wire.finish(lease)
    return {"ms": taken}


def at_eof() -> threading.Event:
    """Set when standard input ends."""
    over = threading.Event()

    def listen() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=listen, daemon=True).start()
    return over


def beside(job: dict[str, Any]) -> dict[str, Any]:
    """How long urgent submits and heartbeats take, milliseconds each, until_eof; first `ready`."""
    (node,) = nodes_of(job)
    rae, over = Wire(job["url"], job["token"]), at_eof()

    def measure(call: Callable[[], Any]) -> list[float]:
        taken: list[float] = []
        while len(taken) < 2 or not over.is_set():
            timed(call, taken)
            time.sleep(0.02)
        return taken

    print(json.dumps({"ready": 1}), flush=True)
    beat = {"node_id": node.node_id}
    submits, beats = together(
        partial(measure, lambda: rae.call("POST", "/tasks", URGENT)),
        partial(measure, lambda: node.call("POST", "/nodes/heartbeat", beat)),
    )
    return {"submit": submits, "heartbeat": beats}


def polls(job: dict[str, Any]) -> dict[str, Any]:
    """How long polls take that get nothing, milliseconds each; for `seconds`, or until_eof."""
    taken: list[float] = []
    wire, over = nodes_of(job)[0], threading.Event()
    end = time.monotonic() + job["seconds"]
    if job.get("until_eof"):
        end, over = float("inf"), at_eof()
    while not over.is_set() and time.monotonic() < end:
        timed(wire.poll, taken)
        time.sleep(0.02)
    return {"ms": taken}


def upload(job: dict[str, Any]) -> dict[str, Any]:
    """Claim a task each and deliver it with an artifact of `mib`, until `number` are through."""
    left = count()
    began = time.monotonic()

    def run(wire: NodeWire) -> None:
        while next(left) < job["number"]:
            lease = wire.poll(5)
            if lease is None:
                raise RuntimeError("nothing was queued for this node")
            wire.call("POST", "/tasks/ack", lease)
            meta = json.dumps({**lease, "status": "succeeded", "result": 1})
            content = os.urandom(job["mib"] * 2**20)
            body, kind = encode_multipart_formdata(
                {"metadata": ("m", meta, "application/json"),
                 "artifacts/bytes": ("bytes", content, "application/octet-stream")}
            )  # fmt: skip
            wire.call("POST", "/tasks/result", body, {"Content-Type": kind})

    together(*(partial(run, wire) for wire in nodes_of(job)))
    return {"seconds": time.monotonic() - began}


def hold(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Keep a long poll open for every node, with heartbeats; first `ready`, then each wake-up.

    Ends when its standard input does.
    """
    from gevent import monkey  # noqa: PLC0415 - in this process only, before any socket

    monkey.patch_all(ssl=False)
    import gevent  # noqa: PLC0415
    from gevent.event import Event  # noqa: PLC0415
    from gevent.pool import Pool  # noqa: PLC0415

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    woken: list[float] = []
    news = Event()

    def listen(wire: NodeWire) -> None:
        while True:
            lease = wire.poll(25)
            if lease is not None:
                woken.append(time.time())
                news.set()
                wire.finish(lease)

    def beat(wire: NodeWire, number: int) -> None:
        other = NodeWire.__new__(NodeWire)
        other.__dict__.update(wire.__dict__)
        Wire.__init__(other, job["url"], wire._token)
        gevent.sleep(30 * number / len(job["nodes"]))
        while True:
            other.call("POST", "/nodes/heartbeat", {"node_id": wire.node_id})
            other._connection.close()
            gevent.sleep(30)

    wires = Pool(50).map(lambda item: NodeWire(job["url"], *item), job["nodes"].items())
    for number, wire in enumerate(wires):
        gevent.spawn(listen, wire)
        gevent.spawn(beat, wire, number)
    yield {"ready": len(wires)}
    while True:
        news.wait()
        news.clear()
        while woken:
            yield {"at": woken.pop(0)}


JOBS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "lifecycles": lifecycles, "claims": claims, "polls": polls, "upload": upload,
    "beside": beside,
}  # fmt: skip


def main() -> int:
    """Entry point."""
    job = json.loads(sys.stdin.readline())
    if sys.argv[1] == "hold":
        for line in hold(job):
            print(json.dumps(line), flush=True)
        return 0
    answer = JOBS[sys.argv[1]](job)
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({**answer, "cpu_s": used.ru_utime + used.ru_stime}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
