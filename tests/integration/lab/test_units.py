"""Level `unit`: what systemd makes of a connection to /run/rae-task/cpu.sock on a booted host.

The lab's guests have no cgroup v2 controllers and no BPF for devices: memory, pids, weights and
device lists are asserted at the unit's settings; all else is tried from inside.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.integration.lab.harness import CROWD
from tests.integration.lab.node import (
    CPU,
    GPU,
    KILL,
    Task,
    as_user,
    relay,
    settings,
)
from tests.lab import Host
from tests.lab.node_files import UNITS
from tests.until import until

WORKDIR = "/opt/rae-node/workdir"
SERVICES = sorted(file.name for file in UNITS.glob("*.service"))
# Whoever loosens a unit meets this; `systemd-analyze security` names the line.
EXPOSURE = {
    "rae-input.service": 1.5, "rae-node.service": 2.5, "rae-ollama.service": 2.0,
    "rae-ollama-kill@.service": 1.5, "rae-task-kill@.service": 1.5,
}  # fmt: skip
BOX = f"""
def box(*argv):
    made = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--hostname", "task",
            "--ro-bind", "/usr", "/usr", "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64",
            "/lib64", "--symlink", "usr/bin", "/bin", "--dev", "/dev", "--proc", "/proc",
            "--tmpfs", "/tmp", "--bind", {WORKDIR!r}, "/workdir", "--chdir", "/workdir", *argv]
    return made
"""

AGENT = """
import os, signal, socket, sys, time
def end(*_):
    time.sleep(0.5)  # its goodbye
    with open("/opt/rae-node/logs/seen", "w") as seen:
        print(*os.listdir("/sys/fs/cgroup/rae.slice"), sep="\\n", file=seen)
    sys.exit()
signal.signal(signal.SIGTERM, end)
socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
while True:
    signal.pause()
"""


def test_systemd_has_nothing_against_the_units(host: Host) -> None:
    files = [f"/etc/systemd/system/{file.name}" for file in UNITS.glob("rae*")]
    said = host.run(["systemd-analyze", "verify", *files], check=False)
    assert (said.returncode, said.stdout + said.stderr) == (0, "")


@pytest.mark.parametrize("unit", SERVICES)
def test_the_units_stay_as_closed_as_they_are(host: Host, unit: str) -> None:
    said = host.run(["systemd-analyze", "security", "--offline=yes", "--no-pager",
                     f"/etc/systemd/system/{unit}"])  # fmt: skip
    level = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said.stdout)
    assert level is not None and float(level[1]) <= EXPOSURE.get(unit, 3.0), said.stdout


def test_a_gpu_task_has_the_lines_of_a_task_but_for_its_devices() -> None:
    lines = {
        name: {line for line in (UNITS / name).read_text().splitlines() if line[:1] not in "#"}
        for name in ("rae-task@.service", "rae-task-gpu@.service")
    }
    plain, gpu = lines.values()
    assert plain - gpu == {"Description=RAE task (%i)", "PrivateDevices=yes"}
    assert gpu - plain == {
        "Description=RAE task with a GPU (%i)", "DeviceAllow=char-nvidia* rw",
        "Wants=modprobe@nvidia_uvm.service", "After=modprobe@nvidia_uvm.service",
    }  # fmt: skip


@pytest.mark.parametrize("unit", ["rae-task@x.service", "rae-task-gpu@x.service"])
def test_a_tasks_unit_bounds_its_memory_processes_and_time(host: Host, unit: str) -> None:
    """At the settings: the lab has no controllers that would enforce them. Contract: C5."""
    said = settings(host, unit)
    assert "infinity" not in {said["MemoryMax"], said["TasksMax"], said["RuntimeMaxUSec"]}
    assert (said["MemorySwapMax"], said["LimitCORE"], said["DevicePolicy"]) == ("0", "1", "closed")
    agent = settings(host, "rae-node.service")
    for weight in ("CPUWeight", "IOWeight"):
        assert int(agent[weight]) > int(said[weight])
    assert said["Slice"] == agent["Slice"] == "rae.slice"
    assert settings(host, "rae.slice")["MemoryMax"] != "infinity"


@pytest.mark.parametrize(("socket", "unit"), [(CPU, "rae-task@"), (GPU, "rae-task-gpu@")])
def test_a_connection_starts_a_unit_without_privileges_or_network(
    host: Host, socket: str, unit: str
) -> None:
    with Task(host, socket) as task:
        told = task.tell("""
            import os, pwd, socket
            told["user"] = pwd.getpwuid(os.getuid())[0]
            told["groups"] = [os.getgid(), *os.getgroups()] == [os.getgid()] * 2
            status = dict(line.split(":\\t", 1) for line in open("/proc/self/status"))
            told["caps"] = [int(status[f"Cap{kind}"], 16) for kind in ("Eff", "Prm", "Bnd", "Amb")]
            told["no_new_privs"] = status["NoNewPrivs"].strip()
            told["links"] = [name for _, name in socket.if_nameindex()]
            told["processes"] = sum(name.isdigit() for name in os.listdir("/proc"))
            for family in (socket.AF_INET, socket.AF_INET6, socket.AF_PACKET):
                try:
                    socket.socket(family, socket.SOCK_RAW)
                    told["raw"] = family
                except OSError:
                    pass
            """)  # fmt: skip
        assert task.unit.startswith(unit) and task.cgroup.parent.name == "rae.slice"
        del told["cgroup"]
        assert told == {
            "user": "rae-task", "groups": True, "caps": [0, 0, 0, 0], "no_new_privs": "1",
            "links": ["lo"], "processes": 1,
        }  # fmt: skip
    task.wait_gone()


def test_a_task_may_write_to_the_workspaces_and_nowhere_else(host: Host) -> None:
    with Task(host) as task:
        told = task.tell("""
            import os, stat
            told["writable"] = []
            for folder, folders, files in os.walk("/"):
                folders[:] = [name for name in folders if (folder, name) != ("/", "proc")]
                for path in [folder, *(f"{folder}/{name}" for name in files)]:
                    kind = os.lstat(path).st_mode
                    if stat.S_ISLNK(kind) or stat.S_ISCHR(kind) or not os.access(path, os.W_OK):
                        continue
                    told["writable"].append(path.replace("//", "/"))
            open("/opt/rae-node/workdir/here", "w").close()
            os.unlink("/opt/rae-node/workdir/here")
            told["seen"] = {name: os.listdir(name) for name in ("/tmp", "/var", "/dev/shm")}
            """)
        own = f"/sys/fs/cgroup{told['cgroup']}"
        # What systemd delegates: later ones the pressure, too.
        elsewhere = [
            path
            for path in told["writable"]
            if path.partition("/cgroup.")[0].removesuffix("/memory.pressure") != own
        ]
        # The queue of messages is of the unit's own IPC namespace.
        assert sorted(elsewhere) == ["/dev/mqueue", WORKDIR]
        assert told["seen"] == {"/tmp": [], "/var": [], "/dev/shm": []}


def test_bubblewrap_boxes_a_task_inside_the_unit(host: Host) -> None:
    with Task(host) as task:
        told = task.tell(f"""
            import os, subprocess, textwrap
            {BOX.strip().replace(chr(10), chr(10) + " " * 12)}
            look = '''
            import os, socket
            open("/workdir/made", "w").write("by the task")
            print(sorted(os.listdir("/")), [pid for pid in os.listdir("/proc") if pid.isdigit()],
                  [name for _, name in socket.if_nameindex()], socket.gethostname())
            '''
            argv = box("python3", "-c", textwrap.dedent(look))
            done = subprocess.run(argv, capture_output=True, text=True)
            told["box"] = [done.returncode, done.stdout, done.stderr]
            told["made"] = open("/opt/rae-node/workdir/made").read()
            os.unlink("/opt/rae-node/workdir/made")
            told["covered"] = [line.split()[4] for line in open("/proc/self/mountinfo")
                               if line.split()[4].startswith("/proc/")]
            """)  # fmt: skip
    # A guest has such mounts itself, and later systemds hand them on to its units.
    mounts = host.run(["cat", "/proc/1/mountinfo"]).stdout.splitlines()
    covered = set(told["covered"]) - {line.split()[4] for line in mounts}
    root = ["bin", "dev", "lib", "lib64", "proc", "tmp", "usr", "workdir"]
    assert told["box"] == [0, f"{root} ['1', '2'] ['lo'] task\n", ""]
    assert told["made"] == "by the task"
    # Else the kernel of a real host refuses bubblewrap its /proc; this lab's would not.
    assert covered == set()


def test_the_unit_may_box_and_kill_by_a_cgroup_of_its_own(host: Host) -> None:
    with Task(host) as task:
        told = task.tell("""
            import os, subprocess
            own = "/sys/fs/cgroup" + told["cgroup"]
            os.mkdir(own + "/task")
            child = subprocess.Popen(["sleep", "600"])
            open(own + "/task/cgroup.procs", "w").write(str(child.pid))
            told["moved"] = open(f"/proc/{child.pid}/cgroup").read().strip().endswith("/task")
            open(own + "/task/cgroup.kill", "w").write("1")
            told["signal"] = -child.wait(10)
            os.rmdir(own + "/task")
            for file in ("cgroup.kill", "memory.max", "pids.max", "../cgroup.procs"):
                if os.access(f"{own}/{file}", os.W_OK):
                    told["loose"] = file
            """)
    del told["cgroup"]
    assert told == {"moved": True, "signal": 9}


@pytest.mark.parametrize("user", ["rae-task", "messagebus"])
@pytest.mark.parametrize("socket", [CPU, GPU, KILL])
def test_only_the_agent_connects(host: Host, socket: str, user: str) -> None:
    refused = host.run(as_user(user, relay(socket)), check=False)
    assert refused.returncode != 0 and "PermissionError" in refused.stderr


def test_nothing_outlives_the_connection(host: Host) -> None:
    with Task(host) as task:
        task.tell(CROWD)
        until(lambda: task.processes() == 21, "the crowd is there")
    task.wait_gone()


def test_nothing_outlives_the_main_process(host: Host) -> None:
    with Task(host) as task:
        task.tell(CROWD)
        until(lambda: task.processes() == 21, "the crowd is there")
        host.run(["systemctl", "kill", "--kill-who=main", "--signal=SIGKILL", task.unit])
        task.wait_gone()
    left = host.run(["systemctl", "list-units", "--all", "--plain", "--no-legend", "rae-task@*"])
    assert left.stdout == "", "a task that was killed stays in the list of units"


@pytest.fixture
def enabled(host: Host) -> Iterator[None]:
    """An agent that does nothing but note what it sees at its end, enabled as by enable-node."""
    host.put("/opt/rae-node/agent/auto_runner.py", AGENT)
    host.put("/opt/rae-node/agent/enabled", "")
    host.put("/etc/rae-node/enrolment.json", "{}", 0o400)
    yield
    host.run(["rm", "/opt/rae-node/agent/enabled"])
    host.run(["systemctl", "stop", "rae-node"])


def test_the_agent_does_not_run_before_it_is_enabled(host: Host) -> None:
    """Contract: B9."""
    host.run(["systemctl", "start", "rae-node"])
    said = settings(host, "rae-node.service")
    assert (said["ActiveState"], said["ConditionResult"]) == ("inactive", "no")


def test_the_agents_unit_starts_auto_runner_at_boot_and_again_after_its_end(
    host: Host, enabled: None
) -> None:
    """Contract: A13, B4."""
    host.run(["systemctl", "start", "rae-node"])
    said = settings(host, "rae-node.service")
    wanted = {
        "Description": "RAE Compute Node Agent", "User": "rae-node", "Restart": "always",
        "RestartUSec": "15s", "ActiveState": "active",
        "ControlGroup": "/rae.slice/rae-node.service",
    }  # fmt: skip
    assert {name: said[name] for name in wanted} == wanted
    assert "/usr/bin/python3 /opt/rae-node/agent/auto_runner.py" in said["ExecStart"]
    assert "WantedBy=multi-user.target" in (UNITS / "rae-node.service").read_text()


def test_the_agents_end_ends_a_task_whose_supervisor_is_stopped(host: Host, enabled: None) -> None:
    host.run(["systemctl", "start", "rae-node"])
    with Task(host) as task:
        task.tell(CROWD)
        host.run(["systemctl", "kill", "--signal=SIGSTOP", task.unit])
        host.run(["systemctl", "kill", "--kill-who=main", "--signal=SIGKILL", "rae-node"])
        task.wait_gone()


def test_an_agent_that_is_stopped_may_still_speak_to_its_tasks(host: Host, enabled: None) -> None:
    host.run(["systemctl", "start", "rae-node"])
    with Task(host) as task:
        task.tell("")
        host.run(["systemctl", "stop", "rae-node"])
        assert task.unit in host.run(["cat", "/opt/rae-node/logs/seen"]).stdout.splitlines()
        task.wait_gone()
