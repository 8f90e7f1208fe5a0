"""Chunks of a task's log."""

from __future__ import annotations

from rae_control.mesh.mesh import Mesh
from tests.integration.control.harness import (
    ECHO,
    Api,
)


def test_log_chunks_are_kept_in_order_and_twice_is_harmless(api: Api) -> None:
    import base64

    api.join("n1")
    api.submit(ECHO)
    ref = api.take("n1")
    for offset, text in ((0, b"one "), (4, b"two "), (0, b"one "), (8, b"three")):
        chunk = {**ref, "offset": offset, "data": base64.b64encode(text).decode()}
        assert api.node("n1", "POST", "/tasks/log", chunk).status_code == 200
    gap = {**ref, "offset": 100, "data": base64.b64encode(b"x").decode()}
    refused = api.node("n1", "POST", "/tasks/log", gap)
    assert (refused.status_code, refused.json["rc"]) == (416, "log_gap")
    assert refused.json["detail"] == {"offset": 13}
    api.result("n1", ref)
    answer = api.rae("GET", f"/tasks/{ref['task_id']}/log")
    assert answer.data == b"one two three"
    rest = api.rae("GET", f"/tasks/{ref['task_id']}/log?offset=13")
    assert (rest.data, rest.headers["X-RAE-Complete"]) == (b"", "1")


def test_a_result_is_taken_only_once_its_log_is_on_the_disk(api: Api, mesh: Mesh) -> None:
    api.join("n1")
    api.submit(ECHO)
    ref = api.take("n1")
    log = mesh.data / "logs" / f"{ref['task_id']}.1.log"
    log.symlink_to("/dev/null")  # takes every byte and cannot be synced
    assert api.result("n1", ref).json["rc"] == "disk_low"
    assert api.task(ref["task_id"])["state"] == "running"
    log.unlink()
    log.write_bytes(b"kept")
    assert api.result("n1", ref).json["state"] == "succeeded"
