"""`rae-control serve` as its unit runs it: passed sockets, secrets from files, words to systemd."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis
import requests

from rae_control.maintenance.backup import check_folder
from rae_protocol import signing
from tests.certificates import Authority
from tests.integration.control.harness import Server
from tests.until import until

# What systemd does before it starts a service: LISTEN_PID is the program's own.
_PASS = """
import os, sys
for number, fd in enumerate(map(int, sys.argv[1].split(",")), start=3):
    os.dup2(fd, number)
os.environ["LISTEN_PID"], os.environ["LISTEN_FDS"] = str(os.getpid()), sys.argv[2]
os.execv(sys.argv[3], sys.argv[3:])
"""
PASSWORD = "of-the-vault"


@dataclass
class Service:
    """What a unit, a vault and a Redis with its users are to `rae-control serve`."""

    folder: Path
    redis: Server
    listeners: list[socket.socket] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None
    tokens: dict[str, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.data, self.credentials = self.folder / "data", self.folder / "credentials"
        self.credentials.mkdir()
        self.key = secrets.token_hex(32)
        self.secret("root.key", self.key)
        self.secret("redis-password", PASSWORD + "\n")
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.bind(str(self.folder / "notify"))
        self.manager.settimeout(20)

    def secret(self, name: str, text: str) -> None:
        path = self.credentials / name
        path.write_text(text)
        path.chmod(0o600)

    def token(self, name: str, role: str) -> str:
        made = f"rae_{secrets.token_urlsafe(32)}"
        self.tokens[name] = {"role": role, "token": made}
        self.secret("tokens.json", json.dumps(self.tokens))
        return made

    def start(
        self, *words: str, listen: str = "127.0.0.1", env: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        url = f"unix://{self.redis.folder / 'redis.sock'}?username=rae"
        command = [sys.executable, "-m", "rae_control.cli.rae_control", "serve",
                   "--data", str(self.data), "--redis", url, *words]  # fmt: skip
        fds: list[int] = []
        if env is None:
            for host in listen.split(",") if not self.listeners else ():
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                self.listeners.append(socket.create_server((host, 0), family=family))
            # Numbers above those that they get there, so that none is written over too early.
            fds = [fcntl.fcntl(sock, fcntl.F_DUPFD, 100) for sock in self.listeners]
            numbers = ",".join(map(str, fds))
            command = [sys.executable, "-c", _PASS, numbers, str(len(fds)), *command]
        given = {"CREDENTIALS_DIRECTORY": str(self.credentials),
                 "NOTIFY_SOCKET": str(self.folder / "notify")}  # fmt: skip
        with (self.folder / "stderr").open("w") as stderr:
            self.process = subprocess.Popen(
                command, stderr=stderr, pass_fds=fds, env={**os.environ, **given, **(env or {})}
            )
        for fd in fds:
            os.close(fd)
        return self.process

    def expect(self, word: str) -> None:
        """Wait until control has sent this to systemd."""
        while word not in self.manager.recv(1000).decode().splitlines():
            pass

    @property
    def url(self) -> str:
        host, port = self.listeners[0].getsockname()[:2]
        return f"http://{host}:{port}"

    def get(self, path: str, token: str, **more: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {token}"}
        return requests.get(self.url + path, headers=headers, timeout=20, **more)

    def post(self, path: str, token: str, body: object) -> requests.Response:
        headers = {"Authorization": f"Bearer {token}"}
        return requests.post(self.url + path, json=body, headers=headers, timeout=20)

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(10)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for sock in (*self.listeners, self.manager):
            sock.close()
        self.redis.stop()


@pytest.fixture
def service() -> Iterator[Service]:
    # Not tmp_path, whose name is too long for a unix socket.
    with tempfile.TemporaryDirectory(prefix="rae-test-") as folder:
        server = Server(Path(folder) / "redis")
        server.folder.mkdir()
        server.start()
        client = redis.Redis.from_url(server.url)
        client.execute_command("ACL", "SETUSER", "rae", "on", f">{PASSWORD}", "~*", "&*", "+@all")
        client.execute_command("ACL", "SETUSER", "default", "off")
        client.close()
        made = Service(Path(folder), server)
        yield made
        made.close()


def refusal(service: Service, *words: str, **more: Any) -> str:
    process = service.start(*words, **more)
    code, said = process.wait(20), (service.folder / "stderr").read_text()
    assert code == 2, said
    return said


def test_control_serves_on_passed_sockets_and_notifies_systemd_when_it_does(
    service: Service,
) -> None:
    """Contract: A2."""
    admin = service.token("admin", "admin")
    process = service.start(listen="127.0.0.1,::1")
    service.expect("READY=1")
    for sock in service.listeners:
        port = sock.getsockname()[1]
        host = "[::1]" if sock.family == socket.AF_INET6 else "127.0.0.1"
        assert requests.get(f"http://{host}:{port}/readyz", timeout=5).status_code == 200
    assert service.get("/nodes", admin).status_code == 200
    service.expect("WATCHDOG=1")
    # The process that systemd started is the arbiter, and nothing secret is to be seen of it.
    seen = b"".join(Path(f"/proc/{process.pid}/{name}").read_bytes()
                    for name in ("cmdline", "environ"))  # fmt: skip
    assert b"rae_control.server.gunicorn_app" in seen
    assert not any(word.encode() in seen for word in (service.key, PASSWORD, admin))
    text = service.redis.folder / "redis.sock"
    client = redis.Redis(unix_socket_path=str(text), username="rae", password=PASSWORD)
    until(lambda: client.exists("rq:queues"), "the queue is Redis's")
    client.close()


def test_a_blocked_event_loop_misses_the_watchdog(service: Service) -> None:
    service.start()
    service.expect("WATCHDOG=1")
    worker = int((service.data / "run" / "worker.pid").read_text())
    os.kill(worker, signal.SIGSTOP)
    service.manager.settimeout(3)
    with pytest.raises(TimeoutError):
        while True:
            service.expect("WATCHDOG=1")
    os.kill(worker, signal.SIGCONT)
    service.expect("WATCHDOG=1")


def test_sigterm_answers_open_polls_and_ends_soon(service: Service) -> None:
    admin = service.token("admin", "admin")
    service.start()
    service.expect("READY=1")
    secret = service.post("/nodes/enrol", admin, {"node_id": "n1", "kind": "bearer"}).json()
    body = {"node_id": "n1", "capabilities": {}}
    node = service.post("/nodes/register", secret["enrolment_secret"], body).json()["node_token"]
    service.post("/tasks", admin, {"tasks": [{"kind": "x", "task_id": "t1"}]})
    said: list[requests.Response] = []
    waiting = [
        threading.Thread(target=lambda path=path, who=who: said.append(service.get(path, who)))
        for path, who in (("/tasks/poll?wait=25&slots=", node), ("/tasks/t1?wait=25", admin))
    ]
    for thread in waiting:
        thread.start()
    until(lambda: "polls_open 1" in service.get("/metrics", admin).text, "it waits")
    with requests.Session() as at_rest:  # does not hang up by itself
        at_rest.get(service.url + "/healthz", timeout=5)
        assert service.stop() == 0  # which waits 10 s
    assert "control_stopped" in (service.folder / "stderr").read_text()
    service.expect("STOPPING=1")
    for thread in waiting:
        thread.join()
    assert sorted(answer.status_code for answer in said) == [200, 503]
    assert check_folder(service.data, deep=True) == []


def test_a_tailscaled_that_hangs_delays_no_other_caller(service: Service) -> None:
    admin = service.token("admin", "admin")
    tailscaled = socket.socket(socket.AF_UNIX)
    with tailscaled:
        tailscaled.bind(str(service.folder / "tailscaled.sock"))
        tailscaled.listen()
        service.start("--set", f"tailscale_socket={service.folder / 'tailscaled.sock'}")
        service.expect("READY=1")
        secret = service.post("/nodes/enrol", admin, {"node_id": "n1", "kind": "bearer"}).json()
        said: list[requests.Response] = []
        body = {"node_id": "n1", "capabilities": {}}
        asking = threading.Thread(target=lambda: said.append(
            service.post("/nodes/register", secret["enrolment_secret"], body)))  # fmt: skip
        asking.start()
        asked, _ = tailscaled.accept()
        assert service.get("/healthz", admin).status_code == 200
        assert said == []
        asking.join()
        asked.close()
    assert (said[0].status_code, said[0].json()["rc"]) == (503, "whois_unavailable")


def test_exactly_the_tokens_of_the_vault_hold(service: Service) -> None:
    old, rae = service.token("admin", "admin"), service.token("rae", "submit")
    service.start()
    service.expect("READY=1")
    other = service.post("/tokens", old, {"name": "monitor", "role": "read"}).json()["token"]
    service.stop()
    new = service.token("admin", "admin")
    service.tokens["rae"]["role"] = "read"
    service.secret("tokens.json", json.dumps(service.tokens))
    service.start()
    service.expect("READY=1")
    assert service.get("/nodes", old).status_code == 401
    assert [service.get("/nodes", who).status_code for who in (new, other, rae)] == [200] * 3


def test_a_service_names_what_it_lacks_and_the_fix(service: Service) -> None:
    assert "is no address to listen at" in refusal(service, listen="0.0.0.0")
    service.listeners.pop().close()
    env = {"RAE_BIND_ADDRESS": "192.0.2.1"}
    assert "Tailscale's (`tailscale ip -4`)" in refusal(service, env=env)
    (service.credentials / "root.key").rename(service.folder / "root.key")
    assert "put the one from the vault there" in refusal(service, env=env)
    assert not (service.credentials / "root.key").exists()
    shutil.copy(service.folder / "root.key", service.credentials / "root.key")
    service.secret("tokens.json", json.dumps({"a": {"role": "read", "token": "short"}}))
    said = refusal(service, env={"RAE_BIND_ADDRESS": "127.0.0.1", "RAE_PORT": "0"})
    assert "a.token" in said and "short" not in said
    assert "put it into the credential" in refusal(service, "--redis", "unix://u:p@/s", env=env)
    assert "CREDENTIALS_DIRECTORY" in refusal(service, env={**env, "CREDENTIALS_DIRECTORY": ""})


def test_of_passed_sockets_the_one_on_the_tls_port_speaks_tls(service: Service) -> None:
    admin, authority = service.token("admin", "admin"), Authority(service.folder / "ca")
    made = authority.issue().read_text()
    service.secret("tls.crt", made)
    service.secret("tls.key", made)
    files = [f"tls_{word}_file={service.credentials}/tls.{end}"
             for word, end in (("cert", "crt"), ("key", "key"))]  # fmt: skip
    words = [item for file in files for item in ("--set", file)]
    assert "ListenStream=ADDRESS:1" in refusal(service, *words, "--set", "tls_port=1")
    service.listeners.append(socket.create_server(("127.0.0.1", 0)))
    port = service.listeners[1].getsockname()[1]
    words += ["--set", f"tls_port={port}"]
    (service.credentials / "tls.key").chmod(0o604)
    assert "other users can read" in refusal(service, *words)
    (service.credentials / "tls.key").chmod(0o400)
    service.start(*words)
    service.expect("READY=1")
    assert service.get("/nodes", admin).status_code == 200
    secure = f"https://127.0.0.1:{port}/readyz"
    assert requests.get(secure, verify=str(authority.file), timeout=5).status_code == 200


def test_a_backup_without_keys_comes_back_under_the_vaults_key(service: Service) -> None:
    admin = service.token("admin", "admin")
    service.start()
    service.expect("READY=1")
    secret = service.post("/nodes/enrol", admin, {"node_id": "n1"}).json()["enrolment_secret"]
    assert secret == signing.enrolment_secret(bytes.fromhex(service.key), "n1", 1)

    def verb(*words: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "rae_control.cli.rae_control",
            *words,
            "--data",
            str(service.data),
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    archive = str(service.folder / "ledger.raebackup")
    done = verb("backup", archive)
    assert done.returncode == 0 and "The keys are not: your vault has them" in done.stdout
    findings = verb("doctor", "--credentials", str(service.credentials), "--polls", "10")
    assert "FAIL" not in findings.stdout.replace("FAIL redis file", ""), findings.stdout
    service.stop()
    assert "say --no-keys" in verb("restore", archive, "--force").stderr
    done = verb("restore", archive, "--force", "--no-keys")
    assert done.returncode == 0, done.stderr
    service.start()
    service.expect("READY=1")
    assert service.get("/nodes/n1", admin).status_code == 200


def test_a_config_is_checked_without_a_start(tmp_path: Path) -> None:
    file = tmp_path / "control.yaml"

    def check(text: str) -> subprocess.CompletedProcess[str]:
        file.write_text(text)
        command = [sys.executable, "-m", "rae_control.cli.rae_control", "check-config", str(file)]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    assert check("retention_days: 30\n").returncode == 0
    wrong = check("retention_days: 30\nheartbeat_interval_s: soon\n")
    assert wrong.returncode == 1
    assert f"{file}:2: heartbeat_interval_s: must be a decimal number" in wrong.stderr
