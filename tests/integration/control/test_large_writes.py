"""Large submits leave room for small writes: taken one at a time, committed in turn with them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import Event

from rae_control.ledger.base import Tx
from rae_control.ledger.sqlite import Ledger
from rae_control.ledger.writer import COMMIT_S, LedgerWriter
from rae_control.maintenance import backup
from rae_control.mesh.mesh import Mesh
from rae_control.mesh.turns import Turns
from rae_protocol.models import canonical
from rae_protocol.names import MAX_DECLARED
from tests.integration.control.harness import ECHO, Api, ManualClock


class SlowClock(ManualClock):
    """Each look at it takes a while."""

    def boot(self) -> float:
        self.offset += COMMIT_S / 10
        return super().boot()


class Written(LedgerWriter):
    """A writer with a ledger of its own; `commits` are the sizes of its commits."""

    def __init__(self, ledger: Ledger) -> None:
        self.commits: list[int] = []
        super().__init__(ledger, lambda _: None, lambda _, writes: self.commits.append(writes))


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Written]:
    ledger = Ledger(tmp_path / "ledger.db", SlowClock())
    writer = Written(ledger)
    yield writer
    writer.close()
    ledger.close()


def test_a_small_write_waits_for_one_large_one_at_most(writer: Written) -> None:
    order: list[str] = []

    def note(_: Tx, name: str) -> None:
        order.append(name)

    def write(name: str, *, bulk: bool) -> None:
        writer.write(partial(note, name=name), bulk=bulk)

    large = [gevent.spawn(write, f"large {number}", bulk=True) for number in range(10)]
    gevent.sleep(0)
    small = [gevent.spawn(write, f"small {number}", bulk=False) for number in range(3)]
    gevent.joinall([*large, *small])
    assert [name.split()[0] for name in order[:5]].count("large") <= 2
    assert sorted(order) == sorted(
        [f"large {n}" for n in range(10)] + [f"small {n}" for n in range(3)]
    )
    assert order.index("large 9") > order.index("large 8")


def test_a_commit_takes_no_more_in_when_its_time_is_over(writer: Written) -> None:
    answers = [gevent.spawn(writer.write, lambda _, n=number: n) for number in range(40)]
    gevent.joinall(answers)
    assert [one.value for one in answers] == list(range(40))
    assert max(writer.commits) < 10
    assert sum(writer.commits) == 40


def test_each_caller_has_its_turn() -> None:
    turns, order = Turns(), list[str]()

    def work(who: str) -> None:
        with turns.of(who):
            order.append(who)
            gevent.sleep(0)

    gevent.joinall([gevent.spawn(work, who) for who in "aaaabbc"])
    assert "".join(order) == "aabcaba"


def test_who_gives_up_waiting_keeps_no_turn() -> None:
    turns, done = Turns(), list[str]()

    def work(who: str) -> None:
        with turns.of(who):
            gevent.sleep(0.01)
            done.append(who)

    workers = [gevent.spawn(work, who) for who in "aabbcc"]
    gevent.sleep(0)
    gevent.killall(workers[1:4])
    gevent.joinall(workers)
    assert done == ["a", "c", "c"]
    with turns.of("d"):
        done.append("d")


def test_a_small_submit_does_not_wait_for_the_turn_of_large_ones(api: Api, mesh: Mesh) -> None:
    entered, leave = Event(), Event()

    def hold() -> None:
        with mesh.turns.of("bob"):
            entered.set()
            leave.wait()

    holder = gevent.spawn(hold)
    entered.wait()
    large = gevent.spawn(api.submit, *[ECHO] * 50)
    wide = gevent.spawn(api.submit, {**ECHO, "labels": {"l": "x"}, "params": {"p": "x" * 200_000}})
    api.submit(ECHO)
    gevent.sleep(0.05)
    assert not large.ready() and not wide.ready()
    leave.set()
    gevent.joinall([holder, large, wide])
    assert len(large.get()) == 50 and len(wide.get()) == 1


def test_a_large_submit_is_written_as_many_small_ones_are(api: Api, mesh: Mesh) -> None:
    later = "2190-01-01T00:00:00Z"
    tasks = [
        {**ECHO, "task_id": f"t{number}", "priority": number % 3, "labels": {"n": str(number)},
         "idempotency_key": f"key \0 {number}", "params": {"text": f"ü \0 \U0001f600 {number}"},
         **({"not_before": later} if number % 5 == 0 else {}),
         **({"depends_on": [f"t{number - 1}", f"t{number - 2}"]} if number % 7 == 6 else {})}
        for number in range(60)
    ]  # fmt: skip
    found = api.submit(*tasks, tasks[3])
    assert [one["created"] for one in found] == [True] * 60 + [False]
    for number in (0, 3, 6, 59):
        task, sent = api.task(f"t{number}"), tasks[number]
        assert task["state"] == found[number]["state"]
        assert task["spec"]["params"] == sent["params"]
        assert task["spec"]["idempotency_key"] == f"key \0 {number}"
        assert task["labels"] == sent["labels"]
        events = api.rae("GET", f"/tasks/t{number}/events").json["events"]
        assert [event["to_state"] for event in events] == [task["state"]]
    states = [one["state"] for one in found[:60]]
    assert states == ["waiting" if n % 5 == 0 or n % 7 == 6 else "queued" for n in range(60)]
    again = api.submit(*({**task, "task_id": f"again-{task['task_id']}"} for task in tasks[:3]))
    assert [one["task_id"] for one in again] == ["t0", "t1", "t2"]
    assert backup.check_folder(mesh.data, deep=False) == []


def longest_write(mesh: Mesh, call: Callable[[], object]) -> float:
    """Seconds of the slowest small write, one after the other, beside this call."""
    beside, slowest = gevent.spawn(call), 0.0
    while not beside.ready():
        began = time.monotonic()
        mesh.write(lambda _: None)
        slowest = max(slowest, time.monotonic() - began)
    beside.get()
    return slowest


@pytest.fixture
def large(api: Api) -> str:
    """A task with a spec of megabytes, which declares one artifact."""
    api.submit({
        **ECHO, "task_id": "large", "params": {"command": "true", "x": [1] * 200_000},
        "artifacts": [{"name": "ä b"}], "not_before": "2190-01-01T00:00:00Z",
    })  # fmt: skip
    return "large"


def test_many_inputs_from_one_large_task_are_one_short_write(
    api: Api, mesh: Mesh, large: str
) -> None:
    source = {"from_task": large, "artifact": "ä b"}
    tasks = [{**ECHO, "inputs": {f"f{n}": source for n in range(250)}} for _ in range(40)]
    took = longest_write(mesh, lambda: api.submit(*tasks))
    assert took < 2.0
    other = {"f": {"from_task": large, "artifact": "b"}}
    answer = api.rae("POST", "/tasks", {**ECHO, "inputs": other})
    assert (answer.status_code, answer.json["rc"]) == (400, "unknown_input")


def test_thousands_of_blobs_as_inputs_take_few_statements(api: Api, mesh: Mesh) -> None:
    """Each gives the interpreter away, in the one thread that everybody's writes go through."""
    blobs = [api.blob(b"%d" % number) for number in range(50)]
    inputs = {f"f{number}": {"sha256": blob} for number, blob in enumerate(blobs)}
    run: list[str] = []

    def note(_: object, sql: str, __: object) -> bool:
        run.append(sql)
        return True

    mesh.write(lambda tx: tx.db.set_exec_trace(note))
    api.submit(*[{**ECHO, "inputs": inputs}] * 100)
    mesh.write(lambda tx: tx.db.set_exec_trace(None))
    assert 0 < len(run) < 100
    read = mesh.ledger.read(lambda db: db.execute("SELECT count(*) FROM task_blobs").get)
    assert read == 50 * 100
    missing = {**inputs, "g": {"sha256": "0" * 64}}
    answer = api.rae("POST", "/tasks", {**ECHO, "inputs": missing})
    assert (answer.status_code, answer.json["rc"]) == (400, "unknown_input")


@pytest.mark.parametrize("clock", [SlowClock()], ids=["slow"])
def test_tasks_whose_inputs_never_came_end_in_short_writes_before_the_next_is_leased(
    api: Api, mesh: Mesh
) -> None:
    api.join("n1")
    api.submit({**ECHO, "task_id": "source", "artifacts": [{"name": "a"}]})
    source = api.take("n1")
    lost = {**ECHO, "inputs": {"f": {"from_task": "source", "artifact": "a"}}}
    api.submit(*[lost] * 20)
    assert api.result("n1", source).json["state"] == "succeeded"  # without its artifact
    while mesh.reaper.tick():
        pass
    api.submit({**ECHO, "task_id": "next"})
    assert mesh.states["queued"] == 21
    ended: list[int] = []
    following = gevent.spawn(api.claim, "n1")
    while not following.ready():
        mesh.write(lambda _: None)
        ended.append(mesh.states["failed"])
    assert following.get()["task_id"] == "next"
    assert mesh.states["failed"] == 20
    assert len(set(ended)) > 2


def test_one_submit_looks_through_a_bounded_number_of_declared_artifacts(api: Api) -> None:
    artifacts = [
        {"name": f"{n:03}" + "x" * 252, "max_mb": 16.0, "type": "x" * 127} for n in range(256)
    ]
    many = MAX_DECLARED // len(canonical(artifacts)) + 1
    names = [f"n{number}" for number in range(many)]
    wide = [{**ECHO, "task_id": name, "artifacts": artifacts} for name in names]
    for half in (wide[::2], wide[1::2]):
        api.submit(*half)

    def takes(names: list[str]) -> dict[str, Any]:
        source = {"artifact": artifacts[-1]["name"]}
        return {**ECHO, "inputs": {name: {**source, "from_task": name} for name in names}}

    assert len(api.submit(takes(names[2:]), takes(names[2:]))) == 2
    answer = api.rae("POST", "/tasks", {"tasks": [takes(names[:2]), takes(names[2:])]})
    assert (answer.status_code, answer.json["rc"]) == (400, "invalid_body")
    assert "are declared by the tasks" in answer.json["message"]
