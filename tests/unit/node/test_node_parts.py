"""Slots, spool, verdicts, the owner's door, start-up, capabilities: the parts one by one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from rae_node.agent import startup
from rae_node.cli import main, parse_duration
from rae_node.config.files import NodeConfig, RuntimeConfig, dev_config, dev_runtime
from rae_node.config.layout import Layout, default_node_id, only_dev_node, socket_path
from rae_node.errors import ConfigError, NodeError, Verdict, verdict
from rae_node.host import processes
from rae_node.host.nvml import Gpu
from rae_node.isolation.base import ProcessIsolation
from rae_node.owner.socket import LocalSocket, ask, may_resume
from rae_node.runners.capabilities import describe, gpu_slots, probe_machine, roles_of
from rae_node.session.slots import Slots, slot_names
from rae_node.session.spool import Spool
from rae_node.telemetry.log import EventLog
from rae_protocol.errors import TABLE, RemoteError
from rae_protocol.models import LeaseRef
from tests.unit.node.fakes import MACHINE, UNREACHABLE, Rig
from tests.until import until


@dataclass(frozen=True)
class Holder:
    lease: LeaseRef
    slot: str


def lease(number: int = 1) -> LeaseRef:
    return LeaseRef(task_id=f"t{number}", attempt=1, lease_id=f"lease-{number:08}")


def test_a_slot_holds_one_task() -> None:
    slots: Slots[Holder] = Slots(slot_names(1, 1))
    assert slots.occupy(Holder(lease(1), "cpu0"), 0) is None
    assert slots.occupy(Holder(lease(2), "cpu0"), 0) == "slot"
    assert slots.occupy(Holder(lease(2), "cpu9"), 0) == "slot"
    assert slots.free() == ("gpu0",)


def test_a_lease_is_either_named_at_registration_or_not_taken() -> None:
    slots: Slots[Holder] = Slots(("cpu0", "cpu1"))
    epoch = slots.epoch
    assert slots.occupy(Holder(lease(1), "cpu0"), epoch) is None
    assert slots.new_epoch() == [lease(1)]
    assert slots.occupy(Holder(lease(2), "cpu1"), epoch) == "epoch"


@pytest.mark.parametrize(
    ("rc", "wanted"),
    [
        ("stale_lease", Verdict.STALE), ("superseded", Verdict.SUPERSEDED),
        ("register_again", Verdict.REGISTER), ("bad_signature", Verdict.REGISTER),
        ("not_enrolled", Verdict.UNWELCOME), ("node_revoked", Verdict.UNWELCOME),
        ("rate_limited", Verdict.RETRY), ("internal", Verdict.RETRY), ("disk_low", Verdict.RETRY),
        ("skew", Verdict.RETRY), ("retry_signed", Verdict.RETRY),
        ("whois_unavailable", Verdict.RETRY), ("wrong_peer", Verdict.REFUSED),
        ("invalid_body", Verdict.REFUSED), ("body_too_large", Verdict.REFUSED),
    ],
)  # fmt: skip
def test_each_answer_has_its_meaning(rc: str, wanted: Verdict) -> None:
    assert verdict(RemoteError(rc, rc, TABLE[rc][0], {})) is wanted
    assert verdict(UNREACHABLE) is Verdict.RETRY


def test_what_was_spooled_survives_and_what_was_not_finished_goes(
    layout: Layout, quiet_log: EventLog
) -> None:
    first = Spool(layout.spool, quiet_log)
    (first.staging(lease(1)) / "0").write_bytes(b"artifact")
    body = {
        **lease(1).model_dump(), "status": "succeeded", "result": [1],
        "artifacts": [{"name": "a/b", "size": 8}],
    }  # fmt: skip
    first.put("result", lease(1), body)
    first.staging(lease(2))
    (layout.spool / "rubbish").mkdir()
    again = Spool(layout.spool, quiet_log)
    again.load()
    entry = again.take()
    assert entry is not None and entry.result().result == [1]
    assert [(name, path.read_bytes()) for name, path in entry.artifacts()] == [("a/b", b"artifact")]
    assert again.take() is None
    again.give_back(entry)
    again.remove(entry)
    assert list(layout.spool.iterdir()) == [] and len(again) == 0


@pytest.fixture
def door(layout: Layout, quiet_log: EventLog) -> Iterator[LocalSocket]:
    verbs = {"status": lambda _, __: {"fine": True}, "resume": lambda _, __: {}}
    door = LocalSocket(socket_path(layout.root), verbs, frozenset({"resume"}), quiet_log)
    door.start()
    yield door
    door.close()


def test_the_local_socket_answers_and_refuses_in_sentences(
    door: LocalSocket, layout: Layout
) -> None:
    assert ask(socket_path(layout.root), {"verb": "status"}) == {"fine": True}
    with pytest.raises(NodeError, match="send one of status, resume"):
        ask(socket_path(layout.root), {"verb": "explode"})


def test_without_an_agent_the_socket_says_how_to_start_one(layout: Layout) -> None:
    with pytest.raises(NodeError, match="rae-node run"):
        ask(socket_path(layout.root), {"verb": "status"})


def test_a_pause_ends_without_an_agent_and_only_where_there_is_one(
    layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    paused = layout.run / "pause.json"
    paused.write_text('{"until": null}')
    assert main(["resume", "--root", str(layout.root)]) == 0
    assert capsys.readouterr().out.startswith("Resumed") and not paused.exists()
    assert main(["resume", "--root", str(layout.root)]) == 1
    assert "systemctl start rae-node" in capsys.readouterr().err


def test_no_agent_takes_the_lock_of_another_user_s_agent(layout: Layout) -> None:
    if os.getuid() == 0:
        os.chown(layout.run, 4711, 4711)
    else:
        layout.run.rmdir()
        layout.run.symlink_to("/usr")  # root's
    with pytest.raises(NodeError, match="systemctl start rae-node") as refused:
        startup.AgentLock(layout, "n1", "http://127.0.0.1:1")
    assert refused.value.rc == "not_its_user"
    assert not (layout.run / "lock").exists()


def test_who_lends_again_is_root_the_agent_or_an_owner() -> None:
    assert may_resume(0, 1000) and may_resume(1000, 1000)
    assert not may_resume(65534, 1000)


def test_a_hostname_becomes_a_node_id() -> None:
    assert default_node_id("my_host.local") == "my-host-local-dev"
    assert len(default_node_id("x" * 100)) <= 64
    assert default_node_id("...") == "node-dev"


def test_only_one_node_needs_no_name(tmp_path: Path) -> None:
    with pytest.raises(NodeError, match="--node-id"):
        only_dev_node(tmp_path)
    (tmp_path / "nodes" / "a").mkdir(parents=True)
    assert only_dev_node(tmp_path) == "a"
    (tmp_path / "nodes" / "b").mkdir()
    with pytest.raises(NodeError, match="a, b"):
        only_dev_node(tmp_path)


def test_a_second_agent_is_refused_by_root_and_by_name(tmp_path: Path, layout: Layout) -> None:
    name = uuid.uuid4().hex
    lock = startup.AgentLock(layout, name, "http://127.0.0.1:1")
    with pytest.raises(NodeError, match="Another agent serves"):
        startup.AgentLock(layout, "other", "http://127.0.0.1:1")
    other = Layout(tmp_path / "other")
    other.create()
    with pytest.raises(NodeError, match="Another agent on this machine"):
        startup.AgentLock(other, name, "http://127.0.0.1:1")
    lock.release()
    startup.AgentLock(layout, name, "http://127.0.0.1:1").release()


def stray(layout: Layout, how: str) -> subprocess.Popen[bytes]:
    folder = layout.workdir / "t.1"
    folder.mkdir(exist_ok=True)
    (folder / "file").touch()
    if how == "mark":
        env = {"RAE_NODE_ROOT": str(layout.root)}
        return subprocess.Popen(["/bin/sleep", "600"], env=env, start_new_session=True)
    if how == "cwd":
        return subprocess.Popen(["/bin/sleep", "600"], cwd=folder, env={})
    with (folder / "file").open() as handle:
        return subprocess.Popen(["/bin/sleep", "600"], stdin=handle, env={})


def test_every_process_of_an_earlier_agent_is_found_killed_and_wiped_after(
    layout: Layout, quiet_log: EventLog, tmp_path: Path
) -> None:
    strays = [stray(layout, how) for how in ("mark", "cwd", "file")]
    innocent = subprocess.Popen(
        ["/bin/sleep", "600"], env={"RAE_NODE_ROOT": f"{layout.root}-other"}, cwd=tmp_path
    )
    reaper = threading.Thread(target=lambda: [process.wait() for process in strays])
    reaper.start()
    startup.end_predecessors(layout, 10, quiet_log, ProcessIsolation(layout.root))
    reaper.join(5)
    assert [process.returncode for process in strays] == [-9, -9, -9]
    assert innocent.poll() is None
    innocent.kill()
    innocent.wait()
    assert list(layout.workdir.iterdir()) == []


@pytest.mark.parametrize("how", ["mark", "cwd", "file"])
def test_no_process_of_another_user_passes_for_the_agents(layout: Layout, how: str) -> None:
    one = stray(layout, how)
    try:
        assert one.pid in processes.predecessors(layout.root)
        if os.getuid() == 0:
            os.chown(layout.run, 4711, 4711)
        else:
            layout.run.rmdir()
            layout.run.symlink_to("/usr")  # root's
        assert one.pid not in processes.predecessors(layout.root)
        os.chown(layout.workdir, -1, os.getgid())
        layout.workdir.chmod(0o2770)  # shared with the tasks' group, which is this process's now
        assert one.pid in processes.predecessors(layout.root)
    finally:
        one.kill()
        one.wait()


def test_the_machine_has_one_name_that_tells_nothing(layout: Layout, tmp_path: Path) -> None:
    file = tmp_path / "machine-id"
    file.write_text("0123456789abcdef\n")
    name = startup.machine_id(layout, file)
    assert name == startup.machine_id(layout, file) and "0123" not in name
    missing = tmp_path / "none"
    assert startup.machine_id(layout, missing) == startup.machine_id(layout, missing) != name


def test_a_copy_of_a_machine_s_disk_has_another_name(layout: Layout, tmp_path: Path) -> None:
    file = tmp_path / "machine-id"
    file.write_text("0123456789abcdef\n")

    def card(machine: str, name: str, bus: str, kind: str, address: str) -> Path:
        folder = tmp_path / machine / name
        (tmp_path / "bus" / bus).mkdir(parents=True, exist_ok=True)
        (folder / "device").mkdir(parents=True)
        (folder / "device" / "subsystem").symlink_to(tmp_path / "bus" / bus)
        (folder / "addr_assign_type").write_text(f"{kind}\n")
        (folder / "address").write_text(f"{address}\n")
        return tmp_path / machine

    ours = card("ours", "eth0", "pci", "0", "02:00:00:00:00:01")
    name = startup.machine_id(layout, file, ours)
    copy = card("copy", "eth0", "pci", "0", "02:00:00:00:00:02")
    assert startup.machine_id(layout, file, copy) != name
    # Neither an adapter that is plugged in nor an address that software chose counts.
    card("ours", "usb0", "usb", "0", "02:00:00:00:00:03")
    card("ours", "eth1", "pci", "3", "02:00:00:00:00:04")
    (ours / "lo").mkdir()
    assert startup.machine_id(layout, file, ours) == name
    # Of a wireless card the radio's address counts, whatever its interface is called by now.
    names = set()
    for interface, radio in (("05", "06"), ("07", "06"), ("07", "08")):
        wireless = card(f"laptop{interface}{radio}", "wlan0", "pci", "3", interface)
        (wireless / "wlan0" / "phy80211").mkdir()
        (wireless / "wlan0" / "phy80211" / "macaddress").write_text(radio)
        names.add(startup.machine_id(layout, file, wireless))
    assert len(names) == 2


def test_an_unusable_enrolment_says_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "enrolment.json"
    with pytest.raises(ConfigError, match="raectl nodes enrol"):
        startup.read_enrolment(str(file), {})
    file.write_text("[]")
    with pytest.raises(ConfigError, match="raectl nodes enrol"):
        startup.read_enrolment(str(file), {})
    file.write_text('{"enrolment_secret": "s"}')
    with pytest.raises(ConfigError, match="control_public_keys"):
        startup.read_enrolment(str(file), {})


def test_a_secret_in_the_environment_is_taken_out_of_it(tmp_path: Path) -> None:
    environ = {"RAE_SECRET": "word", "CREDENTIALS_DIRECTORY": str(tmp_path)}
    (tmp_path / "enrolment").write_text("other word")
    assert startup.read_secret("env:RAE_SECRET", environ) == "word"
    assert "RAE_SECRET" not in environ
    assert startup.read_secret("credential:enrolment", environ) == "other word"


@pytest.mark.parametrize(
    ("source", "way_out"),
    [
        ("env:NOT_SET", "NOT_SET is not set; set it"),
        ("credential:enrolment", "add LoadCredential=enrolment"),
        ("/does/not/exist", "raectl nodes enrol"),
    ],
)
def test_a_secret_that_is_not_there_names_its_source(source: str, way_out: str) -> None:
    with pytest.raises(ConfigError, match=way_out):
        startup.read_secret(source, {})


def test_a_broken_enrolment_is_never_quoted(tmp_path: Path) -> None:
    environ = {"RAE_SECRET": '{"enrolment_secret": "hush'}
    with pytest.raises(ConfigError) as caught:
        startup.read_enrolment("env:RAE_SECRET", environ)
    assert "hush" not in "".join(traceback.format_exception(caught.value))


def node(**more: Any) -> NodeConfig:
    return NodeConfig.model_validate({**dev_config("n1", "http://127.0.0.1:1"), **more})


RUNTIME = RuntimeConfig.model_validate(dev_runtime())
CARD = Gpu("NVIDIA RTX 4080", 16 * 1024.0, "GPU-1", "550.1", "12.4")


def test_the_probe_of_this_machine_has_every_key(tmp_path: Path) -> None:
    """Contract: C2."""
    found = describe(node(), RUNTIME, probe_machine(5), disk=tmp_path, models=None)
    shown = json.loads(found.model_dump_json())
    assert {"node_id", "version", "memory_mb", "disk_free_mb", "gpu", "tags"} <= set(shown)
    assert shown["runners"] == ["cli", "python"] and shown["cpu"]["cores"] == os.cpu_count()
    assert shown["os"] == "linux" and shown["ram_gb"] > 0 and shown["python_version"]


def test_declared_values_win_but_never_above_what_is_measured(tmp_path: Path) -> None:
    declared = {"gpu": True, "gpu_model": "RTX_4080", "vram_gb": 24, "ram_gb": 64}
    machine = MACHINE.__class__(
        **{f: getattr(MACHINE, f) for f in MACHINE.__slots__ if f != "gpus"}, gpus=(CARD,)
    )
    found = describe(node(capabilities=declared), RUNTIME, machine, disk=tmp_path, models=[])
    assert (found.gpu_model, found.vram_gb, found.ram_gb) == ("RTX_4080", 14, 8)
    assert isinstance(found.gpu, list) and found.gpu[0].vram_mb == 14 * 1024
    assert gpu_slots(node(capabilities=declared), machine) == 1


def test_without_nvml_a_gpu_is_what_the_owner_says_and_else_unknown(tmp_path: Path) -> None:
    unknown = describe(node(), RUNTIME, MACHINE, disk=tmp_path, models=None)
    assert (unknown.gpu, unknown.vram_gb, unknown.gpu_model) == (None, None, None)
    assert gpu_slots(node(), MACHINE) == 0
    declared = node(capabilities={"gpu": True, "vram_gb": 8})
    found = describe(declared, RUNTIME, MACHINE, disk=tmp_path, models=None)
    assert (found.gpu, found.vram_gb) == (True, 8) and gpu_slots(declared, MACHINE) == 1


def test_only_roles_whose_model_is_there_are_offered(tmp_path: Path) -> None:
    config = node(llm_models={"a": "one", "b": "two:7b"}, capabilities={"llm": ["a", "b", "c"]})
    found = describe(config, RUNTIME, MACHINE, disk=tmp_path, models=["one:latest"])
    assert (found.llm, found.runners) == (["a"], ["cli", "python", "llm"])


@pytest.mark.parametrize(
    ("max_vram_gb", "model"),
    [(14, "deepseek-coder:6.7b"), (19.9, "deepseek-coder:6.7b"), (20, "deepseek-coder:33b")],
)
def test_the_default_models_are_there_and_fit_into_the_memory_that_is_lent(
    tmp_path: Path, max_vram_gb: float, model: str
) -> None:
    """Contract: A11."""
    config = node(capabilities={"llm": ["python-specialist", "code-refactor"]})
    safety = RUNTIME.safety.model_copy(update={"max_vram_gb": max_vram_gb})
    runtime = RUNTIME.model_copy(update={"safety": safety})
    present = ["deepseek-coder:33b", "deepseek-coder:6.7b"]
    assert roles_of(config, max_vram_gb, present)["python-specialist"] == model
    assert roles_of(config, max_vram_gb, present[1:])["python-specialist"] == present[1]
    found = describe(config, runtime, MACHINE, disk=tmp_path, models=present[1:])
    assert found.llm == ["python-specialist", "code-refactor"]


class Ollama(BaseHTTPRequestHandler):
    """As much of Ollama as the runner talks to."""

    def log_message(self, *_: Any) -> None: ...

    def _send(self, status: int, *lines: dict[str, Any]) -> None:
        self.send_response(status)
        self.end_headers()
        for line in lines:
            self.wfile.write(json.dumps(line).encode() + b"\n")

    def do_GET(self) -> None:
        self._send(200, {"models": [{"name": "tiny:latest"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["model"] != "tiny":
            return self._send(404, {"error": "model not found"})
        if body["prompt"] == "hang":
            self.server.hung.set()  # type: ignore[attr-defined]
            self.server.free.wait(20)  # type: ignore[attr-defined]
            return None
        words = [{"response": word} for word in ("Hello", ", ", body.get("system", "you"))]
        count = {"response": "", "done": True, "eval_count": body["options"].get("num_predict", 3)}
        return self._send(200, *words, count)


@pytest.fixture
def ollama() -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), Ollama)
    server.hung, server.free = threading.Event(), threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.free.set()  # type: ignore[attr-defined]
    server.shutdown()
    thread.join()
    server.server_close()


def url_of(server: HTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}"


MakeRig = Callable[..., Rig]
ROLES = {"greeter": "tiny", "lost": "gone"}


@pytest.mark.parametrize(
    ("params", "code", "words"),
    [
        ({"role": "nobody"}, "E_INVALID", "choose from greeter, lost"),
        ({"role": "lost"}, "E_INVALID", "here are: tiny:latest"),
        ({}, "E_INVALID", "either a role or a model"),
        ({"model": "big-cloud"}, "E_INVALID", "no local model"),
        ({"role": "greeter", "temperature": 1}, "E_INVALID", "temperature"),
    ],
)
def test_an_llm_task_that_cannot_be_says_why(
    make_rig: MakeRig, ollama: HTTPServer, params: dict[str, Any], code: str, words: str
) -> None:
    rig = make_rig(ollama_url=url_of(ollama), llm_models=ROLES)
    result, _ = rig.run("llm", params={"prompt": "hi", **params})
    assert result.error is not None and result.error.code == code and words in result.error.message


def test_an_llm_task_streams_an_answer(make_rig: MakeRig, ollama: HTTPServer) -> None:
    rig = make_rig(ollama_url=url_of(ollama), llm_models=ROLES)
    result, _ = rig.run(
        "llm", params={"prompt": "hi", "system": "RAE", "role": "greeter", "max_tokens": 7}
    )
    assert result.result == {"model": "tiny", "response": "Hello, RAE", "eval_count": 7}
    assert rig.control.of("register")[0].capabilities.llm == ["greeter"]


def test_an_llm_task_ends_at_its_time_limit(make_rig: MakeRig, ollama: HTTPServer) -> None:
    rig = make_rig(ollama_url=url_of(ollama), llm_models=ROLES)
    result, _ = rig.run("llm", params={"prompt": "hang", "role": "greeter"}, timeout_s=0.5)
    assert result.error is not None and result.error.code == "E_TIMEOUT"


def test_without_ollama_an_llm_task_goes_back(make_rig: MakeRig) -> None:
    rig = make_rig(ollama_url="http://127.0.0.1:9", llm_models=ROLES)
    rig.control.give("llm", params={"prompt": "hi", "role": "greeter"})
    found = until(lambda: rig.control.of("yield"), "the hand-back")[0]
    assert found[1] == "infrastructure" and "does not answer" in found[2]


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("5", 5)])
def test_durations_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("argv", [["pause", "soon"], ["pause", "-1m"], ["fly"], []])
def test_wrong_usage_exits_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(argv)
    assert left.value.code == 2


def test_a_failure_is_one_sentence_with_a_hint_and_exit_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--root", str(tmp_path)]) == 1
    assert main(["run", "--dev", "--data", str(tmp_path)]) == 1
    assert main(["run", "--root", str(tmp_path)]) == 1
    assert main(["check-config", str(tmp_path / "none.yaml")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4 and all(line.startswith("rae-node: ") for line in lines)
    assert "rae-control serve --dev" in lines[1]


def test_the_module_runs_like_the_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rae_node", "probe"], capture_output=True, check=True, timeout=30
    )
    assert json.loads(done.stdout)["runners"][:2] == ["cli", "python"]


def test_the_log_never_shows_a_secret(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream:
        log = EventLog("n1", stream)
        log.info("x", task_id="t", node_token="abc", other=1)
        log.flush()
    line = json.loads((tmp_path / "log").read_text())
    assert line["attrs"] == {"node_token": "(hidden)", "other": 1}
    assert (line["event"], line["task_id"], line["node_id"]) == ("x", "t", "n1")


def test_a_message_that_cannot_be_delivered_does_not_hold_up_the_others(
    layout: Layout, quiet_log: EventLog
) -> None:
    spool = Spool(layout.spool, quiet_log)
    for number in (1, 2):
        spool.put("yield", lease(number), {"reason": "owner"})
    first = spool.take()
    assert first is not None and first.lease == lease(1)
    spool.give_back(first)
    second = spool.take()
    assert second is not None and second.lease == lease(2)


def test_a_message_that_does_not_fit_on_the_disk_leaves_nothing_half_written(
    layout: Layout, quiet_log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(layout.spool, quiet_log)
    (spool.staging(lease()) / "0").write_bytes(b"artifact")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rae_node.session.spool.write_file", full)
    with pytest.raises(OSError, match="No space"):
        spool.put("result", lease(), {})
    assert list(layout.spool.iterdir()) == [] and len(spool) == 0


def test_a_reader_that_leaves_is_no_error() -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f'"{sys.executable}" -m rae_node probe | true'],
        capture_output=True, check=False, timeout=30,
    )  # fmt: skip
    assert done.stderr == b""


def test_a_guard_that_breaks_stops_the_work_and_looks_again(make_rig: MakeRig) -> None:
    rig = make_rig()
    guard = rig.agent.guard
    deadlines = guard._deadlines

    def broken() -> float:
        raise RuntimeError

    guard._deadlines = guard._stop_all = broken  # type: ignore[assignment]
    guard.look_now(0.0, 5)
    assert not guard.decision.safe
    guard._deadlines = deadlines
    guard.look_now(0.0, 5)
    assert guard.decision.safe


def test_a_result_that_waits_is_never_replaced_by_a_yield(
    layout: Layout, quiet_log: EventLog
) -> None:
    spool = Spool(layout.spool, quiet_log)
    lease = LeaseRef(task_id="t", attempt=1, lease_id="0123456789abcdef")
    spool.put("yield", lease, {"reason": "owner"})
    spool.put("result", lease, {**lease.model_dump(), "status": "succeeded"})
    spool.put("yield", lease, {"reason": "deadline"})
    entry = spool.take()
    assert entry is not None and entry.kind == "result"
    assert entry.result().status == "succeeded"
