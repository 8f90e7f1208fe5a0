"""The system calls that a task does not get, as a filter that libseccomp compiles.

A list of what is refused, not of what is allowed: tasks are programs that we do not know, and the
kernel's interfaces that have no file or network behind them are what a box must close. It follows
what container engines refuse to unprivileged containers.
"""

from __future__ import annotations

import errno
import os
import stat

# Refused as to somebody without the right.
_REFUSED = (
    # the kernel, its clock and its devices
    "acct", "adjtimex", "bpf", "clock_adjtime", "clock_settime", "create_module", "delete_module",
    "finit_module", "init_module", "ioperm", "iopl", "kexec_file_load", "kexec_load",
    "lookup_dcookie", "modify_ldt", "nfsservctl", "perf_event_open", "quotactl", "quotactl_fd",
    "reboot", "settimeofday", "stime", "swapoff", "swapon", "syslog", "uselib", "userfaultfd",
    "vhangup", "vm86", "vm86old",
    # other namespaces, mounts and keys
    "add_key", "chroot", "fanotify_init", "fsconfig", "fsmount", "fsopen", "fspick", "keyctl",
    "mount", "mount_setattr", "move_mount", "open_by_handle_at", "open_tree", "pivot_root",
    "request_key", "setns", "umount", "umount2", "unshare",
    # other processes, also those beside it in the box
    "kcmp", "migrate_pages", "move_pages", "pidfd_getfd", "process_madvise", "process_vm_readv",
    "process_vm_writev", "ptrace",
    # memory that the watch over the workspace does not see
    "memfd_secret", "mq_open", "msgget", "semget", "shmget",
)  # fmt: skip
# Refused as if this kernel did not have them: programs then take the older way, whose arguments a
# filter can see.
_ABSENT = ("clone3", "io_uring_enter", "io_uring_register", "io_uring_setup", "openat2")
# What gives a file its mode, and the argument that says it. systemd's `RestrictSUIDSGID=` does the
# same, but for the unit, in which bubblewrap since 0.12 needs openat2.
_MODES: tuple[tuple[str | int, int], ...] = (
    ("chmod", 1), ("fchmod", 1), ("fchmodat", 2), ("mkdir", 1), ("mkdirat", 2), ("mknod", 1),
    ("mknodat", 2), ("creat", 1), (452, 2),  # fchmodat2, which not every libseccomp knows by name
)  # fmt: skip
_OPENS = (("open", 1), ("openat", 2))  # flags, with the mode behind them
_CREATES = (os.O_CREAT, os.O_TMPFILE & ~os.O_DIRECTORY)
_NEW_NAMESPACES = 0x7E020000  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}, see clone(2)
_THREAD, _FILES = 0x00010000, 0x00000400  # CLONE_THREAD, CLONE_FILES
_FAMILIES = (1, 2, 10, 16)  # unix, IPv4, IPv6, netlink: what a box of its own has anyway
_TERMINAL = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: typing into a terminal
_SET_DUMPABLE = 4  # PR_SET_DUMPABLE: would hide descriptors from the watch


def compiled() -> bytes:
    """The filter as bubblewrap takes it. Raises ImportError, RuntimeError, OSError."""
    import pyseccomp as lib  # noqa: PLC0415 - it looks for libseccomp while it is imported

    found = lib.SyscallFilter(lib.ALLOW)
    # The machine's own calls only: a second set, for older programs, would be a way around.
    found.set_attr(lib.Attr.ACT_BADARCH, lib.ERRNO(errno.ENOSYS))
    refused, absent = lib.ERRNO(errno.EPERM), lib.ERRNO(errno.ENOSYS)
    for action, names in ((refused, _REFUSED), (absent, _ABSENT)):
        for name in names:
            if _known(lib, name):
                found.add_rule(action, name)
    for flag in (1 << bit for bit in range(32)):
        if flag & _NEW_NAMESPACES:
            found.add_rule(refused, "clone", lib.Arg(0, lib.MASKED_EQ, flag, flag))
    for family in set(range(max(_FAMILIES))) - set(_FAMILIES):
        found.add_rule(refused, "socket", lib.Arg(0, lib.EQ, family))
    found.add_rule(refused, "socket", lib.Arg(0, lib.GT, max(_FAMILIES)))
    for order in _TERMINAL:
        found.add_rule(refused, "ioctl", lib.Arg(1, lib.MASKED_EQ, 0xFFFFFFFF, order))
    # The kernel looks at the lower half of such a number alone.
    found.add_rule(refused, "prctl", lib.Arg(0, lib.MASKED_EQ, 0xFFFFFFFF, _SET_DUMPABLE))
    # A thread with descriptors of its own: the watch reads those of the process.
    found.add_rule(refused, "clone", lib.Arg(0, lib.MASKED_EQ, _THREAD | _FILES, _THREAD))
    # A program that runs as who made it, whoever starts it.
    for bit in (stat.S_ISUID, stat.S_ISGID):
        for call, at in _MODES:
            if isinstance(call, int) or _known(lib, call):
                found.add_rule(refused, call, lib.Arg(at, lib.MASKED_EQ, bit, bit))
        for call, at in _OPENS:
            for flag in _CREATES if _known(lib, call) else ():
                found.add_rule(refused, call, lib.Arg(at, lib.MASKED_EQ, flag, flag),
                               lib.Arg(at + 1, lib.MASKED_EQ, bit, bit))  # fmt: skip
    # Space without writing: the disk would be full before the watch looks again.
    found.add_rule(lib.ERRNO(errno.EOPNOTSUPP), "fallocate")
    # In memory: the agent has no folder for such files.
    with os.fdopen(os.memfd_create("syscalls", os.MFD_CLOEXEC), "w+b") as file:
        found.export_bpf(file)
        file.seek(0)
        return file.read()


def _known(lib: object, name: str) -> bool:
    """Whether this machine has such a call at all."""
    try:
        return bool(lib.resolve_syscall(lib.system_arch(), name) >= 0)  # type: ignore[attr-defined]
    except (OSError, ValueError):
        return False
