"""Redis stops answering while work is under way: nothing waits for it, and it catches up."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from tests.harness import MakeMesh
from tests.until import until
from tools.devmesh import DevMesh

# What waits for Redis even once waits for longer than this: control gives it 2 s a call.
ONE_CALL_S = 2.0
TRUE = {"kind": "cli", "params": {"command": "true"}}


def rq_counts(mesh: DevMesh) -> tuple[int, int]:
    """What `rq info` adds up to: queued, executing."""
    rq = str(Path(sys.executable).with_name("rq"))
    command = [rq, "info", "-u", mesh.redis_url, "-S", "rq.serializers.JSONSerializer", "--raw"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = [line.replace(",", "").split() for line in out.splitlines()]
    queues = [words for words in lines if words[0] == "queue"]
    return sum(int(words[2]) for words in queues), sum(int(words[3]) for words in queues)


def test_while_redis_does_not_answer_agents_get_task_after_task(make_mesh: MakeMesh) -> None:
    mesh = make_mesh("n1", "n2")
    rae = mesh.rae
    first = [ref.task_id for ref in rae.submit([TRUE] * 10)]
    assert mesh.kill("redis", signal.SIGSTOP)
    more = [ref.task_id for ref in rae.submit([TRUE] * 30)]
    for task_id in (*first, *more):
        assert rae.wait(task_id, 60).state.value == "succeeded"
    *left, cancelled = [ref.task_id for ref in rae.submit([{**TRUE, "priority": 1}] * 20)]
    rae.cancel(cancelled)
    for node in ("n1", "n2"):
        mesh.admin.node_verb(node, "drain", "the rest waits")
    assert mesh.kill("redis", signal.SIGCONT)

    def true_again() -> bool:
        queued = sum(rae.task(task_id).state.value == "queued" for task_id in left)
        return rq_counts(mesh) == (queued, 0)

    until(true_again, "rq info is right", 30)
    for node in ("n1", "n2"):
        mesh.admin.node_verb(node, "resume")
    for task_id in left:
        assert rae.wait(task_id, 60).state.value == "succeeded"
    until(lambda: rq_counts(mesh) == (0, 0), "rq info is right at the end", 30)


def test_a_poll_that_waits_gets_its_task_while_redis_does_not_answer(make_mesh: MakeMesh) -> None:
    mesh = make_mesh("n1")
    assert mesh.kill("redis", signal.SIGSTOP)
    times = []
    for _ in range(5):
        (ref,) = mesh.rae.submit([TRUE])
        done = mesh.rae.wait(ref.task_id, 60)
        assert done.state.value == "succeeded" and done.finished_at is not None
        times.append((done.history[0].claimed_at - done.created_at).total_seconds())
    # One by one: what waited for Redis at all would show in most of them.
    assert sorted(times)[-2] < ONE_CALL_S
    assert mesh.kill("redis", signal.SIGCONT)
