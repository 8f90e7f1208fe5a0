"""Bodies say exactly what they mean: nothing unknown, nothing converted, no name that escapes."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rae_protocol import models
from rae_protocol.errors import RaeError
from rae_protocol.names import RESERVED_NODE_IDS, RESERVED_TASK_IDS, TaskState, relative_path

MIB = 1024**2


def refusal(model: type[Any], body: Any) -> RaeError:
    with pytest.raises(RaeError) as caught:
        models.parse(model, body)
    assert (caught.value.rc, caught.value.status) == ("invalid_body", 400)
    assert caught.value.detail["problems"]
    return caught.value


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"surprise": 1}, "surprise"),
        ({"priority": True}, "priority"),
        ({"priority": "5"}, "priority"),
        ({"priority": 5.0}, "priority"),
        ({"priority": 10}, "priority"),
        ({"priority": -1}, "priority"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": -1}, "timeout_s"),
        ({"timeout_s": 1e300}, "timeout_s"),
        ({"timeout_s": "60"}, "timeout_s"),
        ({"timeout_s": True}, "timeout_s"),
        ({"lease_ttl_s": 3601}, "lease_ttl_s"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"max_attempts": 2**62}, "max_attempts"),
        ({"params": []}, "params"),
        ({"params": None}, "params"),
        ({"labels": {"a": 1}}, "labels"),
        ({"labels": {"a": "x" * 501}}, "labels"),
        ({"depends_on": "t1"}, "depends_on"),
        ({"depends_on": ["../t1"]}, "depends_on"),
        ({"not_before": "2026-01-01T00:00:00"}, "not_before"),
        ({"not_before": "tomorrow"}, "not_before"),
        ({"requirements": {"gpu": 1}}, "requirements.gpu"),
        ({"requirements": {"vram": 1}}, "requirements.vram"),
        ({"requirements": {"ram_gb": -1}}, "requirements.ram_gb"),
        ({"task_id": ""}, "task_id"),
        ({"task_id": "a/b"}, "task_id"),
        ({"task_id": "x" * 65}, "task_id"),
        ({"task_id": "t1\n"}, "task_id"),
        ({"kind": ""}, "kind"),
        ({"kind": 7}, "kind"),
        ({"inputs": {"a": {"inline": "x", "sha256": "0" * 64}}}, "inputs"),
        ({"inputs": {"a": {"sha256": "G" * 64}}}, "inputs"),
        ({"inputs": {"a": {"url": "file:///etc/passwd"}}}, "inputs"),
        ({"inputs": {"../a": {"inline": "x"}}}, "inputs"),
        ({"artifacts": [{"name": "/etc/passwd"}]}, "artifacts"),
        ({"artifacts": [{"name": "a", "max_mb": 65}]}, "artifacts"),
        ({"artifacts": [{"name": "a"}, {"name": "a"}]}, ""),
        ({"artifacts": [{"name": "a"}, {"name": "a/b"}]}, ""),
        ({"inputs_hash": "abc"}, ""),
    ],
)
def test_a_task_with_a_mistake_is_refused_by_the_fields_name(
    change: dict[str, Any], field: str
) -> None:
    error = refusal(models.TaskSpec, {"kind": "cli"} | change)
    assert str(error.detail["problems"][0]["field"]).startswith(field)


@pytest.mark.parametrize("body", [None, [], "text", 5, True, {}])
def test_a_task_must_be_an_object_with_a_kind(body: Any) -> None:
    refusal(models.TaskSpec, body)


def test_the_least_task_is_a_kind() -> None:
    spec = models.parse(models.TaskSpec, {"kind": "cli"})
    assert (spec.priority, spec.timeout_s, spec.max_attempts, spec.lease_ttl_s) == (
        5,
        3600,
        3,
        None,
    )


def test_a_time_needs_its_offset_and_may_be_any() -> None:
    spec = models.parse(models.TaskSpec, {"kind": "cli", "not_before": "2026-01-01T02:00:00+02:00"})
    assert spec.not_before is not None
    assert spec.not_before.timestamp() == 1_767_225_600


@pytest.mark.parametrize("count", [0, 1001])
def test_a_call_takes_one_to_a_thousand_tasks(count: int) -> None:
    refusal(models.SubmitMany, {"tasks": [{"kind": "cli"}] * count})
    models.parse(models.SubmitMany, {"tasks": [{"kind": "cli"}] * 1000})


@pytest.mark.parametrize("word", sorted(RESERVED_TASK_IDS))
def test_paths_of_the_api_are_no_task_ids(word: str) -> None:
    assert "reserved" in refusal(models.TaskSpec, {"kind": "cli", "task_id": word}).message


@pytest.mark.parametrize("word", sorted(RESERVED_NODE_IDS))
def test_paths_of_the_api_are_no_node_ids(word: str) -> None:
    assert "reserved" in refusal(models.Heartbeat, {"node_id": word}).message


@pytest.mark.parametrize(
    "body",
    [
        {"node_id": "n1", "slots": ["cpu0", "cpu0"]},
        {"node_id": "n1", "slots": []},
        {"node_id": "n1", "slots": ["disk0"]},
        {"node_id": "n1", "ack": 1},
        {"node_id": "n1", "availability": "maybe"},
        {"node_id": "n1", "capabilities": {"ram_gb": -1}},
        {"node_id": "n1", "capabilities": {"flux": 1}},
        {"node_id": "n/1"},
    ],
)
def test_a_registration_with_a_mistake_is_refused(body: dict[str, Any]) -> None:
    refusal(models.RegisterRequest, body)


@pytest.mark.parametrize(
    "capabilities",
    [
        {"gpu": True, "gpu_model": "RTX_4080", "vram_gb": 16, "ram_gb": 64, "llm": ["coder"]},
        {"node_id": "n1", "version": "1", "cpu": {"cores": 8, "arch": "x86_64"}, "memory_mb": 64000,
         "disk_free_mb": 9000, "gpu": [], "runners": ["cli", "python"], "tags": ["debian", "cpu"]},
        {"gpu": [{"vendor": "nvidia", "name": "RTX 4080", "vram_mb": 16376,
                  "cuda": {"version": "12.4", "driver": "550.54"}}]},
        {"os": "windows", "cpu": "Ryzen", "ram_gb": 32, "python_version": "3.11.9",
         "ffmpeg_version": "6.1", "davinci_available": False},
    ],
)  # fmt: skip
def test_capabilities_of_each_profile_are_taken_as_they_come(capabilities: dict[str, Any]) -> None:
    """Contract: A10, C2, D4."""
    models.parse(models.RegisterRequest, {"node_id": "n1", "capabilities": capabilities})


@pytest.mark.parametrize("availability", ["open", "owner", "paused", "blind"])
def test_a_node_may_say_whether_it_would_work(availability: str) -> None:
    body = {"node_id": "n1", "availability": availability}
    assert models.parse(models.RegisterRequest, body).availability.value == availability
    assert models.parse(models.Heartbeat, body).availability == availability


@pytest.mark.parametrize(
    "path",
    ["", ".", "..", "/a", "a/", "a//b", "../a", "a/../b", "./a", "a\\b", "a\x00b", "a\nb",
     "x" * 256, "ä" * 128],
)  # fmt: skip
def test_a_name_that_could_leave_its_folder_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="name"):
        relative_path(path)


@pytest.mark.parametrize(
    "path", ["a", "a.txt", "a/b/c", "...", "..a", "a b", "ä", "-rf", "x" * 255]
)
def test_an_ordinary_name_is_taken(path: str) -> None:
    assert relative_path(path) == path


@given(st.text(max_size=300))
def test_a_taken_name_never_leaves_its_folder(path: str) -> None:
    try:
        relative_path(path)
    except ValueError:
        return
    assert not path.startswith("/")
    assert ".." not in path.split("/")


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (models.Ack, {"task_id": "t", "attempt": 0, "lease_id": "x" * 8}),
        (models.Ack, {"task_id": "t", "attempt": True, "lease_id": "x" * 8}),
        (models.Ack, {"task_id": "t", "attempt": 1, "lease_id": "../../../etc"}),
        (models.Progress, {"task_id": "t", "attempt": 1, "lease_id": "x" * 8, "pct": 101}),
        (
            models.LogChunk,
            {"task_id": "t", "attempt": 1, "lease_id": "x" * 8, "offset": -1, "data": ""},
        ),
        (models.Result, {"task_id": "t", "status": "done"}),
        (models.Result, {"task_id": "t", "status": "failed", "error": {"code": "oops"}}),
        (models.Result, {"task_id": "t", "status": "succeeded", "artifacts": [{"name": "../x"}]}),
        (
            models.YieldRequest,
            {"task_id": "t", "attempt": 1, "lease_id": "x" * 8, "reason": "bored"},
        ),
        (models.EnrolRequest, {"node_id": "n1", "kind": "none"}),
        (models.TokenRequest, {"name": "a b", "role": "submit"}),
        (models.TokenRequest, {"name": "a", "role": "root"}),
    ],
)
def test_what_a_node_or_an_operator_gets_wrong_is_refused(model: type[Any], body: Any) -> None:
    refusal(model, body)


def test_a_refusal_lists_at_most_twenty_problems() -> None:
    error = refusal(models.TaskSpec, {"kind": "cli"} | {f"x{i}": i for i in range(100)})
    assert len(error.detail["problems"]) == 20


@pytest.mark.parametrize(
    "tasks",
    [
        [{"kind": "cli", **{f"x{n}": 0 for n in range(20_000)}}],
        [{"kind": "cli", "inputs": {f"f{n}": {"x": 0} for n in range(20_000)}}],
        [{"kind": "cli", "inputs": {"f": {f"x{n}": 0 for n in range(20_000)}}}],
        [{"kind": "cli", "labels": {f"l{n}": 0 for n in range(20_000)}}],
        [{"kind": "cli", "inputs": {f"f{n}": {"x": 0} for n in range(100)}}] * 200,
        [{"kind": "cli", "x" * 1_000_000: 0}],
    ],
    ids=["fields", "inputs", "fields of an input", "labels", "tasks", "a long name"],
)
def test_a_refusal_of_very_many_mistakes_costs_no_more_than_the_body(
    tasks: list[dict[str, Any]],
) -> None:
    tracemalloc.start()
    try:
        error = refusal(models.SubmitMany, {"tasks": tasks})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * MIB
    assert len(models.canonical(error.body())) < 16 * 1024


def test_of_many_wrong_tasks_the_mistakes_of_the_first_are_listed() -> None:
    error = refusal(models.SubmitMany, {"tasks": [{"kind": "cli"}, *[{"kind": 1, "x": 2}] * 3]})
    fields = [problem["field"] for problem in error.detail["problems"]]
    assert fields == ["tasks.1.kind", "tasks.1.x"]


@pytest.mark.parametrize(
    ("source", "field"),
    [
        ({}, "inputs.f"),
        ({"x": 1}, "inputs.f"),
        ("text", "inputs.f"),
        ({"sha256": "G"}, "inputs.f.sha256.sha256"),
        ({"from_task": "t1"}, "inputs.f.from_task.artifact"),
        ({"url": "ftp://x/y", "sha256": "0" * 64}, "inputs.f.url.url"),
        ({"inline": "x", "sha256": "0" * 64}, "inputs.f.inline.sha256"),
    ],
)
def test_a_wrong_input_is_one_mistake_of_the_kind_that_was_meant(source: Any, field: str) -> None:
    error = refusal(models.TaskSpec, {"kind": "cli", "inputs": {"f": source}})
    assert [problem["field"] for problem in error.detail["problems"]] == [field]


def test_bodies_are_frozen() -> None:
    spec = models.parse(models.TaskSpec, {"kind": "cli"})
    with pytest.raises(ValidationError):
        setattr(spec, "kind", "llm")  # noqa: B010 - mypy refuses the assignment, as it should


def test_the_last_four_states_are_final() -> None:
    assert [state.value for state in TaskState if state.final] == [
        "succeeded", "failed", "cancelled", "expired",
    ]  # fmt: skip


def test_every_body_has_a_name() -> None:
    assert {"TaskSpec", "RegisterRequest", "Result", "PollAnswer"} <= set(models.BODIES)


def test_an_answer_of_a_newer_control_is_understood() -> None:
    body = b'{"tasks": [{"task_id": "a", "state": "queued", "mood": "good"}], "more": {"x": 1}}'
    assert models.parse_answer(models.Submitted, body).tasks[0].task_id == "a"
    with pytest.raises(ValueError, match="no Submitted"):
        models.parse_answer(models.Submitted, b'{"tasks": 1}')
