"""Bytes that no HTTP library would send, against a real control: it must stay up, and say no.

Raw sockets: broken framing, half requests, strange heads and JSON, content that was changed before
or after it was signed. What /openapi.json can describe is schemathesis's to send
(tests/integration/control/test_openapi_fuzz.py). At the end control must be alive and do real work,
its memory flat, its log without a traceback, its ledger sound, and no answer a 5xx other than 503.
Then strangers hold on to it (strangers.py), and a submit and a heartbeat must not wait.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import secrets
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from rae_protocol import models, signing
from rae_protocol.node_client import NodeClient
from tools.devmesh import DevMesh, wait_until
from tools.scenarios import strangers
from tools.scenarios.audit import ledger_problems
from tools.scenarios.load import show_counts
from tools.scenarios.strangers import rss_mib

WORKERS = 8
WARM_UP = 0.1
# Growth of the worker's memory from the warm-up to the end: nonces of two minutes, lanes, caches.
MAX_GROWTH = 1.2
SLACK_MIB = 16
READ_S = 5.0
SLOW_MAX = 64
ODD_TEXT = (b"\0", b"\xed\xa0\x80", "é𝄞".encode(), b"%00", b"../", b"\r\n", b" ")
METHODS = (b"GET", b"POST", b"PUT", b"HEAD", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"CONNECT",
           b"get", b"BREW", b"G\x00T")  # fmt: skip


@dataclass(slots=True)
class Request:
    """What a sane client would send."""

    method: str
    target: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    def wire(self) -> bytes:
        """The bytes on the wire."""
        lines = [f"{self.method} {self.target} HTTP/1.1", "Host: control"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        if self.body or self.method in {"POST", "PUT"}:
            lines.append(f"Content-Length: {len(self.body)}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "replace") + self.body


# What submitters and admins ask; one id for all: what gets through must not fill the queue.
READS = ("/tasks?limit=3", "/events?after=1", "/healthz", "/tasks/x/log?offset=1", "/nodes/fuzz",
         "/blobs/" + "0" * 64, "/tasks/x/artifacts/a%2Fb")  # fmt: skip
WRITES = ("/tasks", "/tasks/fuzz/cancel", "/nodes/enrol", "/tokens", "/nodes/fuzz/resume")
# What a node says, of a lease that it does not have.
REF = {"task_id": "fuzz", "attempt": 1, "lease_id": "0000000000000000"}
CALLS: Sequence[tuple[str, str, dict[str, object] | None]] = (
    ("POST", "/nodes/heartbeat", {"node_id": "fuzz", "leases": [REF]}),
    ("GET", "/tasks/poll?wait=0.01&slots=", None),
    ("POST", "/tasks/ack", {**REF}),
    ("POST", "/tasks/log", {**REF, "offset": 0, "data": "aGk="}),
    ("POST", "/tasks/result", {**REF, "status": "succeeded", "result": [1]}),
    ("GET", "/tasks/fuzz/inputs/f?lease_id=0000000000000000", None),
)


@dataclass(slots=True)
class Corpus:
    """Sane requests, a third of them a node's and signed freshly each time."""

    token: str
    node: NodeClient
    rng: random.Random

    def sane(self) -> Request:
        """One of them."""
        rng, json_too = self.rng, {"Content-Type": "application/json"}
        if rng.random() < 0.35:
            return self._signed(Request(*_encoded(*rng.choice(CALLS)), json_too))
        headers = {"Authorization": f"Bearer {self.token}"}
        if rng.random() < 0.5:
            return Request("GET", rng.choice(READS), headers=headers)
        body = {"task_id": "fuzz", "kind": "never", "labels": {"n": str(rng.random())},
                "params": {"x": rng.random()}}  # fmt: skip
        return Request(*_encoded("POST", rng.choice(WRITES), body), headers | json_too)

    def _signed(self, request: Request) -> Request:
        if self.rng.random() < 0.3 and request.body:
            # Changed before signing: the signature fits, the content does not.
            request.body = mutate(self.rng, request.body)
        key = signing.session_key(self.node.secret, str(self.node.token))
        made = signing.signed_fields(
            key, "fuzz", request.method, request.target, time.time(), request.body
        )
        request.headers = {**request.headers, "Authorization": f"Bearer {self.node.token}",
                           signing.SIGNATURE_HEADER: made.header()}  # fmt: skip
        return request


def _encoded(
    method: str, target: str, body: Mapping[str, object] | None
) -> tuple[str, str, bytes]:  # fmt: skip
    return method, target, b"" if body is None else json.dumps(body).encode()


def mutate(rng: random.Random, data: bytes) -> bytes:
    """A few bits flipped, a piece cut out, doubled, or strange text put in."""
    out = bytearray(data or b"\0")
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(4)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at : at + rng.randint(1, 20)]
        elif kind == 2:
            out[at:at] = out[max(0, at - rng.randint(1, 40)) : at]
        else:
            out[at:at] = rng.choice((*ODD_TEXT, rng.randbytes(rng.randint(1, 8))))
    return bytes(out)


def odd_length(rng: random.Random, request: Request) -> bytes:
    """A Content-Length that lies, twice, or not a number; or chunked, well or badly."""
    head, _, body = request.wire().partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"content-length")]
    lines += rng.choice(
        [[b"Content-Length: -1"], [b"Content-Length: 1e3"], [b"Content-Length: 99999999999999999"],
         [b"Content-Length: 3", b"Content-Length: 4"], [b"Content-Length: +5"], [],
         [b"Transfer-Encoding: chunked"], [b"Transfer-Encoding: gzip, chunked"],
         [b"Transfer-Encoding: chunked", b"Content-Length: 5"],
         [b"Content-Length: %d" % (len(body) + rng.choice([-1, 1, 9]))]]
    )  # fmt: skip
    if any(b"chunked" in line for line in lines):
        body = rng.choice([b"5\r\nhello\r\n0\r\n\r\n", b"zz\r\n", b"5\r\nhel", b"-1\r\n\r\n", body])
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def odd_head(rng: random.Random, request: Request) -> bytes:
    """Huge, many or strange headers, another method, a strange target or version."""
    wire = request.wire()
    kind = rng.randrange(5)
    if kind == 0:
        big = b"X-Big: " + b"a" * rng.choice([100, 8_000, 8_190, 70_000]) + b"\r\n"
        return wire.replace(b"\r\n", b"\r\n" + big, 1)
    if kind == 1:
        many = b"".join(b"X-%d: y\r\n" % number for number in range(rng.choice([10, 99, 101, 500])))
        return wire.replace(b"\r\n", b"\r\n" + many, 1)
    if kind == 2:
        return rng.choice(METHODS) + wire[wire.index(b" ") :]
    if kind == 3:
        odd = rng.choice([b"*", b"/" * 5000, b"//tasks", b"/%ff%fe", b"/tasks/%2e%2e/x",
                          b"http://x/", b"/\xff"])  # fmt: skip
        return wire.replace(request.target.encode(), odd, 1)
    return wire.replace(b"HTTP/1.1", rng.choice([b"HTTP/9.9", b"HTTP/1.0", b"HTTQ/1.1", b""]), 1)


def odd_json(rng: random.Random, request: Request) -> bytes:
    """JSON that is deep, large, doubled or full of odd text, in an otherwise sane request."""
    request.method, request.target = "POST", rng.choice(["/tasks", "/nodes/enrol", "/tokens"])
    request.headers["Content-Type"] = "application/json"
    depth, size = rng.choice([31, 33, 5000]), rng.choice([10, 10_000, 400_000])
    request.body = rng.choice(
        [b"[" * depth + b"]" * depth, b'{"kind":' * depth + b"1" + b"}" * depth,
         b'{"kind":1,"kind":1}', b'{"kind":"\\ud800"}', b'{"kind":"cli","params":{"x":1e999}}',
         json.dumps({"kind": "cli", "labels": {"a": "é\u2028" * 9}}).encode("utf-16"),
         b"[" + b"1," * size + b"1]", b'"' + b"a" * size + b'"', b'{"tasks":' + b"[]," * size]
    )  # fmt: skip
    return request.wire()


Mutator = Callable[[random.Random, Request], bytes]
MUTATORS: Sequence[Mutator] = (
    lambda rng, request: mutate(rng, request.wire()),
    lambda rng, request: request.wire()[: rng.randrange(1, len(request.wire()))],
    lambda rng, request: Request(
        request.method, request.target, mutate(rng, request.body), request.headers
    ).wire(),
    lambda rng, request: rng.randbytes(rng.randint(1, 300)) + b"\r\n\r\n",
    lambda rng, request: request.wire() * rng.randint(2, 5),  # pipelined
    odd_length,
    odd_head,
    odd_json,
)
# Deep and large JSON costs a hundred times what the others cost.
WEIGHTS = (6, 2, 6, 2, 2, 3, 3, 1)


@dataclass(slots=True)
class Tally:
    """What came back, over all workers."""

    statuses: Counter[str] = field(default_factory=Counter)
    strange: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, status: str, sent: bytes) -> None:
        """Count an answer; keep what must not be."""
        with self.lock:
            self.statuses[status] += 1
            if status.startswith("5") and status != "503" and len(self.strange) < 10:
                self.strange.append(f"{status} to {sent[:300]!r}")


def attack(address: tuple[str, int], corpus: Corpus, count: int, tally: Tally) -> None:
    """Send `count` requests, each on a connection of its own."""
    rng = corpus.rng
    slow: list[socket.socket] = []
    for _ in range(count):
        data = rng.choices(MUTATORS, WEIGHTS)[0](rng, corpus.sane())
        # One address gets only so much without a token: these are many.
        source = f"127.8.{rng.randrange(16)}.{rng.randrange(1, 250)}"
        connection = socket.create_connection(address, READ_S, source_address=(source, 0))
        if rng.random() < 0.002:
            # Half a request that never goes on; the oldest of a bounded number is dropped.
            connection.sendall(data[: len(data) // 2 or 1])
            slow.append(connection)
            if len(slow) > SLOW_MAX // WORKERS:
                slow.pop(0).close()
            continue
        with connection:
            tally.add(exchange(connection, data), data)
    for connection in slow:
        connection.close()


def exchange(connection: socket.socket, data: bytes) -> str:
    """Send, say that nothing follows, and return the first answer's status."""
    answer = b""
    # Control may answer and close before it has read all: then there is still an answer to read.
    with contextlib.suppress(OSError):
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
    try:
        while len(answer) < 12 and (piece := connection.recv(4096)):
            answer += piece
    except TimeoutError:
        return "no answer"
    except OSError:
        return "closed"
    return answer[9:12].decode("ascii", "replace") if answer.startswith(b"HTTP/1.") else "closed"


def real_work(mesh: DevMesh, node: NodeClient) -> None:
    """Submit, poll, ack, result: the whole way. Raises MeshError."""
    register(node)
    task_id = mesh.rae.submit([{"kind": "fuzz-done", "priority": 9}])[0].task_id
    polled = wait_until(
        lambda: node.poll(wait_s=5, slots=["cpu0"]).task, 20, "the node gets the task"
    )
    ref = models.LeaseRef(task_id=task_id, attempt=polled.attempt, lease_id=polled.lease_id)
    node.ack(ref)
    node.result(models.Result(**ref.model_dump(), status="succeeded"))
    mesh.rae.wait(task_id, 10)


def register(node: NodeClient) -> None:
    """The fuzzing node, which runs only what `real_work` submits."""
    node.register(
        models.RegisterRequest(
            node_id="fuzz", ack=True, machine="fuzz", instance=secrets.token_hex(4),
            slots=["cpu0"], capabilities=models.Capabilities(runners=["fuzz-done"]),
        )
    )  # fmt: skip


def campaign(count: int, seed: int, strangers_s: float = strangers.SECONDS) -> list[str]:
    """The whole campaign; returns what is wrong."""
    limits = {"rate_limit_per_s": 1e6, "rate_limit_burst": 1e6, "heartbeat_timeout_s": 3600}
    with DevMesh((), control=limits) as mesh:
        enrolled = mesh.admin.enrol("fuzz")
        keys = enrolled.control_public_keys
        node = NodeClient(mesh.url, "fuzz", enrolled.enrolment_secret, public_keys=keys)
        register(node)
        token, pid = str(mesh.credentials()["admin_token"]), mesh.pid("worker")
        host, port = mesh.url.removeprefix("http://").split(":")
        tally, began = Tally(), time.monotonic()

        def attacks(part: str, share: float) -> None:
            each = max(1, int(count * share / WORKERS))
            rngs = [random.Random(f"{seed} {part} {number}") for number in range(WORKERS)]  # noqa: S311
            with ThreadPoolExecutor(WORKERS) as pool:
                list(pool.map(
                    lambda rng: attack((host, int(port)), Corpus(token, node, rng), each, tally),
                    rngs,
                ))  # fmt: skip

        attacks("warm-up", WARM_UP)
        warm = rss_mib(pid)
        attacks("rest", 1 - WARM_UP)
        seconds = time.monotonic() - began
        problems = list(tally.strange)
        if mesh.pid("worker") != pid:
            problems.append("the worker died and was started again")
        else:
            end = rss_mib(pid)
            print(f"{'memory after the warm-up, at the end':44} {warm:.1f} {end:.1f} MiB")
            if end > warm * MAX_GROWTH + SLACK_MIB:
                problems.append(f"memory grew from {warm:.1f} to {end:.1f} MiB")
        real_work(mesh, node)
        figures = strangers.watch(mesh, node, strangers_s)
        figures.show()
        problems += figures.problems()
        real_work(mesh, node)
        if mesh.pid("worker") != pid:
            problems.append("the worker died of the strangers and was started again")
        log = (mesh.data / "log" / "gunicorn.out").read_text(errors="replace")
        if "Traceback" in log:
            problems.append("a traceback: " + log[log.index("Traceback") :][:2000])
        problems += ledger_problems(mesh)
    answers = {f"answers {status}": number for status, number in sorted(tally.statuses.items())}
    show_counts({**answers, "requests per second": round(count / seconds)})
    return problems


def options(parser: argparse.ArgumentParser) -> None:
    """How many, and which."""
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))


def run(args: argparse.Namespace) -> int:
    """The whole campaign; exit code 1 when something is wrong."""
    print(f"fuzz: {args.requests} requests, seed {args.seed}", flush=True)
    problems = campaign(args.requests, args.seed)
    for problem in problems:
        print(f"PROBLEM {problem}", file=sys.stderr)
    print("fuzz: control stands" if not problems else f"fuzz: {len(problems)} problems")
    return 1 if problems else 0
