"""The agent, whole, against a control in this process: real supervisors, real tasks."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rae_node.cli import main
from rae_node.config.layout import Layout, socket_path
from rae_node.isolation import base
from rae_node.owner.socket import ask
from rae_protocol.errors import TABLE, RemoteError, Unreachable
from rae_protocol.models import Command
from tests.unit.node.fakes import UNREACHABLE, Rig
from tests.until import until

MakeRig = Callable[..., Rig]
SLEEP = {"command": "sleep", "args": ["600"]}


def listing(folder: Path) -> list[str]:
    """Names in a folder."""
    return [entry.name for entry in folder.iterdir()]


def remote(rc: str) -> RemoteError:
    return RemoteError(rc, rc, TABLE[rc][0], {})


def start(rig: Rig, **more: Any) -> Any:
    task = rig.control.give(params=SLEEP, **more)
    until(rig.running, "the task runs")
    return task


def test_it_registers_before_it_polls_and_says_what_it_is(make_rig: MakeRig) -> None:
    rig = make_rig(max_concurrent_cpu=2)
    until(lambda: rig.control.of("poll"), "a poll")
    request = rig.control.of("register")[0]
    assert (request.ack, request.slots, request.isolation) == (True, ["cpu0", "cpu1"], "process")
    assert request.capabilities.runners == ["cli", "python"]
    assert rig.control.of("poll") == [("cpu0", "cpu1")]


def test_a_cli_task_is_acked_run_reported_and_wiped(make_rig: MakeRig, layout: Layout) -> None:
    rig = make_rig()
    result, _ = rig.run(params={"command": "echo", "args": ["hello", "world"]})
    assert result.status == "succeeded"
    assert result.result == {
        "exit_code": 0, "stdout": "hello world\n", "stderr": "", "truncated": False,
    }  # fmt: skip
    verbs = [verb for verb, _ in rig.control.calls if verb in {"ack", "log"}]
    assert verbs == ["ack", "log"]
    assert rig.control.of("log") == [(0, b"hello world\n")]
    until(lambda: not listing(layout.workdir) and not listing(layout.spool), "all wiped")


def test_inputs_are_copied_into_the_workspace_and_artifacts_come_back(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.control.blobs["sub/b.txt"] = b"from control"
    result, files = rig.run(
        params={"command": "sha256sum", "args": ["a.txt", "sub/b.txt"]},
        inputs={"a.txt": {"inline": "aGk=", "encoding": "base64"}, "sub/b.txt": {}},
        artifacts=[{"name": "sub/b.txt"}, {"name": "a.txt"}],
    )
    assert result.status == "succeeded" and "sub/b.txt" in result.result["stdout"]
    assert files == {"a.txt": b"hi", "sub/b.txt": b"from control"}
    assert [meta.size for meta in result.artifacts] == [12, 2]


def test_stdout_stands_in_for_a_missing_sole_text_artifact(make_rig: MakeRig) -> None:
    """Contract: C10."""
    result, files = make_rig().run(
        params={"command": "echo", "args": ["hello", "world"]},
        artifacts=[{"name": "output.txt", "type": "text/plain", "max_mb": 1}],
    )
    assert result.status == "succeeded" and files == {"output.txt": b"hello world\n"}


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        ({"params": {"command": "false"}}, "E_EXIT", "Exit code 1"),
        ({"params": {"command": "rm", "args": ["x"]}}, "E_DENY", "allow-list"),
        ({"params": {"command": "cat", "args": ["../x"]}}, "E_DENY", "leaves the workspace"),
        ({"params": {"cmd": "x"}}, "E_INVALID", "params"),
        ({"params": {"command": "cat", "args": ["nope"]}}, "E_EXIT", "No such file"),
        ({"params": SLEEP, "timeout_s": 0.1}, "E_TIMEOUT", "timeout_s of the task"),
        ({"artifacts": [{"name": "x.bin"}]}, "E_ARTIFACT", "neither in output/ nor in work/"),
        ({"inputs": {"a": {"inline": "x", "sha256": "0" * 64}}}, "E_INPUT", "SHA-256"),
        ({"inputs": {"a": {"url": "http://127.0.0.1:1/a"}}}, "E_DENY", "input_url_hosts"),
        ({"kind": "unknown"}, "E_INVALID", "runs no tasks of kind"),
    ],
)
def test_each_failure_has_its_code_and_a_sentence(
    make_rig: MakeRig, more: dict[str, Any], code: str, words: str
) -> None:
    result, _ = make_rig().run(**more)
    assert result.status == "failed" and result.error is not None
    assert result.error.code == code and words in result.error.message


def test_the_smallest_time_limit_wins_and_is_named(make_rig: MakeRig) -> None:
    """Contract: Z5."""
    rig = make_rig(runtime={"execution": {"task_timeout_minutes": 0.002}})
    result, _ = rig.run(params=SLEEP)
    assert result.error is not None and "task_timeout_minutes" in result.error.message


PYTHON = {
    "value": ("def run(a, b=2): return {'sum': a + b}", {"a": 1}, None, {"sum": 3}),
    "bind": ("def run(a): return a", {"z": 1}, "E_INVALID", "'z' is not known to run(a); remove"),
    "fail": ("def run(): raise ValueError('odd')", {}, "E_EXIT", "ValueError: odd"),
    "oom": ("def run(): raise MemoryError", {}, "E_OOM", "memory"),
    "exit": ("import os\ndef run(): os._exit(0)", {}, "E_EXIT", "without returning"),
    "sysexit": ("def run(): raise SystemExit(0)", {}, "E_EXIT", "SystemExit"),
    "nan": ("def run(): return float('nan')", {}, "E_EXIT",
            "The value that run() returned is no JSON: Out of range float"),
    "object": ("def run(): return object()", {}, "E_EXIT",
               "The value that run() returned is no JSON: Object of type object"),
    "handback": ("import json, os\ndef run(ctx):\n"
                 " note = {'error': {'code': 'HANDBACK', 'message': 'not my fault'}}\n"
                 " (ctx.work.parent/'logs'/'return.json').write_text(json.dumps(note))\n"
                 " os._exit(1)", {}, "E_EXIT", "not my fault"),
    "exit3": ("import os\ndef run(): os._exit(3)", {}, "E_EXIT",
              "The program ended with exit code 3 without returning a value; it wrote no output"),
    "deep": ("def run():\n x=[]\n for _ in range(40): x=[x]\n return x", {}, "E_EXIT", "travel"),
    "segv": ("import os\ndef run(): os.kill(os.getpid(), 11)", {}, "E_EXIT", "SIGSEGV"),
    "big": ("def run(): return 'x' * (5 << 20)", {}, "E_ARTIFACT", "use an artifact"),
    "flood": ("import os\ndef run():\n while 1: os.write(1, b'x'*65536)", {}, "E_ARTIFACT", "more"),
    "file": ("def run():\n open('f','wb').truncate(2<<30)", {}, "E_EXIT", "File too large"),
}  # fmt: skip


@pytest.mark.parametrize("name", PYTHON)
def test_python_tasks_return_or_say_what_went_wrong(
    make_rig: MakeRig, tmp_path: Path, name: str
) -> None:
    source, params, code, wanted = PYTHON[name]
    folder = tmp_path / "trusted"
    folder.mkdir()
    (folder / f"{name}.py").write_text(source)
    result, _ = make_rig(tasks=[folder]).run("python", params={"task": name, "params": params})
    if code is None:
        assert (result.status, result.result) == ("succeeded", wanted)
    else:
        assert result.error is not None and result.error.code == code
        assert wanted in result.error.message


def test_shipped_python_tasks_work_and_tell_their_progress(make_rig: MakeRig) -> None:
    rig = make_rig()
    result, files = rig.run(
        "python",
        params={"task": "tasks.example:run", "params": {"name": "RAE", "seconds": 0.4}},
        artifacts=[{"name": "greeting.txt"}],
    )
    assert result.result == {"greeting": "Hello, RAE!"}
    assert files == {"greeting.txt": b"Hello, RAE!\n"}
    assert rig.control.of("progress")
    result, files = rig.run(
        "python",
        params={"task": "text_stats", "params": {"top": 1}},
        inputs={"a.txt": {"inline": "to be or not to be"}, "d/b.txt": {"inline": "be\n"}},
        artifacts=[{"name": "report.json"}],
    )
    assert result.result["most_frequent"] == [["be", 3]]
    assert json.loads(files["report.json"])["files"]["d/b.txt"]["lines"] == 1


def test_a_task_file_that_others_can_write_is_untrusted(make_rig: MakeRig, tmp_path: Path) -> None:
    folder = tmp_path / "trusted"
    folder.mkdir()
    (folder / "t.py").write_text("def run(): return 1")
    (folder / "t.py").chmod(0o666)
    result, _ = make_rig(tasks=[folder]).run("python", params={"task": "t"})
    assert result.error is not None and result.error.code == "E_DENY"
    assert "chmod go-w" in result.error.message


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import os\ndef run(ctx): os.symlink('/etc/passwd', ctx.output / 'a')", "link"),
        ("import os\ndef run(ctx): os.symlink('/etc', ctx.output / 'd'); ", "link"),
        ("import os\ndef run(ctx): os.mkfifo(ctx.output / 'a')", "plain file"),
        ("import os\ndef run(ctx):\n (ctx.work/'x').write_text('x')\n"
         " os.link(ctx.work/'x', ctx.output/'a')", "one name"),
        ("def run(ctx): (ctx.output/'a').write_bytes(b'x' * 2000000)", "larger than its max_mb"),
    ],
)  # fmt: skip
def test_artifacts_are_plain_files_of_the_workspace(
    make_rig: MakeRig, tmp_path: Path, source: str, words: str
) -> None:
    folder = tmp_path / "trusted"
    folder.mkdir()
    (folder / "t.py").write_text(source)
    name = "d/passwd" if "'/etc'" in source else "a"
    result, _ = make_rig(tasks=[folder]).run(
        "python", params={"task": "t"}, artifacts=[{"name": name, "max_mb": 1}]
    )
    assert result.error is not None and result.error.code == "E_ARTIFACT"
    assert words in result.error.message


def test_no_task_starts_whose_lease_is_over(make_rig: MakeRig, layout: Layout) -> None:
    rig = make_rig()
    rig.control.fail["ack"] = remote("stale_lease")
    rig.control.give(params=SLEEP)
    until(lambda: rig.control.of("ack"), "the ack")
    until(lambda: not rig.agent.runs(), "the slot is free again")
    assert not listing(layout.workdir)


@pytest.mark.parametrize("reached", [True, False])
def test_a_lease_that_was_over_before_its_ack_is_confirmed_quiet_once(
    make_rig: MakeRig, layout: Layout, reached: bool
) -> None:
    rig = make_rig()
    rig.control.fail["ack"] = remote("stale_lease")
    if not reached:
        rig.control.fail["yield"] = remote("stale_lease")
    task = rig.control.give(params=SLEEP)
    until(lambda: rig.control.of("yield"), "the word to control")
    until(lambda: not rig.agent.runs(), "the slot is free again")
    assert [call[:2] for call in rig.control.of("yield")] == [(task.task_id, "cancelled")]
    assert not listing(layout.workdir) and not listing(layout.spool)


def test_an_unanswered_ack_is_handed_back_and_never_run(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.control.fail["ack"] = UNREACHABLE
    task = rig.control.give(params=SLEEP)
    found = until(lambda: rig.control.of("yield"), "the hand-back")
    assert found[0][:2] == (task.task_id, "deadline")
    assert not rig.running()


def test_the_owners_return_stops_everything_at_once_and_hands_it_back(make_rig: MakeRig) -> None:
    rig = make_rig(max_concurrent_cpu=2)
    first = start(rig)
    second = rig.control.give(params=SLEEP, slot="cpu1")
    until(lambda: sum(run.alive() for run in rig.agent.runs()) == 2, "both run")
    rig.owner.present = True
    rig.agent.guard.wake()
    until(lambda: len(rig.control.of("yield")) == 2, "both are handed back")
    for task_id, reason, detail, ms in rig.control.of("yield"):
        assert task_id in {first.task_id, second.task_id}
        assert (reason, detail) == ("owner", "owner_active") and 0 <= ms < 1000
    until(
        lambda: "owner" in {beat.availability.value for beat in rig.control.of("heartbeat")},
        "control knows",
    )
    polls = len(rig.control.of("poll"))
    rig.agent.poller.wake()
    assert rig.control.of("poll")[polls:] in ([], [()])


def test_pause_answers_when_nothing_lives_any_more(make_rig: MakeRig, layout: Layout) -> None:
    rig = make_rig()
    start(rig)
    began = time.monotonic()
    answer = ask(socket_path(layout.root), {"verb": "pause", "duration_s": 3600})
    assert time.monotonic() - began < 1.0
    assert answer["stopped"] == 1 and answer["stopped_ms"] < 1000 and not rig.running()
    assert until(lambda: rig.control.of("yield"), "the hand-back")[0][1] == "paused"
    shown = ask(socket_path(layout.root), {"verb": "status"})
    assert (shown["availability"], shown["taking_work"]) == ("paused", False)
    assert ask(socket_path(layout.root), {"verb": "resume"})["availability"] == "open"
    assert rig.run()[0].status == "succeeded"


def test_a_task_that_arrives_after_the_owner_is_handed_back_unacked(make_rig: MakeRig) -> None:
    rig = make_rig()
    until(lambda: rig.control.of("poll"), "a poll")
    task = rig.control.give(slot="cpu7")  # no poll asks for it: given by hand below
    rig.owner.present = True
    rig.agent.guard.look_now(0.0, 5)
    rig.agent._take(task, rig.agent.slots.epoch)
    found = until(lambda: rig.control.of("yield"), "the hand-back")
    assert found[0][:2] == (task.task_id, "owner") and not rig.control.of("ack")


def test_the_cooldown_counts_from_the_last_moment_of_presence(make_rig: MakeRig) -> None:
    """Contract: B1."""
    rig = make_rig(runtime={"safety": {"cooldown_minutes": 0.05}})
    until(lambda: rig.agent.guard.decision.may_poll, "the node is free")
    rig.owner.present = True
    until(lambda: not rig.agent.guard.decision.safe, "the owner is seen")
    tripped = time.monotonic()
    until(lambda: time.monotonic() - tripped > 3.1, "a game that lasts longer than the cooldown")
    rig.agent.guard.look_now(0, 10)
    rig.owner.present = False
    rig.agent.guard.look_now(0, 10)
    assert rig.agent.guard.decision.reasons == ("cooldown",)
    until(lambda: rig.agent.guard.decision.may_poll, "the cooldown is over")


@pytest.mark.parametrize("why", ["input of a while ago", "a pause"])
def test_only_fresh_presence_restarts_the_cooldown(make_rig: MakeRig, why: str) -> None:
    """Contract: B1."""
    rig = make_rig(runtime={"safety": {"cooldown_minutes": 0.05}})
    until(lambda: rig.agent.guard.decision.may_poll, "the node is free")
    if why == "a pause":
        rig.agent.context.pause.set(None)
    else:
        rig.owner.age_s = 100.0
        rig.owner.present = True
    rig.agent.guard.look_now(0, 10)
    assert not rig.agent.guard.decision.safe and rig.agent.guard.cooldown_left_s() > 0
    until(lambda: rig.agent.guard.cooldown_left_s() == 0, "the cooldown is over")
    rig.agent.guard.look_now(0, 10)
    assert not rig.agent.guard.decision.safe and rig.agent.guard.cooldown_left_s() == 0


def test_the_cooldown_follows_a_guard_trip(make_rig: MakeRig) -> None:
    """Contract: B1."""
    rig = make_rig(runtime={"safety": {"cooldown_minutes": 60}})
    start(rig)
    rig.owner.present = True
    rig.agent.guard.look_now(0.0, 5)
    rig.owner.present = False
    rig.agent.guard.look_now(0.0, 5)
    decision = rig.agent.guard.decision
    assert (decision.safe, decision.may_poll, decision.reasons) == (True, False, ("cooldown",))
    assert rig.agent.guard.cooldown_left_s() > 3500


def test_a_cancel_reaches_a_busy_node_through_its_open_poll(make_rig: MakeRig) -> None:
    rig = make_rig()
    task = start(rig)
    until(lambda: rig.control.of("poll")[-1] == (), "a poll for commands alone")
    rig.control.order(command="cancel", task_id=task.task_id, lease_id=task.lease_id)
    assert until(lambda: rig.control.of("yield"), "the hand-back")[0][1] == "cancelled"
    assert rig.run()[0].status == "succeeded"


def test_a_slot_that_becomes_free_is_asked_for_at_once(make_rig: MakeRig) -> None:
    rig = make_rig(max_concurrent_cpu=2)
    rig.control.give(params={"command": "sleep", "args": ["0.2"]})
    rig.outcome()
    until(lambda: rig.control.of("poll")[-1] == ("cpu0", "cpu1"), "a poll for both", 2.0)


def test_a_lost_resume_is_made_up_for_by_the_state_in_the_next_heartbeat(
    make_rig: MakeRig,
) -> None:
    rig = make_rig()
    rig.control.order(command="drain")
    until(lambda: rig.agent.draining, "the node drains")
    # The resume was sent with an answer that never came.
    rig.control.wanted = "work"
    rig.agent.link.beat_now()
    assert rig.run()[0].status == "succeeded"
    assert not rig.agent.draining


def test_drain_finishes_what_runs_and_takes_no_more(make_rig: MakeRig) -> None:
    rig = make_rig(max_concurrent_cpu=2)
    rig.control.give(params={"command": "sleep", "args": ["0.3"]})
    until(rig.running, "the task runs")
    rig.control.order(command="drain")
    assert rig.outcome()[0].status == "succeeded"
    until(lambda: rig.control.of("poll")[-1] == (), "no slot is offered")
    rig.control.order(command="resume")
    until(lambda: rig.control.of("poll")[-1] == ("cpu0", "cpu1"), "both are offered")


def test_heartbeats_list_what_lives_and_move_the_deadline(make_rig: MakeRig) -> None:
    rig = make_rig()
    task = start(rig, lease_ttl_s=2.0)
    run = rig.agent.runs()[0]
    first = run.deadline
    until(lambda: run.deadline > first + 0.3, "a later deadline")
    assert rig.control.of("heartbeat")[-1].leases == [run.lease]
    assert run.deadline <= rig.agent.context.clock.boot() + task.lease_ttl_s - rig.control.margin_s


def test_without_an_answered_heartbeat_the_task_dies_at_its_deadline(make_rig: MakeRig) -> None:
    rig = make_rig()
    start(rig, lease_ttl_s=1.2)
    rig.control.fail["heartbeat"] = UNREACHABLE
    found = until(lambda: rig.control.of("yield"), "the hand-back")
    assert found[0][1] == "deadline"


def test_a_result_waits_in_the_spool_until_control_has_it(
    make_rig: MakeRig, layout: Layout
) -> None:
    rig = make_rig()
    task = rig.control.give(params={"command": "sleep", "args": ["0.1"]})
    until(rig.running, "the task runs")
    rig.control.fail["*"] = UNREACHABLE
    until(lambda: rig.control.of("result"), "a try")
    assert (layout.spool / task.lease_id / "record.json").exists()
    rig.control.calls.clear()
    rig.control.fail.clear()
    assert rig.outcome()[0].status == "succeeded"
    until(lambda: not listing(layout.spool), "the spool is empty")


def test_undelivered_results_are_named_at_registration(
    make_rig: MakeRig, layout: Layout, quiet_log: Any
) -> None:
    from rae_node.session.spool import Spool
    from rae_protocol.models import LeaseRef

    lease = LeaseRef(task_id="t", attempt=2, lease_id="lease-00000009")
    body = {**lease.model_dump(), "status": "succeeded", "result": 1}
    Spool(layout.spool, quiet_log).put("result", lease, body)
    rig = make_rig()
    until(lambda: rig.control.of("result"), "the delivery")
    assert rig.control.of("register")[0].unfinished == [lease]


def test_a_result_that_is_stale_is_dropped(make_rig: MakeRig, layout: Layout) -> None:
    rig = make_rig()
    rig.control.fail["result"] = remote("stale_lease")
    rig.control.give()
    until(lambda: rig.control.of("result"), "a try")
    until(lambda: not listing(layout.spool), "the spool is empty")
    assert len(rig.control.of("result")) == 1


def test_a_refused_success_becomes_a_failure_that_says_so(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.control.fail["result"] = remote("body_too_large")
    rig.control.give()
    until(lambda: rig.control.of("result"), "a try")
    until(lambda: len(rig.control.of("result")) == 2, "the replacement")
    last = rig.control.of("result")[-1][0]
    assert last.status == "failed" and "refused the result" in last.error.message


@pytest.mark.parametrize("rc", ["register_again", "unauthorized", "unknown_node"])
def test_a_session_that_is_over_is_begun_again_with_the_running_leases(
    make_rig: MakeRig, rc: str
) -> None:
    rig = make_rig()
    start(rig)
    lease = rig.agent.runs()[0].lease
    rig.control.fail["heartbeat"] = remote(rc)
    until(lambda: len(rig.control.of("register")) >= 2, "another registration")
    rig.control.fail.clear()
    first, again = rig.control.of("register")[:2]
    assert again.unfinished == [lease] and again.instance == first.instance
    assert rig.running()


def test_another_incarnation_of_control_ends_all_work_without_a_report(make_rig: MakeRig) -> None:
    rig = make_rig()
    start(rig)
    rig.control.incarnation = "inc-2"
    until(lambda: not rig.agent.runs(), "the work is dropped")
    assert not rig.control.of("yield")
    assert rig.run()[0].status == "succeeded"


@pytest.mark.parametrize("rc", ["not_enrolled", "node_revoked"])
def test_an_unwelcome_node_stops_its_work_and_asks_again_later(make_rig: MakeRig, rc: str) -> None:
    rig = make_rig()
    start(rig)
    rig.control.fail.update(heartbeat=remote(rc), register=remote(rc))
    until(lambda: not rig.agent.runs(), "the work is dropped")
    assert not rig.agent.done.is_set()
    rig.control.fail.clear()
    assert rig.run()[0].status == "succeeded"


def test_a_superseded_agent_kills_its_work_and_leaves(make_rig: MakeRig) -> None:
    rig = make_rig()
    start(rig)
    rig.control.fail["heartbeat"] = remote("superseded")
    assert rig.agent.done.wait(5) and rig.agent.exit_code == 1
    assert not rig.running()


def test_a_stale_lease_ends_the_work_without_a_word(make_rig: MakeRig, tmp_path: Path) -> None:
    folder = tmp_path / "trusted"
    folder.mkdir()
    (folder / "t.py").write_text(
        "import time\ndef run():\n while 1: print('x', flush=True); time.sleep(.02)"
    )
    rig = make_rig(tasks=[folder])
    rig.control.give("python", params={"task": "t"})
    until(rig.running, "the task runs")
    rig.control.fail["log"] = remote("stale_lease")
    until(lambda: not rig.agent.runs(), "the work is dropped")
    assert not rig.control.of("yield") and not rig.control.of("result")


def test_too_weak_isolation_takes_no_task_and_says_so(make_rig: MakeRig, layout: Layout) -> None:
    rig = make_rig(min_isolation="bubblewrap")
    until(lambda: len(rig.control.of("heartbeat")) > 1, "heartbeats")
    assert not rig.control.of("poll")
    assert ask(socket_path(layout.root), {"verb": "status"})["reasons"] == ["isolation_too_weak"]


def test_shutting_down_kills_hands_back_and_says_goodbye(make_rig: MakeRig) -> None:
    rig = make_rig()
    start(rig)
    rig.agent.shut_down()
    assert not rig.running()
    assert rig.control.of("yield")[0][1] == "shutdown"
    assert [verb for verb, _ in rig.control.calls if verb in {"yield", "goodbye"}] == [
        "yield",
        "goodbye",
    ]


def test_shutting_down_is_quick_without_control(make_rig: MakeRig, layout: Layout) -> None:
    rig = make_rig()
    start(rig)
    rig.control.fail["*"] = UNREACHABLE
    began = time.monotonic()
    rig.agent.shut_down()
    assert time.monotonic() - began < 3 and not rig.running()
    assert listing(layout.spool)


def test_an_input_is_fetched_again_while_control_is_away(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.control.blobs["a"] = b"x"
    rig.control.fail["fetch"] = UNREACHABLE
    rig.control.give(params={"command": "cat", "args": ["a"]}, inputs={"a": {}})
    until(lambda: len(rig.control.of("fetch")) > 1, "two tries")
    rig.control.fail.clear()
    assert rig.outcome()[0].result["stdout"] == "x"


def test_an_input_that_does_not_come_while_heartbeats_do_is_handed_back(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.control.fail["fetch"] = Unreachable("http://c answered 200 (text/html)")
    rig.control.give(params={"command": "cat", "args": ["a"]}, inputs={"a": {}}, lease_ttl_s=2.0)
    _, reason, detail, _ = until(lambda: rig.control.of("yield"), "the hand-back")[0]
    assert reason == "deadline"
    assert detail.startswith("Input 'a': http://c answered 200 (text/html)")
    assert rig.control.of("result") == []


def test_a_supervisor_that_dies_before_it_starts_the_task_is_the_nodes_fault(
    make_rig: MakeRig, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "broken.py"
    program.write_text("raise SystemExit(3)")
    monkeypatch.setattr(base, "PROGRAM", program)
    rig = make_rig()
    rig.control.give(params=SLEEP)
    assert until(lambda: rig.control.of("yield"), "the hand-back")[0][1] == "infrastructure"
    until(lambda: not listing(layout.workdir), "the workspace is wiped")


def test_progress_that_cannot_be_encoded_does_not_end_the_task(
    make_rig: MakeRig, tmp_path: Path
) -> None:
    folder = tmp_path / "trusted"
    folder.mkdir()
    (folder / "t.py").write_text(
        "import time\ndef run(ctx): ctx.progress(1, '\\udcff'); time.sleep(0.3); return 1"
    )
    result, _ = make_rig(tasks=[folder]).run("python", params={"task": "t"})
    assert (result.status, result.result) == ("succeeded", 1)


def test_a_message_with_half_a_surrogate_pair_is_delivered(
    make_rig: MakeRig, tmp_path: Path
) -> None:
    folder = tmp_path / "trusted"
    folder.mkdir()
    (folder / "t.py").write_text("def run(): raise ValueError('\\udcff')")
    result, _ = make_rig(tasks=[folder]).run("python", params={"task": "t"})
    assert result.error is not None and "ValueError" in result.error.message


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_a_task_is_dead_before_it_is_handed_back_when_the_disk_failed(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    rig = make_rig()
    alive_at_yield: list[bool] = []
    tell = rig.control.yield_task
    monkeypatch.setattr(
        rig.control, "yield_task", lambda *a: (alive_at_yield.append(rig.running()), tell(*a))
    )
    start(rig)

    def broken(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(rig.agent.runs()[0], "_send_log", broken)
    assert until(lambda: rig.control.of("yield"), "the hand-back")[0][1] == "infrastructure"
    assert alive_at_yield == [False] and not rig.running()


def test_the_first_poll_follows_the_registration_at_once(make_rig: MakeRig) -> None:
    rig = make_rig(runtime={"execution": {"poll_interval_sec": 60}})
    until(lambda: rig.control.of("poll"), "a poll", 5)


def test_a_task_that_arrives_while_the_agent_ends_is_not_run(make_rig: MakeRig) -> None:
    rig = make_rig()
    task = rig.control.give(slot="cpu7").model_copy(update={"slot": "cpu0", "params": SLEEP})
    until(lambda: rig.control.of("poll"), "a poll")
    rig.agent.may_take = lambda: True  # type: ignore[method-assign] - the look before the end
    rig.agent.stopping = True
    rig.agent._take(task, rig.agent.slots.epoch)
    assert until(lambda: rig.control.of("yield"), "the hand-back")[0][1] == "shutdown"
    assert not rig.running()


def test_a_lease_that_control_closed_at_a_registration_is_not_renewed(make_rig: MakeRig) -> None:
    rig = make_rig()
    start(rig)
    run = rig.agent.runs()[0]
    rig.control.fail["heartbeat"] = remote("register_again")
    register = rig.control.register
    closed = Command(command="cancel", task_id=run.task.task_id, lease_id=run.lease.lease_id)
    renewed: list[frozenset[str]] = []
    rig.agent.renewed = lambda ids, _: renewed.append(ids)  # type: ignore[method-assign]
    rig.control.register = lambda request: register(request).model_copy(  # type: ignore[method-assign]
        update={"commands": [closed]}
    )
    until(lambda: not rig.agent.runs(), "the task is cancelled")
    assert all(run.lease.lease_id not in ids for ids in renewed)


def test_status_says_in_words_why_no_task_is_taken(
    make_rig: MakeRig, layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    rig = make_rig(
        min_isolation="unit",
        runtime={"safety": {"cooldown_minutes": 60}},
        control=None,
    )
    until(rig.agent.link.ready.is_set, "the registration")
    rig.agent.guard.begin_cooldown()
    rig.agent.guard.look_now(0.0, 5)
    rig.control.fail["*"] = remote("not_enrolled")
    until(lambda: not rig.agent.link.ready.is_set(), "the session's end")
    rig.agent.draining = True
    words = " / ".join(ask(socket_path(layout.root), {"verb": "status"})["no_task_because"])
    for part in ("below min_isolation 'unit'", "cooldown", "operator drains", "not_enrolled"):
        assert part in words
    rig.agent.context.pause.set(None)
    rig.agent.guard.look_now(0.0, 5)
    shown = ask(socket_path(layout.root), {"verb": "status"})
    assert "the owner paused this node" in shown["no_task_because"][0] and not shown["taking_work"]
    assert main(["status", "--root", str(layout.root)]) == 0
    assert "no task: the owner paused this node" in capsys.readouterr().out


def test_status_answers_although_the_pause_file_is_broken(
    make_rig: MakeRig, layout: Layout
) -> None:
    (layout.run / "pause.json").write_text("{")
    make_rig()
    shown = ask(socket_path(layout.root), {"verb": "status"})
    assert (shown["availability"], shown["paused_until"]) == ("paused", 0)


def test_a_full_disk_does_not_turn_a_refused_result_into_a_hand_back(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig()
    rig.control.fail["result"] = remote("body_too_large")
    put = rig.agent.spool.put

    def full(kind: Any, lease: Any, body: Any) -> None:
        if body.get("status") == "failed":
            raise OSError(28, "No space left on device")
        put(kind, lease, body)

    monkeypatch.setattr(rig.agent.spool, "put", full)
    rig.control.give()
    until(lambda: rig.control.of("result"), "a try")
    until(lambda: not rig.agent.runs(), "the end")
    assert not rig.control.of("yield") and not rig.agent.spool.leases()


def test_no_goodbye_is_said_while_a_result_waits_for_control(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.control.fail["result"] = Unreachable("control is away")
    rig.control.give()
    until(lambda: len(rig.agent.spool), "the result waits")
    rig.agent.shut_down()
    assert not rig.control.of("goodbye"), "its lease would be closed, and the work done again"
    assert len(rig.agent.spool) == 1


def test_no_goodbye_is_said_while_something_may_live(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig()
    until(rig.agent.link.ready.is_set, "the registration")
    monkeypatch.setattr(rig.agent, "_alive", lambda: [object()])
    monkeypatch.setattr(rig.agent, "_enforce_deadlines", lambda: 1.0)
    rig.agent.guard._deadlines = lambda: 1.0
    rig.agent.shut_down()
    assert not rig.control.of("goodbye")
    monkeypatch.undo()
