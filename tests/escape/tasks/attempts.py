"""What a hostile task tries. Each attempt says what stopped it, or raises Escaped.

Standard library only; it runs inside the box, as the `python` runner runs any task.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import platform
import resource
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)
Facts = dict[str, Any]

X86 = {
    "acct": 163, "add_key": 248, "bpf": 321, "clock_settime": 227, "clone3": 435,
    "delete_module": 176, "fanotify_init": 300, "finit_module": 313, "fsopen": 430,
    "init_module": 175, "io_uring_setup": 425, "ioperm": 173, "kcmp": 312, "kexec_load": 246,
    "keyctl": 250, "memfd_secret": 447, "mount_setattr": 442, "move_mount": 429,
    "mq_open": 240, "msgget": 68, "openat2": 437, "semget": 64,
    "open_by_handle_at": 304, "open_tree": 428, "perf_event_open": 298, "pidfd_getfd": 438,
    "pivot_root": 155, "process_vm_readv": 310, "process_vm_writev": 311, "ptrace": 101,
    "quotactl": 179, "reboot": 169, "request_key": 249, "setns": 308, "shmget": 29,
    "swapon": 167, "syslog": 103, "umount2": 166, "unshare": 272, "userfaultfd": 323,
}  # fmt: skip
ARM = {
    "acct": 89, "add_key": 217, "bpf": 280, "clock_settime": 112, "clone3": 435,
    "delete_module": 106, "fanotify_init": 262, "finit_module": 273, "fsopen": 430,
    "init_module": 105, "io_uring_setup": 425, "kcmp": 272, "kexec_load": 104, "keyctl": 219,
    "memfd_secret": 447, "mount_setattr": 442, "move_mount": 429,
    "mq_open": 180, "msgget": 186, "openat2": 437, "semget": 190, "open_by_handle_at": 265,
    "open_tree": 428, "perf_event_open": 241, "pidfd_getfd": 438, "pivot_root": 41,
    "process_vm_readv": 270, "process_vm_writev": 271, "ptrace": 117, "quotactl": 60,
    "reboot": 142, "request_key": 218, "setns": 268, "shmget": 194, "swapon": 224, "syslog": 116,
    "umount2": 39, "unshare": 97, "userfaultfd": 282,
}  # fmt: skip
NUMBERS = X86 if platform.machine() == "x86_64" else ARM
CLONE_NEWUSER = 0x10000000


class Escaped(Exception):
    """It worked."""


def name_of(number: int) -> str:
    return errno.errorcode.get(number, str(number))


def denied(action: Callable[[], Any]) -> str:
    """What stopped an action."""
    try:
        value = action()
    except OSError as error:
        return name_of(error.errno or 0)
    raise Escaped(f"it answered {str(value)[:200]!r}")


def call(number: int, *args: int | None) -> str:
    ctypes.set_errno(0)
    answer = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(arg or 0) for arg in args))
    if answer >= 0:
        raise Escaped(f"system call {number} answered {answer}")
    return name_of(ctypes.get_errno())


def syscall_refused(facts: Facts, name: str) -> str:
    """A system call that the filter refuses, whatever its arguments are."""
    found = call(NUMBERS[name])
    if found not in {"EPERM", "ENOSYS"}:
        raise Escaped(f"{name} reached the kernel: {found}")
    return found


def read_path(path: str) -> str:
    target = Path(path)
    return denied(lambda: list(target.iterdir()) if target.is_dir() else target.open("rb").read(1))


def rest_of(facts: Facts, folder: str) -> str:
    """What is to be seen below a folder of the machine, besides what every such task needs.

    A fact: other names of that.
    """
    needed = {sys.prefix, sys.base_prefix, sys.argv[0], os.path.dirname(__file__)}
    needed |= set(facts.get("needed", ()))
    needed |= {os.path.realpath(path) for path in needed}
    above = {str(parent) for path in needed for parent in Path(path).parents}
    for where, names, files in os.walk(folder):
        for name in (*names, *files):
            path = os.path.join(where, name)
            if path not in needed and path not in above:
                raise Escaped(path)
        names[:] = [name for name in names if os.path.join(where, name) not in needed]
    return f"nothing is in {folder}"


def home_folders(facts: Facts) -> str:
    """/home, and the homes of root and of who runs the agent."""
    return ", ".join(rest_of(facts, home) for home in facts["homes"])


def source_checkout(facts: Facts) -> str:
    return rest_of(facts, facts["checkout"])


def data_folder(facts: Facts) -> str:
    return rest_of(facts, facts["data"])


def shadow(facts: Facts) -> str:
    return read_path("/etc/shadow")


def node_files(facts: Facts) -> str:
    """The agent's socket, secret, spool, decision logs; other workspaces; the ledger."""
    return ", ".join(sorted({read_path(path) for path in facts["paths"]}))


def agents_process(facts: Facts) -> str:
    """Its memory and environment: there must be no such process at all."""
    pid = facts["agent"]
    found = {read_path(f"/proc/{pid}/{name}") for name in ("mem", "environ", "maps", "fd", "root")}
    found.add(denied(lambda: os.kill(pid, signal.SIGKILL)))
    return ", ".join(sorted(found))


def other_processes(facts: Facts) -> str:
    seen = sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    if len(seen) > 6 or seen[0] != 1:
        raise Escaped(f"processes {seen}")
    first = Path("/proc/1/cmdline").read_bytes() + Path("/proc/1/environ").read_bytes()
    if b"workdir/" in first.replace(b"/workdir/", b"") or b"lease" in first.lower():
        raise Escaped(f"its first process says {first!r}")
    return f"only {len(seen)} processes are there, its own"


def init_of_box(facts: Facts) -> str:
    """Ending its first process from inside: the kernel does not deliver that."""
    os.kill(1, signal.SIGKILL)
    return f"{Path('/proc/1/comm').read_text().strip()} lives on"


def mounting(facts: Facts) -> str:
    found = denied(lambda: checked(libc.mount(b"none", b"/tmp", b"tmpfs", 0, None)))
    return f"{found}, umount {denied(lambda: checked(libc.umount2(b'/usr', 2)))}"


def checked(answer: int) -> int:
    if answer < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return answer


def new_namespaces(facts: Facts) -> str:
    """By unshare, by clone, by clone3."""
    found = [
        denied(lambda flag=1 << bit: checked(libc.unshare(flag)))
        for bit in (17, 25, 26, 27, 28, 29, 30)
    ]
    clone = {"x86_64": 56, "aarch64": 220}[platform.machine()]
    found.append(call(clone, CLONE_NEWUSER | signal.SIGCHLD, 0, 0, 0, 0))
    found.append(call(435, 0, 88))
    return ", ".join(sorted(set(found)))


def sockets(facts: Facts) -> str:
    """Raw, packet, and every family that is not part of its own network namespace."""
    kinds = [(socket.AF_INET, socket.SOCK_RAW, 1), (socket.AF_INET6, socket.SOCK_RAW, 58)]
    kinds += [
        (family, kind, 0) for family in range(3, 46) if family not in (10, 16) for kind in (1, 2, 3)
    ]
    return ", ".join(sorted({denied(lambda k=k: socket.socket(*k)) for k in kinds}))


def connected(family: int, address: Any) -> str:
    with socket.socket(family) as peer:
        peer.settimeout(2)
        peer.connect(address)
        return f"connected to {address}"


def network(facts: Facts) -> str:
    """Services on the host's loopback, and anything beyond (192.0.2.1 is no host's address)."""
    inet, unix = socket.AF_INET, socket.AF_UNIX
    found = {
        denied(lambda: connected(inet, ("127.0.0.1", facts["port"]))),
        denied(lambda: connected(inet, ("192.0.2.1", 80))),
        denied(lambda: connected(unix, "\0" + facts["abstract"])),
    }
    names = [name for _, name in socket.if_nameindex()]
    if names != ["lo"]:
        raise Escaped(f"interfaces {names}")
    return ", ".join(sorted(found))


def privileges(facts: Facts) -> str:
    """No capability, no way to one, the filter in place, no root."""
    text = Path("/proc/self/status").read_text()
    status = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    caps = {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    if (
        {int(cap, 16) for cap in caps} != {0}
        or status["NoNewPrivs"] != "1"
        or status["Seccomp"] != "2"
    ):
        raise Escaped(text)
    return "no capabilities, no new privileges, filter on"


def special_bits(facts: Facts) -> str:
    """Each way to give a file or a folder the setuid or the setgid bit."""
    with Path("plain").open("wb") as plain:
        for bit in (stat.S_ISUID, stat.S_ISGID):
            mode = bit | 0o700
            ways: list[Callable[[], Any]] = [
                lambda mode=mode: os.chmod("plain", mode),
                lambda mode=mode: os.fchmod(plain.fileno(), mode),
                lambda mode=mode: os.mkdir("folder", mode),
                lambda mode=mode: os.mknod("node", mode),
                lambda mode=mode: os.open("made", os.O_CREAT | os.O_WRONLY, mode),
                lambda mode=mode: os.open(".", os.O_TMPFILE | os.O_WRONLY, mode),
            ]
            # fchmodat2 without a path: the filter comes first, where the kernel has the call.
            found = [*map(denied, ways), call(452, -100, 0, mode, 0).replace("ENOSYS", "EPERM")]
            if found != ["EPERM"] * 7:
                raise Escaped(f"mode {mode:o}: {found}")
    return "EPERM"


def setuid_files(facts: Facts) -> str:
    """An own copy with the bit set, a file with capabilities, the system's setuid programs."""
    own = Path("own-id")
    own.write_bytes(Path("/usr/bin/id").read_bytes())
    own.chmod(0o755)
    with contextlib.suppress(PermissionError):  # the filter refuses the bits themselves
        own.chmod(0o6755)
    found = [denied(lambda: os.setxattr(own, "security.capability", b"\1\0\0\2" + b"\xff" * 16))]
    told = {subprocess.check_output([program, "-u"]) for program in ("./own-id", "/usr/bin/id")}
    if told != {b"1000\n"}:
        raise Escaped(f"uid {told}")
    for file in Path("/usr/bin").iterdir():
        with contextlib.suppress(OSError):
            if file.stat().st_mode & stat.S_ISUID and os.access(file, os.X_OK):
                code = "import os,sys; os.execv(sys.argv[1], [sys.argv[1], '--help'])"
                done = subprocess.run(
                    [sys.executable, "-c", code, str(file)],
                    capture_output=True,
                    timeout=10,
                    check=False,
                )
                found.append(f"{file.name} exit {done.returncode}")
    found += [denied(lambda: os.setuid(0)), denied(lambda: os.chown(own, 0, 0))]
    return ", ".join(found[:1] + found[-2:])


def devices(facts: Facts) -> str:
    allowed = {
        "core",
        "fd",
        "full",
        "null",
        "ptmx",
        "pts",
        "random",
        "shm",
        "stderr",
        "stdin",
        "stdout",
        "tty",
        "urandom",
        "zero",
    }
    there = {entry.name for entry in Path("/dev").iterdir()}
    if there - allowed:
        raise Escaped(f"{there - allowed}")
    disk = denied(lambda: os.mknod("disk", 0o600 | stat.S_IFBLK, os.makedev(8, 0)))
    return f"mknod {disk}, /dev/tty {denied(lambda: os.open('/dev/tty', os.O_RDWR))}"


def system_files(facts: Facts) -> str:
    """Writing anywhere but where it may; there is no /sys and no cgroup tree."""
    places = [
        "/x",
        "/usr/x",
        "/etc/x",
        "/dev/x",
        "/proc/x",
        "/workdir/x",
        "/workdir/input/x",
        "/proc/sys/kernel/core_pattern",
        "/sys/x",
        "/run/x",
        "/var/x",
    ]
    found = {denied(lambda p=place: os.open(p, os.O_WRONLY | os.O_CREAT)) for place in places}
    return ", ".join(sorted(found))


def older_calls(facts: Facts) -> str:
    """The second set of system calls of x86-64; a unit's filter kills for it."""
    if platform.machine() != "x86_64":
        return "there is none"
    pid = os.fork()
    if pid == 0:
        os._exit(0 if libc.syscall(ctypes.c_long(0x40000000 | 39)) >= 0 else 1)
    ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if ended == 0:
        raise Escaped("it answered")
    return "ENOSYS" if ended == 1 else signal.Signals(-ended).name


def terminal(facts: Facts) -> str:
    """Typing into a terminal, its own included."""
    import pty

    ours, _ = pty.openpty()
    return denied(lambda: fcntl.ioctl(ours, 0x5412, b"x"))


def hidden_descriptors(facts: Facts) -> str:
    """A process that is not dumpable keeps its open files from the watch over the disk."""
    prctl = {"x86_64": 157, "aarch64": 167}[platform.machine()]
    half = denied(lambda: checked(libc.prctl(4, 0, 0, 0, 0)))
    # The kernel cuts this number down to 4.
    return f"{half}, {call(prctl, 1 << 32 | 4, 0, 0, 0, 0)}"


def own_descriptors(facts: Facts) -> str:
    """A thread with a table of its own, which /proc does not show for the process."""
    clone = {"x86_64": 56, "aarch64": 220}[platform.machine()]
    return call(clone, 0x00010000 | 0x00000800 | 0x00000100, 0, 0, 0, 0)


def space_without_writing(facts: Facts) -> str:
    """Any amount of disk at once, long before anybody looks at it."""
    number = {"x86_64": 285, "aarch64": 47}[platform.machine()]
    with Path("space").open("wb") as file:
        return call(number, file.fileno(), 0, 0, 1 << 20)


def surroundings(facts: Facts) -> str:
    """Environment, descriptors, host name, limits."""
    known = {
        "PATH",
        "HOME",
        "TMPDIR",
        "LANG",
        "CUDA_VISIBLE_DEVICES",
        "RAE_TASK_ID",
        "RAE_ATTEMPT",
        "PWD",
        "LC_CTYPE",
    }
    if set(os.environ) - known:
        raise Escaped(f"environment {set(os.environ) - known}")
    links = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that listed the others is closed
            links[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    pipes = [number for number, link in links.items() if link.startswith("pipe:")]
    if len(pipes) > 3 or any(n > 2 and n not in pipes for n in links):
        raise Escaped(f"descriptors {links}")
    if socket.gethostname() != "task":
        raise Escaped(socket.gethostname())
    limits = {
        name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))
        for name in ("AS", "CORE", "FSIZE", "NOFILE", "NPROC", "MEMLOCK", "SIGPENDING")
    }
    if any(resource.RLIM_INFINITY in pair for pair in limits.values()) or limits["CORE"] != (1, 1):
        raise Escaped(f"limits {limits}")
    return f"clean; limits {limits}"


def raised_limits(facts: Facts) -> str:
    try:
        resource.setrlimit(resource.RLIMIT_NPROC, (1 << 20, 1 << 20))
    except (ValueError, OSError) as error:
        return str(error)
    raise Escaped("a hard limit was raised")


def core_dump(facts: Facts) -> str:
    before = set(Path().iterdir())
    code = "import ctypes; ctypes.string_at(0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    if set(Path().iterdir()) - before or done.returncode != -signal.SIGSEGV:
        raise Escaped(f"{set(Path().iterdir()) - before}, exit {done.returncode}")
    return "no file"


def open_files(facts: Facts) -> str:
    held = []
    try:
        while len(held) < 100_000:
            held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as error:
        for number in held:
            os.close(number)
        return f"{name_of(error.errno or 0)} after {len(held)}"
    raise Escaped("100,000 files are open")


def locked_memory(facts: Facts) -> str:
    size = 64 * 1024 * 1024
    area = mmap.mmap(-1, size)
    pointer = ctypes.addressof(ctypes.c_char.from_buffer(area))
    return denied(lambda: checked(libc.mlock(ctypes.c_void_p(pointer), size)))


def priority(facts: Facts) -> str:
    realtime = denied(lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))
    return f"nice {denied(lambda: os.nice(-5))}, realtime {realtime}"


def run(ctx: Any, attempts: list[list[str]], facts: dict[str, Any]) -> dict[str, str]:
    """{attempt: what stopped it}; `ESCAPED …` for what nothing stopped."""
    found = {}
    for name, *args in attempts:
        try:
            found[" ".join([name, *args])] = globals()[name](facts, *args)
        except Escaped as error:
            found[" ".join([name, *args])] = f"ESCAPED {error}"
        except Exception as error:  # the attempt itself broke: that proves nothing
            found[" ".join([name, *args])] = f"ESCAPED or not: {error!r}"
    return found
