"""Tasks that wait for other tasks, or for their time."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from rae_control.mesh.mesh import Mesh
from tests.integration.control.harness import (
    ECHO,
    Api,
    ManualClock,
    tick,
)


def test_a_failed_dependency_ends_its_dependents_however_long_the_chain(api: Api) -> None:
    api.join("n1")
    chain: list[dict[str, Any]] = [{**ECHO, "task_id": "t0", "max_attempts": 1}]
    chain += [{**ECHO, "task_id": f"t{i}", "depends_on": [f"t{i - 1}"]} for i in range(1, 1000)]
    states = [t["state"] for t in api.submit(*chain)]
    assert states == ["queued"] + ["waiting"] * 999
    ref = api.take("n1")
    api.result("n1", ref, "failed", error={"code": "E_EXIT", "message": ""})
    last = api.task("t999")
    assert (last["state"], last["reason"]) == ("failed", "dependency_failed")


def test_dependents_run_when_everything_they_need_has_succeeded(api: Api) -> None:
    api.join("n1")
    join = {**ECHO, "task_id": "join", "depends_on": ["a", "b"]}
    api.submit({**ECHO, "task_id": "a"}, {**ECHO, "task_id": "b"}, join)
    assert "a (queued), b (queued)" in api.task("join")["why"][0]
    for _ in range(2):
        api.result("n1", api.take("n1"))
    assert api.task("join")["state"] == "queued"
    late = api.submit({**ECHO, "depends_on": ["a"]})
    assert late[0]["state"] == "queued"


def test_not_before_and_expires_at(api: Api, mesh: Mesh, clock: ManualClock) -> None:
    def at(seconds: float) -> str:
        return datetime.fromtimestamp(clock.wall() + seconds, tz=timezone.utc).isoformat()

    later = api.submit({**ECHO, "not_before": at(30)})[0]
    short = api.submit({**ECHO, "expires_at": at(20)})[0]
    assert (later["state"], short["state"]) == ("waiting", "queued")
    tick(mesh, clock, 21)
    assert api.task(short["task_id"])["state"] == "expired"
    tick(mesh, clock, 10)
    assert api.task(later["task_id"])["state"] == "queued"


def test_inputs_and_artifacts_pass_from_task_to_task(api: Api) -> None:
    api.join("n1")
    digest = api.blob(b"content of the blob")
    api.submit(
        {**ECHO, "task_id": "one", "inputs": {"in.txt": {"sha256": digest}},
         "artifacts": [{"name": "out/x.txt", "type": "text/plain"}]},
        {**ECHO, "task_id": "two",
         "inputs": {"x.txt": {"from_task": "one", "artifact": "out/x.txt"}}},
    )  # fmt: skip
    ref = api.take("n1")
    path = f"/tasks/one/inputs/in.txt?attempt=1&lease_id={ref['lease_id']}"
    assert api.node("n1", "GET", path).data == b"content of the blob"
    boundary, metadata = "xyz", '{"task_id":"one","status":"succeeded"}'
    body = (
        f'--xyz\r\nContent-Disposition: form-data; name="metadata"\r\n\r\n{metadata}\r\n'
        '--xyz\r\nContent-Disposition: form-data; name="artifacts/out/x.txt"; filename="x"\r\n'
        "Content-Type: text/plain\r\n\r\nartifact bytes\r\n--xyz--\r\n"
    ).encode()
    kind = f"multipart/form-data; boundary={boundary}"
    answer = api.node("n1", "POST", "/tasks/result", body, content_type=kind)
    assert answer.json["state"] == "succeeded", answer.json
    assert api.rae("GET", "/tasks/one/artifacts/out/x.txt").data == b"artifact bytes"
    second = api.take("n1")
    path = f"/tasks/two/inputs/x.txt?attempt=1&lease_id={second['lease_id']}"
    assert api.node("n1", "GET", path).data == b"artifact bytes"
