"""Real answers of every operation against `/openapi.json`, good bodies and bad ones (schemathesis).

`make fuzz` runs the same with many more examples.
"""

from __future__ import annotations

import base64
import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from rae_control.api.operation import Operation
from rae_control.api.operations import OPERATIONS
from rae_protocol import models, signing
from rae_protocol.errors import RemoteError
from rae_protocol.node_client import NodeClient
from tools.devmesh import DevMesh

EXAMPLES = int(os.environ.get("RAE_FUZZ_EXAMPLES", "6"))
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
BLOB = b"content"
SHA = hashlib.sha256(BLOB).hexdigest()

_MORE: dict[str, dict[str, Any]] = {
    "/tasks/progress": {"pct": 5},
    "/tasks/log": {"offset": 0, "data": "aGk="},
    "/tasks/result": {"status": "failed"},
    "/tasks/yield": {"reason": "owner"},
}


class Signed(AuthBase):
    """Signs a generated request as it goes out."""

    def __init__(self, node: NodeClient, register: bool) -> None:
        self._node, self._register = node, register

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        node, token = self._node, self._node.token or ""
        key = node.secret.encode() if self._register else signing.session_key(node.secret, token)
        header = node.signed(key, request).header()
        if self._register:
            request.headers["Authorization"] = f"{signing.REGISTER_SCHEME} {header}"
        else:
            request.headers["Authorization"] = f"Bearer {token}"
            request.headers[signing.SIGNATURE_HEADER] = header
        return request


class From(HTTPAdapter):
    """Connections from an address of their own."""

    def __init__(self, address: str) -> None:
        self._address = address
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, source_address=(self._address, 0), **options)


class World:
    """A mesh with one of everything, and what a good call of each operation needs."""

    def __init__(self, mesh: DevMesh) -> None:
        self.mesh, self.admin = mesh, mesh.admin
        self.token = mesh.credentials()["admin_token"]
        self.reached: Counter[str] = Counter()
        # One address gets only so much without a token, and some of what is generated has none.
        self._addresses = (f"127.8.{n // 250 % 250}.{n % 250 + 1}" for n in count())
        self.node = self._enrolled("fuzz")
        self.join()
        self._enrolled("victim")
        self.admin.upload_blob(BLOB)
        self.done = self.lease()
        self.deliver(self.done)
        self.schema = schemathesis.openapi.from_url(f"{mesh.url}/openapi.json")

    def _enrolled(self, name: str) -> NodeClient:
        return NodeClient(self.mesh.url, name, self.admin.enrol(name).enrolment_secret)

    def join(self) -> None:
        slots = [f"cpu{number}" for number in range(250)]
        request = {"node_id": "fuzz", "slots": slots, "ack": True, "machine": "m", "instance": "i",
                   "capabilities": {"runners": ["cli"]}}  # fmt: skip
        self.node.register(models.parse(models.RegisterRequest, request))

    def lease(self) -> dict[str, Any]:
        """A running task of the fuzzing node."""
        spec = {"kind": "cli", "priority": 9, "inputs": {"in.txt": {"sha256": SHA}},
                "artifacts": [{"name": "out.txt"}]}  # fmt: skip
        task_id = self.admin.submit([spec])[0].task_id
        while True:
            while not (found := (answer := self._poll()).get("task")):
                # Yields for infrastructure reasons have cordoned it; orders come without a task.
                if any(reason["code"] == "cordoned" for reason in answer.get("reasons", [])):
                    self.admin.node_verb("fuzz", "resume")
            body = models.decode(base64.b64decode(found["payload"]))
            ref = {name: body[name] for name in ("task_id", "attempt", "lease_id")}
            self.call("POST", "/tasks/ack", body=ref)
            if ref["task_id"] == task_id:
                return ref
            # One that the generated requests submitted, with the same priority.
            over = {"status": "failed", "error": {"code": "E_DENY", "message": "not ours"}}
            self.call("POST", "/tasks/result", body={**ref, **over})

    def _poll(self) -> dict[str, Any]:
        found: dict[str, Any] = self.call("GET", "/tasks/poll", query={"wait": 1}).json()
        return found

    def call(self, method: str, path: str, *, query: Any = None, body: Any = None) -> Any:
        """A signed call of the node; registers again where control asks for it."""
        for _ in range(2):
            answer = requests.request(
                method, self.mesh.url + path, params=query, json=body, timeout=30,
                auth=Signed(self.node, register=False),
            )  # fmt: skip
            if answer.status_code != 401:
                break
            self.join()
        assert answer.status_code == 200, answer.text
        return answer

    def deliver(self, ref: dict[str, Any]) -> None:
        parts = {
            "metadata": (None, models.canonical({**ref, "status": "succeeded"})),
            "artifacts/out.txt": ("out.txt", BLOB),
        }
        answer = requests.post(
            f"{self.mesh.url}/tasks/result", files=parts, timeout=30,
            auth=Signed(self.node, register=False),
        )  # fmt: skip
        assert answer.status_code == 200, answer.text

    def open_task(self) -> str:
        return self.admin.submit([{"kind": "never"}])[0].task_id

    def good(self, op: Operation, verb: str | None) -> dict[str, Any]:  # noqa: PLR0912
        """Parameters and body with which the operation does what it is for."""
        path: dict[str, Any] = {"verb": verb} if verb else {}
        body: Any = None
        if "{node_id}" in op.path:
            path["node_id"] = "victim"
        if "{sha256}" in op.path:
            path["sha256"], body = SHA, BLOB if op.method == "PUT" else None
        if "{task_id}" in op.path:
            path["task_id"] = self.done["task_id"]
        if "{name}" in op.path:
            path["name"] = "out.txt"
        query: dict[str, Any] = {}
        if op.path.startswith("/nodes/") and "{" not in op.path:
            name = "victim" if op.auth == "admin" else "fuzz"
            body = {"node_id": name, **({"machine": "m"} if op.auth == "register" else {})}
        elif op.auth == "node" and op.path != "/tasks/poll":
            ref = self.lease()
            body = {**ref, **_MORE.get(op.path, {})}
            if "inputs" in op.path:
                path |= {"task_id": ref["task_id"], "name": "in.txt"}
                body, query = None, {"lease_id": ref["lease_id"]}
        elif verb in {"cancel", "requeue"}:
            path["task_id"], body = self.open_task(), {}
            if verb == "requeue":
                self.admin.cancel(path["task_id"])
        elif op.name == "post_tasks":
            body = {"kind": "cli"}
        elif op.path.startswith("/tokens") and op.method == "POST":
            name = f"t{time.monotonic_ns()}"
            body = {"name": name, "role": "read"}
            if "{name_or_id}" in op.path:
                self.admin.add_token(name, "read")
                path["name_or_id"], body = name, {}
        elif verb:
            body = {}
        return {"path_parameters": path, "query": query, "body": body}

    def run(self, op: Operation, case: schemathesis.Case) -> requests.Response:
        """Send it, signed after generation, and hold the answer to the document."""
        if isinstance(case.query, dict) and "wait" in case.query:
            case.query["wait"] = 0
        options: dict[str, Any] = {"timeout": 30, "headers": {}}
        if op.auth in {"node", "register"}:
            options["auth"] = Signed(self.node, op.auth == "register")
        elif op.auth != "none":
            options["headers"] = {"Authorization": f"Bearer {self.token}"}
        with requests.Session() as session:
            session.mount("http://", From(next(self._addresses)))
            response = case.call(session=session, **options)
        case.validate_response(response, checks=CHECKS)
        if response.status_code in op.status:
            self.reached[op.name] += 1
        if response.status_code == 401 or op.path in {"/nodes/goodbye", "/nodes/register"}:
            self.join()
        return response


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    # What the fuzzing submits must not fill up anything.
    names = ("rate_limit_per_s", "rate_limit_burst", "register_limit_per_s", "register_limit_burst")
    with DevMesh((), control=dict.fromkeys(names, 1e6)) as mesh:
        yield World(mesh)
        log = (mesh.data / "log" / "gunicorn.out").read_text()
        assert "Traceback" not in log, log[-3000:]


IDS = [op.name for op in OPERATIONS]


@pytest.mark.parametrize("op", OPERATIONS, ids=IDS)
def test_a_good_call_is_answered_as_documented(world: World, op: Operation) -> None:
    operation = world.schema[op.path][op.method]
    for verb in op.verbs or (None,):
        given_ = {key: value for key, value in world.good(op, verb).items() if value is not None}
        media = "application/octet-stream" if op.method == "PUT" else "application/json"
        if "body" in given_:
            given_["media_type"] = media
        response = world.run(op, operation.Case(**given_))
        assert response.status_code in op.status, response.text


@pytest.mark.parametrize("op", OPERATIONS, ids=IDS)
def test_whatever_is_sent_the_answer_is_documented(world: World, op: Operation) -> None:
    operation = world.schema[op.path][op.method]
    modes = [GenerationMode.POSITIVE]
    if op.bodies or op.query or "{" in op.path:
        modes.append(GenerationMode.NEGATIVE)
    for mode in modes:

        @given(case=operation.as_strategy(generation_mode=mode), real=st.booleans())
        @settings(
            max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES < 100, database=None,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        def fuzz(case: schemathesis.Case, real: bool) -> None:
            if real:
                verb = case.path_parameters.get("verb")  # may be of any type
                good = world.good(op, verb if verb in op.verbs else None)
                case.path_parameters |= good["path_parameters"]
                body = good["body"]
                if isinstance(case.body, dict) and isinstance(body, dict):
                    case.body |= {
                        key: value for key, value in body.items() if key in
                        {"task_id", "attempt", "lease_id", "node_id"}
                    }  # fmt: skip
            world.run(op, case)

        fuzz()


def test_a_call_without_a_token_is_refused_as_documented(world: World) -> None:
    for op in OPERATIONS:
        if op.auth in {"none", "register"}:
            continue
        case = world.schema[op.path][op.method].Case(
            path_parameters={"task_id": "t", "node_id": "n", "sha256": SHA, "name": "x",
                             "name_or_id": "x", "verb": (op.verbs or ("",))[0]}
        )  # fmt: skip
        response = requests.request(op.method, world.mesh.url + case.formatted_path, timeout=30)
        assert (response.status_code, response.json()["rc"]) == (401, "unauthorized"), op.name


def test_after_all_of_it_control_still_works(world: World) -> None:
    world.join()
    ref = world.lease()
    world.deliver(ref)
    view = world.admin.wait(ref["task_id"], 10)
    assert (view.state.value, view.artifacts[0].sha256) == ("succeeded", SHA)
    with pytest.raises(RemoteError):
        world.admin.task("nobody")
