"""`rae-node doctor` on a node's real folders, files, control and agent."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from rae_node.cli import main
from rae_node.config import files
from rae_node.config.files import NodeConfig
from rae_node.config.layout import Layout
from rae_node.diagnostics import rules
from rae_node.diagnostics.doctor import Eyes, examine
from rae_node.diagnostics.findings import Finding, as_json, healthy, rendered
from rae_node.errors import NodeError
from rae_node.runners.llm import port_problem
from rae_protocol.errors import TABLE, RemoteError, Unreachable
from tests.certificates import Authority, tls_front
from tests.integration.node.harness import FakeControl, MakeRig
from tests.until import until


def fails(finding: Finding, *words: str) -> None:
    """It fails, says these words, and tells how to fix it."""
    assert finding.state == "FAIL", finding
    assert finding.what and finding.fix
    assert all(word in f"{finding.what} {finding.fix}" for word in words), finding


@pytest.fixture
def eyes() -> Eyes:
    """All is well beyond the folders."""
    return Eyes(
        text=lambda _: None, resolve=lambda host: [host], healthz=lambda _: 0.5,
        gpus=lambda _: None, gpus_on_bus=lambda: 0, models=lambda *_: None,
        free_mb=lambda _: 5000.0, unit=lambda: "enabled",
    )  # fmt: skip


@pytest.fixture
def home(layout: Layout) -> Layout:
    """A node that is set up."""
    body = files.dev_config("n1", "http://127.0.0.1:8080")
    layout.config_file.write_text(yaml.safe_dump({**body, "guard_sources": ["load"]}))
    layout.runtime_file.write_text(yaml.safe_dump(files.dev_runtime()))
    secret = layout.agent / "enrolment.json"
    secret.write_text(json.dumps({"enrolment_secret": "hush", "control_public_keys": ["k"]}))
    secret.chmod(0o600)
    return layout


def see(layout: Layout, eyes: Eyes, name: str) -> Finding:
    return next(one for one in examine(layout, dev=False, eyes=eyes) if one.name == name)


def test_a_node_that_is_set_up_passes_and_its_secret_is_not_shown(home: Layout, eyes: Eyes) -> None:
    found = list(examine(home, dev=False, eyes=eyes))
    assert healthy(found), rendered(found)
    assert rendered(found).endswith("Nothing failed.")
    assert as_json(found)["ok"] is True
    assert "hush" not in rendered(found) + json.dumps(as_json(found))


def test_the_input_detector_of_a_node_that_is_not_lent_may_wait_and_a_lent_ones_may_not(
    home: Layout, eyes: Eyes
) -> None:
    body = yaml.safe_load(home.config_file.read_text())
    body |= {"guard_sources": ["input"], "input_socket": str(home.run / "nothing.sock")}
    home.config_file.write_text(yaml.safe_dump(body))
    assert see(home, eyes, "guard input").state == "note"
    (home.agent / "enabled").touch()
    fails(see(home, eyes, "guard input"), "systemctl start rae-input")


def test_wrong_files_are_named_with_field_and_line(home: Layout, eyes: Eyes) -> None:
    home.runtime_file.write_text(home.runtime_file.read_text().replace("90", "ninety"))
    line = home.runtime_file.read_text().splitlines().index("  max_gpu_percent: ninety") + 1
    fails(see(home, eyes, "config"), f"{home.runtime_file}:{line}: safety.max_gpu_percent")


def test_unequal_heartbeats_are_named_with_both_files(home: Layout, eyes: Eyes) -> None:
    """Contract: B1."""
    text = home.config_file.read_text()
    home.config_file.write_text(text.replace("_sec: 30", "_sec: 15"))
    fails(see(home, eyes, "config"), str(home.config_file), str(home.runtime_file), "equal")


def test_real_folders_files_and_entries_are_looked_at(home: Layout, eyes: Eyes) -> None:
    home.spool.chmod(0o755)
    fails(see(home, eyes, "folder spool"), f"chmod 700 {home.spool}")
    (home.agent / "enrolment.json").chmod(0o644)
    fails(see(home, eyes, "enrolment"), "chmod 600")
    (home.agent / "enrolment.json").unlink()
    fails(see(home, eyes, "enrolment"), "missing")
    (home.agent / "allowlist.d").mkdir()
    (home.agent / "allowlist.d" / "mine.yaml").write_text("- {name: x}")
    fails(see(home, eyes, "allow-list"), "mine.yaml", "entry 1")
    home.logs.rmdir()
    fails(see(home, eyes, "folder logs"), "install -d")


def test_task_paths_that_others_can_write_are_named(home: Layout, eyes: Eyes) -> None:
    tasks = home.root / "tasks"
    tasks.mkdir()
    (tasks / "mine.py").write_text("")
    (tasks / "mine.py").chmod(0o666)
    body = yaml.safe_load(home.config_file.read_text())
    paths = [str(tasks), "/nowhere"]
    home.config_file.write_text(yaml.safe_dump({**body, "task_paths": paths}))
    fails(see(home, eyes, "task paths"), "mine.py", "/nowhere")


def test_programs_and_task_files_that_cannot_be_used_are_named(home: Layout, eyes: Eyes) -> None:
    """Contract: C5."""
    program, tasks = home.root / "tool", home.root / "tasks"
    program.write_text("")
    program.chmod(0o777)
    tasks.mkdir()
    (tasks / "mine.py").write_text("x = 1\ndef run(:\n")
    (home.agent / "allowlist.d").mkdir()
    (home.agent / "allowlist.d" / "mine.yaml").write_text(f"- path: {program}\n- path: /no/tool2")
    body = yaml.safe_load(home.config_file.read_text())
    home.config_file.write_text(yaml.safe_dump({**body, "task_paths": [str(tasks)]}))
    fails(see(home, eyes, "programs"), str(program), "can be written by others", "chmod go-w")
    fails(see(home, eyes, "task paths"), "mine.py, line 2")
    missing = next(one for one in examine(home, dev=False, eyes=eyes) if "tool2" in one.what)
    assert missing.state == "note"


def unresolved(_: str) -> list[str]:
    raise OSError("no such name")


def silent(_: NodeConfig) -> float:
    raise Unreachable("http://c did not answer (ConnectionError)")


def other(_: NodeConfig) -> float:
    raise Unreachable("http://c answered 404 (text/html): this is not control's answer")


@pytest.mark.parametrize(
    ("look", "name", "words"),
    [
        ({"resolve": unresolved}, "control address", ("has no address",)),
        ({"resolve": lambda _: ["8.8.8.8"]}, "control address", ("8.8.8.8", "Tailscale")),
        ({"healthz": silent}, "control", ("did not answer", "tailscale status")),
        ({"healthz": other}, "control", ("404",)),
        ({"healthz": lambda _: 90.0}, "clock", ("+90 s",)),
    ],
)
def test_the_way_to_control_is_walked(
    home: Layout, eyes: Eyes, look: dict[str, Callable[..., Any]], name: str, words: tuple[str]
) -> None:
    fails(see(home, replace(eyes, **look), name), *words)  # type: ignore[arg-type]


def test_a_control_that_does_not_answer_at_once_is_called_again(home: Layout, eyes: Eyes) -> None:
    calls = []

    class Booting(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            calls.append(self.path)
            self.close_connection = True
            if len(calls) > 1:  # the first call is hung up on
                self.send_response(200)
                self.send_header("Content-Length", "15")
                self.end_headers()
                self.wfile.write(b'{"status":"ok"}')

    with ThreadingHTTPServer(("127.0.0.1", 0), Booting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        body = yaml.safe_load(home.config_file.read_text())
        body["rae_endpoint"] = f"http://127.0.0.1:{server.server_port}"
        home.config_file.write_text(yaml.safe_dump(body))
        asking = replace(eyes, healthz=Eyes().healthz)
        assert see(home, asking, "control").state == "ok"
        server.shutdown()
    assert calls == ["/healthz"] * 2


def test_the_doctor_names_the_certificate_problem_and_trusts_the_ca_of_the_configuration(
    home: Layout, eyes: Eyes, tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "ca")
    asking = replace(eyes, healthz=Eyes().healthz)

    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "15")
            self.end_headers()
            self.wfile.write(b'{"status":"ok"}')

    with (
        ThreadingHTTPServer(("127.0.0.1", 0), Healthy) as server,
        tls_front(authority.issue(), server.server_port) as front,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        body = {**yaml.safe_load(home.config_file.read_text()), "rae_endpoint": front.url}
        home.config_file.write_text(yaml.safe_dump(body))
        fails(see(home, asking, "control"), "CA that is not trusted", "`ca_file` in config.yaml")
        home.config_file.write_text(yaml.safe_dump({**body, "ca_file": str(authority.file)}))
        assert see(home, asking, "control").state == "ok"
        server.shutdown()


def test_a_stranger_on_the_model_runners_port_is_named(home: Layout, eyes: Eyes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        body = {**yaml.safe_load(home.config_file.read_text()), "ollama_url": url}
        home.config_file.write_text(yaml.safe_dump(body))
        theirs = replace(eyes, port_problem=lambda url, _: port_problem(url, {os.getuid() + 1}))
        found = see(home, theirs, "ollama")
    fails(found, f"port {port} is held by a program of uid {os.getuid()}", "ss -ltnp")


def test_a_machine_without_systemd_fails_where_it_is_installed_only(
    home: Layout, eyes: Eyes
) -> None:
    def absent() -> str:
        raise NodeError("blind", "systemctl cannot be asked")

    blind = replace(eyes, unit=absent)
    fails(see(home, blind, "unit"), "systemctl")
    assert healthy(list(examine(home, dev=True, eyes=blind)))


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ("3h 5min\n\n3h 5min\n", "ok"),
        ("infinity\n\n1d 2h", "ok"),
        ("3h 5min\n\n3h\n", "FAIL"),
        ("2h 59min 59.500s\n\ninfinity", "FAIL"),
        ("nothing", "note"),
    ],
)
def test_tasks_units_that_end_before_task_timeout_minutes_fail(
    home: Layout, eyes: Eyes, said: str, state: str
) -> None:
    units = replace(eyes, isolation=lambda *_: ("unit", ""), task_limits=lambda: said)
    found = see(home, units, "task limit")
    assert found.state == state
    if state == "FAIL":
        fails(found, "RuntimeMaxSec=11100")
    names = {one.name for one in examine(home, dev=False, eyes=eyes)}
    assert "task limit" not in names  # only units have one


def test_the_doctor_names_what_a_user_who_is_neither_root_nor_the_agent_cannot_see(
    home: Layout, eyes: Eyes
) -> None:
    found = see(home, replace(eyes, uid=64321), "enrolment")
    assert (found.state, "ask as root" in found.what) == ("note", True)


def test_a_lock_without_an_answer_fails_and_an_agent_that_answers_does_not(
    home: Layout, eyes: Eyes, make_rig: MakeRig
) -> None:
    with (home.run / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fails(see(home, eyes, "agent"), "No agent answers")
        make_rig()
        assert see(home, eyes, "agent") == rules.agent(True, "")
        until(lambda: see(home, eyes, "session").state == "ok", "it is registered")
        assert see(home, eyes, "files in force").state == "ok"


@pytest.mark.parametrize("rc", ["node_revoked", "not_enrolled", "wrong_peer"])
def test_a_node_that_control_does_not_take_fails(
    home: Layout, eyes: Eyes, make_rig: MakeRig, rc: str
) -> None:
    control = FakeControl()
    status, words = TABLE[rc]
    control.fail["register"] = RemoteError(rc, f"n1 was turned away. {words}", status, {})
    with (home.run / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        make_rig(control)
        until(lambda: see(home, eyes, "session").state == "FAIL", "control has refused")
        fails(see(home, eyes, "session"), rc, "n1 was turned away", words.rstrip("."))
        assert not healthy(list(examine(home, dev=True, eyes=eyes)))


def test_a_control_that_is_away_fails_once_and_not_as_a_session(
    home: Layout, eyes: Eyes, make_rig: MakeRig
) -> None:
    control = FakeControl()
    control.fail["register"] = Unreachable("http://c did not answer")
    with (home.run / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        make_rig(control)
        until(lambda: "unreachable" in see(home, eyes, "session").what, "it is away")
        assert see(home, eyes, "session").state == "note"


def test_a_list_that_the_agent_does_not_go_by_fails(
    home: Layout, eyes: Eyes, make_rig: MakeRig
) -> None:
    lists = home.agent / "allowlist.d"
    lists.mkdir(exist_ok=True)
    with (home.run / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rig = make_rig()
        (lists / "own.yaml").write_text("- path: 5\n")
        rig.agent.look_at_files()
        fails(see(home, eyes, "files in force"), "own.yaml", "older files")
        (lists / "own.yaml").unlink()
        rig.agent.look_at_files()
        assert see(home, eyes, "files in force").state == "ok"


def test_the_program_ends_with_1_when_something_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--root", str(tmp_path)]) == 1
    assert "fix: install -d" in capsys.readouterr().out
    assert main(["doctor", "--json", "--root", str(tmp_path)]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False
