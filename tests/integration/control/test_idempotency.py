"""The same key or step submitted again is one task."""

from __future__ import annotations

from typing import Any

from tests.integration.control.harness import (
    ECHO,
    Api,
    multipart,
)


def graph(prefix: str, **more: Any) -> list[dict[str, Any]]:
    """Two named steps and a last one, the last first, with ids of this run."""
    out = {"artifacts": [{"name": "out", "max_mb": 1}]}
    first, second = f"{prefix}-first", f"{prefix}-second"
    last = {**ECHO, "task_id": f"{prefix}-last", "depends_on": [second, first]}
    after = {"inputs": {"in": {"from_task": first, "artifact": "out"}}, "step_name": "second"}
    return [
        {**last, **more},
        {**ECHO, **out, "task_id": second, **after},
        {**ECHO, **out, "task_id": first, "step_name": "first"},
    ]


def test_a_graph_whose_steps_ran_before_is_taken_and_waits_for_those(api: Api) -> None:
    api.join("n1")
    api.submit(*graph("a"))
    again = api.submit(*graph("b"))
    assert [(ref["task_id"], ref["created"]) for ref in again] == [
        ("b-last", True), ("a-second", False), ("a-first", False)
    ]  # fmt: skip
    # The very same call once more, after a lost answer.
    assert [ref["created"] for ref in api.submit(*graph("b"))] == [False, False, False]
    body = api.rae("GET", "/tasks/b-last").json
    assert body["spec"]["depends_on"] == ["a-second", "a-first"]
    ref = api.take("n1")
    assert ref["task_id"] == "a-first"
    meta = {**ref, "status": "succeeded", "artifacts": [{"name": "out"}]}
    sent = api.node(
        "n1", "POST", "/tasks/result", multipart(meta, "out", b"1"),
        content_type="multipart/form-data; boundary=xyz",
    )  # fmt: skip
    assert sent.json["state"] == "succeeded"
    ref = api.take("n1")
    assert ref["task_id"] == "a-second"
    assert api.result("n1", ref).json["state"] == "succeeded"
    # What needs the first step's artifact finds it under the name that it has.
    (late,) = api.submit(graph("c")[1], graph("c")[2])[:1]
    assert (late["task_id"], late["created"]) == ("a-second", False)
    assert {api.take("n1")["task_id"], api.take("n1")["task_id"]} == {"a-last", "b-last"}


def test_two_tasks_of_one_key_in_one_call_are_one_task(api: Api) -> None:
    one, two, other = api.submit(
        {**ECHO, "idempotency_key": "k"}, {**ECHO, "idempotency_key": "k"}, ECHO
    )
    assert one["task_id"] == two["task_id"] != other["task_id"]
    assert [one["created"], two["created"]] == [True, False]


def test_a_requeue_never_makes_two_live_tasks_of_one_key(api: Api) -> None:
    keyed = {**ECHO, "idempotency_key": "k"}
    first = api.submit(keyed)[0]["task_id"]
    api.rae("POST", f"/tasks/{first}/cancel")
    second = api.submit(keyed)[0]["task_id"]
    refused = api.rae("POST", f"/tasks/{first}/requeue")
    assert (refused.status_code, refused.json["rc"]) == (409, "not_requeueable")
    assert second in refused.json["message"]
    api.rae("POST", f"/tasks/{second}/cancel")
    assert api.rae("POST", f"/tasks/{first}/requeue").json["state"] == "queued"
    assert api.submit(keyed)[0] == {"task_id": first, "state": "queued", "created": False}


def test_idempotency_answers_with_the_first_task(api: Api) -> None:
    body = {**ECHO, "task_id": "mine"}
    assert api.submit(body)[0]["created"] is True
    assert api.submit(body)[0]["created"] is False
    keyed = {**ECHO, "idempotency_key": "k"}
    first, second = api.submit(keyed)[0], api.submit(keyed)[0]
    assert first["task_id"] == second["task_id"]
    assert second["created"] is False
    api.rae("POST", f"/tasks/{first['task_id']}/cancel")
    assert api.submit(keyed)[0]["task_id"] != first["task_id"]


def test_same_step_and_inputs_hash_return_the_cached_job_while_the_first_runs(api: Api) -> None:
    """Contract: D2."""
    api.join("n1")
    step = {**ECHO, "step_name": "render", "inputs_hash": "abc"}
    first = api.submit(step)[0]["task_id"]
    ref = api.take("n1")
    assert api.submit(step)[0]["task_id"] == first
    api.result("n1", ref)
    assert api.submit(step)[0] == {"task_id": first, "state": "succeeded", "created": False}
    assert api.submit({**step, "inputs_hash": "other"})[0]["task_id"] != first
