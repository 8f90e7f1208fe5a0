"""Control as a service on a booted host: socket, secrets, watchdog, chores; how closed it is."""

from __future__ import annotations

import json
import re
import secrets
from importlib.resources import files
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.lab import Host, Lab
from tests.lab.image import PYTHON
from tests.lab.lab import CHECKOUT
from tests.lab.libraries import libraries
from tests.until import until

UNITS = Path(str(files("rae_control"))) / "data" / "units"
SERVICES = sorted(file.name for file in UNITS.glob("*.service"))
HOME = "/opt/rae-control/releases/test"
TAILNET = "100.64.0.7"
ADMIN = secrets.token_urlsafe(24)
CERTIFICATE, HANDED = "rae-control-certificate.service", "/run/rae-control-certificate"
REDIS = """
[Service]
RuntimeDirectory=redis-rae
ExecStart=/bin/sh -c 'exec "$0" /etc/redis-rae.conf' {server}
"""
REDIS_SETTINGS = """
port 0
unixsocket /run/redis-rae/redis-server.sock
unixsocketperm 777
dir /run/redis-rae
appendonly yes
maxmemory-policy noeviction
user default off ~* &* +@all
user rae on >of-the-vault ~* &* +@all
"""


@pytest.fixture(scope="module")
def host(lab: Lab) -> Host:
    """A host with what the role installs, and a Redis of control's own."""
    (host,) = lab.boot("control")
    for file in UNITS.iterdir():
        target = {
            "sysusers.conf": "/etc/sysusers.d/rae-control.conf",
            "tmpfiles.conf": "/etc/tmpfiles.d/rae-control.conf",
        }.get(file.name, f"/etc/systemd/system/{file.name}")
        host.put(target, file.read_text(encoding="utf-8"))
    host.run(["systemd-sysusers"])
    host.run(["systemd-tmpfiles", "--create", "/etc/tmpfiles.d/rae-control.conf"])
    packages = f"{HOME}/lib/python{PYTHON}/site-packages"
    host.copy(libraries(), packages)
    for name in ("protocol", "control"):
        host.copy(CHECKOUT / "services" / name / "src", packages)
    host.put(f"{HOME}/pyvenv.cfg", "home = /usr/bin\ninclude-system-site-packages = false\n")
    host.run(["mkdir", f"{HOME}/bin"])
    host.run(["ln", "-s", "/usr/bin/python3", f"{HOME}/bin/python"])
    host.run(["ln", "-s", HOME, "/opt/rae-control/current"])
    program = "import sys\nfrom rae_control.cli.rae_control import main\nsys.exit(main())\n"
    host.put(f"{HOME}/bin/rae-control", f"#!/opt/rae-control/current/bin/python\n{program}", 0o755)
    host.put("/etc/rae-control/control.yaml", "backup_dir: /var/backups/rae-control\n")
    tokens = json.dumps({"admin": {"role": "admin", "token": ADMIN}})
    for name, text in (
        ("root.key", secrets.token_hex(32)), ("redis-password", "of-the-vault"),
        ("tokens.json", tokens),
    ):  # fmt: skip
        host.put(f"/etc/rae-control/credentials/{name}", text, 0o400)
    server = host.run(["find", packages, "-name", "valkey-server", "-path", "*x86_64*"]).stdout
    host.put("/etc/systemd/system/redis-server@.service", REDIS.format(server=server.split()[0]))
    host.put("/etc/redis-rae.conf", REDIS_SETTINGS)
    listen = f"[Socket]\nListenStream={TAILNET}:8080\nListenStream=[::1]:8080\n"
    host.put("/etc/systemd/system/rae-control.socket.d/listen.conf", listen)
    host.run(["systemctl", "daemon-reload"])
    host.run(["systemctl", "enable", "--now", "--quiet", "rae-control.socket"])
    # As tailscaled does it: later than the socket.
    host.run(["ip", "address", "add", f"{TAILNET}/32", "dev", "lo"])
    host.run(["systemctl", "enable", "--now", "--quiet", "rae-control", "rae-control-worker",
              "rae-control-backup.timer"])  # fmt: skip
    return host


def show(host: Host, unit: str, name: str) -> str:
    return host.run(["systemctl", "show", "-P", name, unit]).stdout.strip()


def ask(host: Host, path: str, address: str = TAILNET) -> str:
    return host.run(["curl", "-sS", "-m", "20", "-H", f"Authorization: Bearer {ADMIN}",
                     f"http://{address}:8080{path}"], check=False).stdout  # fmt: skip


def test_systemd_has_nothing_against_the_units(host: Host) -> None:
    files = [f"/etc/systemd/system/{file.name}" for file in UNITS.glob("rae*")]
    said = host.run(["systemd-analyze", "verify", *files], check=False)
    assert (said.returncode, said.stdout + said.stderr) == (0, "")


@pytest.mark.parametrize("unit", SERVICES)
def test_the_units_stay_as_closed_as_they_are(host: Host, unit: str) -> None:
    said = host.run(["systemd-analyze", "security", "--no-pager", unit]).stdout
    level = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert level is not None and float(level[1]) <= 2.0, said


def test_control_serves_at_the_tailnets_address_and_shows_no_secret(host: Host) -> None:
    """Contract: A2."""
    assert show(host, "rae-control", "SubState") == "running"
    assert json.loads(ask(host, "/nodes")) == {"nodes": []}
    assert json.loads(ask(host, "/readyz", "[::1]"))["queue"] == "ok"
    main = show(host, "rae-control", "MainPID")
    seen = host.run(["cat", f"/proc/{main}/cmdline", f"/proc/{main}/environ"]).stdout
    assert (
        "rae_control.server.gunicorn_app" in seen
        and ADMIN not in seen
        and "of-the-vault" not in seen
    )
    assert host.run(["find", "/var/lib/rae-control", "-name", "*.key"]).stdout == ""
    mode = host.run(["stat", "-c", "%U %a", "/var/lib/rae-control"]).stdout
    assert mode == "rae-control 700\n"


def test_what_is_killed_comes_back_and_requests_wait_for_it(host: Host) -> None:
    before = show(host, "rae-control", "MainPID")
    host.run(["systemctl", "kill", "--signal=SIGKILL", "rae-control"])
    # No caller is refused: the socket is systemd's.
    assert json.loads(ask(host, "/nodes")) == {"nodes": []}
    assert show(host, "rae-control", "MainPID") != before


def test_a_loop_that_is_blocked_is_ended_by_the_watchdog(host: Host) -> None:
    drop = "/run/systemd/system/rae-control.service.d/watchdog.conf"
    host.put(drop, "[Service]\nWatchdogSec=5\n")
    host.run(["systemctl", "daemon-reload"])
    host.run(["systemctl", "restart", "rae-control"])
    restarts = int(show(host, "rae-control", "NRestarts"))
    worker = host.run(["cat", "/var/lib/rae-control/run/worker.pid"]).stdout
    host.run(["kill", "-STOP", worker])
    until(lambda: int(show(host, "rae-control", "NRestarts")) > restarts, "it restarts", 60)
    assert json.loads(ask(host, "/nodes")) == {"nodes": []}
    host.run(["rm", drop])
    host.run(["systemctl", "daemon-reload"])


def test_the_timers_backup_is_written_by_the_worker(host: Host) -> None:
    assert "rae-control-backup.service" in host.run(["systemctl", "list-timers", "--all"]).stdout
    host.run(["systemctl", "start", "rae-control-backup"])
    look = ["find", "/var/backups/rae-control", "-name", "*.raebackup", "-printf", "%m %u\n"]
    until(lambda: host.run(look).stdout, "the backup is there", 30)
    assert host.run(look).stdout == "600 rae-control\n"
    until(lambda: "chore_done" in host.unit_log("rae-control-worker"), "it says so")


def test_a_certificate_comes_as_a_credential_and_is_renewed_without_a_restart(
    host: Host, tmp_path: Path
) -> None:
    old, new, folder = Authority(tmp_path / "old"), Authority(tmp_path / "new"), "/etc/rae-control"

    def give(authority: Authority) -> None:
        made = authority.issue(TAILNET).read_text()
        for name in ("tls.crt", "tls.key"):
            host.put(f"{folder}/credentials/{name}", made, 0o400)
        host.put(f"{folder}/ca.pem", authority.file.read_text())
        host.run(["systemctl", "try-restart", CERTIFICATE])

    def asked() -> str:
        return host.run(["curl", "-sS", "-m", "20", "--cacert", f"{folder}/ca.pem",
                         f"https://{TAILNET}:8443/readyz"], check=False).stdout  # fmt: skip

    give(old)
    files = "".join(f"tls_{word}_file: {HANDED}/tls.{end}\n"
                    for word, end in (("cert", "crt"), ("key", "key")))  # fmt: skip
    host.put(f"{folder}/control.yaml", f"backup_dir: /var/backups/rae-control\n{files}")
    wants = f"[Unit]\nWants={CERTIFICATE}\nAfter={CERTIFICATE}\n"
    host.put("/etc/systemd/system/rae-control.service.d/tls.conf", wants)
    listen = f"[Socket]\nListenStream={TAILNET}:8443\n"
    host.put("/etc/systemd/system/rae-control.socket.d/tls.conf", listen)
    host.run(["systemctl", "daemon-reload"])
    host.run(["systemctl", "stop", "rae-control"])
    host.run(["systemctl", "restart", "rae-control.socket"])
    host.run(["systemctl", "start", "rae-control"])
    assert json.loads(asked())["queue"] == "ok"
    assert host.run(["stat", "-c", "%U %a", f"{HANDED}/tls.key"]).stdout == "rae-control 400\n"
    before = show(host, "rae-control", "MainPID")
    give(new)
    until(asked, "the new certificate is shown")
    assert show(host, "rae-control", "MainPID") == before
    assert json.loads(ask(host, "/nodes")) == {"nodes": []}


def test_a_stop_is_quick_and_clean(host: Host) -> None:
    host.run(["systemctl", "stop", "rae-control"], timeout_s=20)
    assert show(host, "rae-control", "Result") == "success"
    assert '"event":"control_stopped"' in host.unit_log("rae-control").replace(" ", "")
    host.run(["systemctl", "start", "rae-control"])
