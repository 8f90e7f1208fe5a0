"""The escape suite at level `unit`: tasks in the units that Ansible installed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.site import Site
from tests.lab import Host
from tests.lab.image import PYTHON
from tests.lab.lab import CHECKOUT
from tests.lab.libraries import libraries

HOME = "/opt/rae-test"
DATA = f"{HOME}/mesh"
# Not PYTHONPATH: some of our programs run isolated from their environment.
PATHS = [f"{HOME}/libs", f"{HOME}/src"]
PATHS += [f"{HOME}/src/services/{name}/src" for name in ("protocol", "control", "node")]
ENVIRONMENT = {
    "PATH": f"{HOME}/libs/bin:/usr/bin:/bin",
    "PYTHONDONTWRITEBYTECODE": "1", "RAE_ESCAPE_LEVEL": "unit", "RAE_ESCAPE_DATA": DATA,
    "RAE_ESCAPE_AS": "setpriv --reuid=rae-node --regid=rae-node --groups=rae-node,rae-task",
}  # fmt: skip


@pytest.fixture(scope="module")
def unit_host(site: Site) -> Iterator[Host]:
    """A node whose own agent is away; its units' tasks may write to the test's workspaces, too."""
    host = site.lab.hosts["node2"]
    host.run(["systemctl", "stop", "rae-node"])
    path = f"/usr/local/lib/python{PYTHON}/dist-packages/rae.pth"
    drop = "/etc/systemd/system/rae-task@.service.d/test.conf"
    host.put(path, "\n".join([*PATHS, ""]))
    host.copy(libraries(), f"{HOME}/libs")
    for name in ("services", "tools", "tests"):
        host.copy(CHECKOUT / name, f"{HOME}/src/{name}")
    host.put(f"{HOME}/src/pyproject.toml", (CHECKOUT / "pyproject.toml").read_text())
    host.run(["chmod", "-R", "go-w", HOME])
    workdir = f"{DATA}/nodes/n1/workdir"
    for folder in (DATA, f"{DATA}/nodes", f"{DATA}/nodes/n1"):
        host.run(["install", "-d", "-o", "rae-node", "-g", "rae-node", folder])
    host.run(["install", "-d", "-o", "rae-node", "-g", "rae-task", "-m", "2770", workdir])
    host.put(drop, f"[Service]\nReadWritePaths={workdir}\n")
    host.run(["systemctl", "daemon-reload"])
    yield host
    host.run(["rm", "--recursive", path, drop, HOME])
    host.run(["systemctl", "daemon-reload"])
    host.run(["systemctl", "start", "rae-node"])


def escape(host: Host, *words: str) -> str:
    """Run part of the escape suite there; what it says."""
    variables = [f"{name}={value}" for name, value in ENVIRONMENT.items()]
    command = ["python3", "-m", "pytest", "-q", "--tb=short", "--maxfail=3"]
    command += ["-p", "no:cacheprovider", "--rootdir", HOME]
    done = host.run(
        ["env", "-C", f"{HOME}/src", *variables, *command, *words], timeout_s=600, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


def test_no_attempt_gets_out_of_a_unit(unit_host: Host) -> None:
    print(escape(unit_host, "tests/escape/test_escape.py"))


def test_every_error_code_is_reached_by_a_real_task_in_a_unit(unit_host: Host) -> None:
    print(escape(unit_host, "tests/escape/test_codes.py"))


def test_whoever_is_killed_nothing_of_a_unit_survives(unit_host: Host) -> None:
    print(escape(unit_host, "tests/escape/test_kills.py", "-k", "not cannot_make_a_box"))
