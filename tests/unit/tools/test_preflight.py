"""What the Makefile's verbs say to a machine that lacks something, and what root gets installed."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rae_node.diagnostics.rules import NAMESPACE_FILES
from tests.lab import image
from tools import preflight
from tools.preflight import Machine, Need, prepare

CGROUP = Path("/sys/fs/cgroup")
BUBBLEWRAP = "apt-get install -y --no-install-recommends bubblewrap"


@dataclass
class Fake:
    """A machine that lacks programs, and remembers what was said to it and run on it."""

    lacks: Collection[str] = ()
    root: bool = False
    apt: bool = True
    lists: bool = True
    obstacle: str | None = None
    status: int = 0
    brings: bool = True
    said: list[str] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)

    def prepare(self, verb: str) -> int:
        return prepare(verb, Machine(
            self.root, self.apt, self.lists, self._there, lambda _part: self.obstacle, self._run,
            self.said.append,
        ))  # fmt: skip

    def _there(self, need: Need) -> bool:
        return need.what not in self.lacks

    def _run(self, command: Sequence[str]) -> int:
        self.ran.append(" ".join(command))
        if "install" in command and self.brings:
            self.lacks = ()
        return self.status


def test_a_machine_with_everything_gets_no_message() -> None:
    for verb in preflight.VERBS:
        machine = Fake()
        assert (machine.prepare(verb), machine.said, machine.ran) == (0, [], [])


@pytest.mark.parametrize("verb", ["test", "bench"])
def test_a_user_gets_the_one_command_and_nothing_is_run(verb: str) -> None:
    machine = Fake(lacks=["bwrap"])
    assert machine.prepare(verb) == 1
    assert machine.said[0] == f"make {verb} needs what this machine lacks:"
    assert machine.said[1] == "  bwrap (tasks run in its boxes)"
    assert machine.said[-1] == f"  sudo {BUBBLEWRAP}"
    assert machine.ran == []


def test_one_command_brings_all_that_is_missing() -> None:
    machine = Fake(lacks=["bwrap", "cc", "curl"])
    machine.prepare("test")
    assert machine.said[-1].endswith(" bubblewrap curl gcc libc6-dev")


def test_a_user_without_lists_of_packages_is_to_fetch_them_in_the_same_line() -> None:
    machine = Fake(lacks=["bwrap"], lists=False)
    machine.prepare("test")
    assert machine.said[-1] == f"  sudo apt-get update && sudo {BUBBLEWRAP}"


def test_root_gets_what_is_missing_installed_and_reads_what_and_why() -> None:
    machine = Fake(lacks=["bwrap"], root=True)
    assert machine.prepare("test") == 0
    assert machine.ran == ["apt-get update -q", BUBBLEWRAP]
    assert "  bwrap (tasks run in its boxes)" in machine.said
    assert any(BUBBLEWRAP in line for line in machine.said)


def test_an_installation_that_fails_stops_the_verb() -> None:
    machine = Fake(lacks=["bwrap"], root=True, status=100)
    assert machine.prepare("test") == 1
    assert machine.said[-1].startswith("apt-get update -q failed (100)")
    assert machine.ran == ["apt-get update -q"]


def test_what_is_still_missing_after_the_installation_is_named() -> None:
    machine = Fake(lacks=["bwrap"], root=True, brings=False)
    assert machine.prepare("test") == 1
    assert machine.said[-1] == "Still missing after that: bwrap. Put these on the PATH"


@pytest.mark.parametrize("root", [False, True])
def test_a_system_without_apt_reads_the_names(root: bool) -> None:
    machine = Fake(lacks=["bwrap", "curl"], root=root, apt=False)
    assert machine.prepare("test") == 1
    assert "no apt-get" in machine.said[-1]
    assert "bubblewrap curl" in machine.said[-1]
    assert machine.ran == []


def test_the_demo_runs_without_bubblewrap_and_says_what_a_missing_venv_needs() -> None:
    assert Fake(lacks=["bwrap", "cc"]).prepare("demo") == 0
    machine = Fake(lacks=["ensurepip"])
    assert machine.prepare("demo") == 1
    package = "python{}.{}-venv".format(*sys.version_info)
    assert machine.said[-1] == f"  sudo apt-get install -y --no-install-recommends {package}"


def test_a_user_who_wants_booted_hosts_is_sent_to_root() -> None:
    for verb, program in (("test-all", "systemd-nspawn"), ("test-vm", "qemu-img")):
        machine = Fake(lacks=[program])
        assert machine.prepare(verb) == 1
        assert machine.said == [f"make {verb} boots hosts, which only root may: sudo make {verb}"]


def test_only_the_verbs_that_use_virtual_machines_install_qemu() -> None:
    for verb in preflight.VERBS:
        machine = Fake(lacks=["qemu-system-x86_64"], root=True)
        assert machine.prepare(verb) == 0
        installed = any("qemu-system-x86" in line for line in machine.ran)
        assert installed == (verb in {"test-vm", "test-all"}), verb


def test_an_obstacle_that_no_package_removes_stops_the_verb() -> None:
    machine = Fake(obstacle="The kernel forbids it")
    assert machine.prepare("test") == 1
    assert machine.said == ["make test cannot run here. The kernel forbids it"]


@pytest.mark.parametrize("key", preflight.SWITCHES)
def test_a_switch_that_forbids_namespaces_is_named_with_its_command(key: str) -> None:
    closed, opened = preflight.SWITCHES[key]
    said = preflight.namespace_problem("Operation not permitted", {key: closed})
    assert "Operation not permitted" in said
    assert said.endswith(f"sudo sysctl -w {key}={opened}")


def test_where_no_switch_forbids_namespaces_a_container_is_suspected() -> None:
    said = preflight.namespace_problem("no", {"user.max_user_namespaces": "9000"})
    assert "sysctl -w" not in said
    assert "container" in said


def test_the_switches_are_the_ones_that_a_node_s_doctor_knows() -> None:
    doctor = {
        file.removeprefix("/proc/sys/").replace("/", "."): off
        for file, (off, _) in NAMESPACE_FILES.items()
    }
    assert {key: closed for key, (closed, _) in preflight.SWITCHES.items()} == doctor


def test_each_need_says_what_for_and_each_verb_has_its_parts() -> None:
    for needs in preflight.PARTS.values():
        assert all(need.packages and need.why for need in needs)
    assert set(preflight.VERBS["test"]) < set(preflight.VERBS["test-all"])


@pytest.mark.parametrize(
    ("uid", "cgroup", "said"), [(1000, CGROUP, "run it as root"), (0, None, "mount -t cgroup2")]
)
def test_what_keeps_a_machine_from_a_lab_is_named_with_the_way_out(
    uid: int, cgroup: Path | None, said: str
) -> None:
    assert said in str(preflight.lab_problem(uid, cgroup))


def test_preflight_says_how_to_get_tun() -> None:
    assert "modprobe tun" in str(preflight.lab_problem(0, CGROUP, tun=False))


def test_a_machine_that_can_have_a_lab_has_no_problem() -> None:
    assert preflight.lab_problem(0, CGROUP) is None


@pytest.mark.parametrize(
    ("uid", "machine", "said"), [(1000, "x86_64", "run it as root"), (0, "aarch64", "on an x86_64")]
)
def test_what_keeps_a_machine_from_virtual_ones_is_named_with_the_way_out(
    uid: int, machine: str, said: str
) -> None:
    assert said in str(preflight.vm_problem(uid, machine))
    assert preflight.vm_problem(0, "x86_64") is None


def test_go_must_be_new_enough() -> None:
    assert preflight.go_problem("go1.26.6") is None
    assert preflight.go_problem("go1.27") is None
    for said in ("go1.26.5", "go1.9.7", "", None):
        assert "https://go.dev/dl/" in str(preflight.go_problem(said))


def test_each_missing_program_of_the_lab_is_a_package() -> None:
    lacking = preflight.missing(["lab"], lambda need: need.what != "nft")
    assert preflight.packages(lacking) == ["nftables"]


@pytest.mark.parametrize(
    ("line", "where"),
    [
        ("41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw", "/sys/fs/cgroup/unified"),
        ("30 23 0:26 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw", "/sys/fs/cgroup"),
        ("30 23 0:26 /a /somewhere rw - cgroup2 cgroup2 rw", None),
        ("32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu", None),
    ],
)
def test_the_cgroup2_tree_is_found_where_it_is(line: str, where: str | None) -> None:
    assert preflight.unified_cgroup(line) == (Path(where) if where else None)


def test_an_image_is_named_by_its_packages_in_the_folder_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAE_LAB_CACHE", str(tmp_path))
    assert image.path().parent == tmp_path
    assert image.path().name.startswith(f"{image.SUITE}-") and image.path().suffix == ".tar"
