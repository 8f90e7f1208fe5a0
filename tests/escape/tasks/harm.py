"""What a harmful task does to the machine, to others, or to what is read of it afterwards."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import platform
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

CHUNK = b"x" * (1 << 20)


def fork_bomb() -> None:
    """Without Python's own work after a fork, which would end it for its memory."""
    libc, count = ctypes.CDLL(None, use_errno=True), 0
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while (pid := libc.fork()) >= 0:
        while pid == 0:
            libc.pause()
        count += 1
    print(f"{os.strerror(ctypes.get_errno())} after {count}", flush=True)
    signal.pause()


def memory() -> None:
    held = []
    while True:
        held.append(bytearray(CHUNK))


def first_thread_gone() -> None:
    """Memory of a process that looks dead, because its first thread is."""
    threading.Thread(target=memory).start()
    number = {"x86_64": 60, "aarch64": 93}[platform.machine()]
    ctypes.CDLL(None).syscall(ctypes.c_long(number), 0)


def shared_memory() -> None:
    held = []
    while True:
        area = mmap.mmap(-1, 1 << 26)
        area.write(b"x" * (1 << 26))
        held.append(area)


def memfd() -> None:
    held = []
    while True:
        held.append(os.memfd_create("bomb"))
        for _ in range(64):
            os.write(held[-1], CHUNK)


def shm() -> None:
    fill("/dev/shm")


def tmp() -> None:
    fill("/tmp")


def disk() -> None:
    fill("/workdir/output")


def fill(folder: str) -> None:
    number = 0
    while True:
        number += 1
        with open(f"{folder}/{number}", "wb") as file:
            for _ in range(16):
                file.write(CHUNK)


def nameless() -> None:
    """Files that are deleted and stay open."""
    held = []
    while True:
        held.append(os.open("gone", os.O_RDWR | os.O_CREAT))
        os.unlink("gone")
        for _ in range(16):
            os.write(held[-1], CHUNK)


def unreadable_program() -> None:
    """Deleted files, held by a program without read permission, so no process can look into it."""
    shutil.copyfile("/usr/bin/sleep", "hidden")
    os.chmod("hidden", 0o111)
    while True:
        file = os.open("gone", os.O_RDWR | os.O_CREAT)
        os.unlink("gone")
        for _ in range(16):
            os.write(file, CHUNK)
        if os.fork() == 0:
            os.set_inheritable(file, True)
            os.execv("./hidden", ["hidden", "60"])
        os.close(file)
        time.sleep(0.02)


def slow_to_look_at() -> None:
    """So many descriptors that a look at them takes long; and then more files than it may."""
    with contextlib.suppress(OSError):
        while True:
            os.open("/dev/null", os.O_RDONLY)
    os.closerange(500, 1024)
    for _ in range(300):
        if os.fork() == 0:
            signal.pause()
    disk()


def moved_out_of_sight() -> None:
    """Files that are always where the look at its folders has been, as inotify(7) tells."""
    libc = ctypes.CDLL(None)
    watch, names = libc.inotify_init(), {}
    for number in range(40):
        os.mkdir(f"f{number}")
        for other in range(60):
            Path(f"f{number}/{other}").touch()
    order = [name for name in os.listdir() if name.startswith("f")]
    for name in order:
        names[libc.inotify_add_watch(watch, name.encode(), 0x10)] = name  # IN_CLOSE_NOWRITE
    there, last = order[-1], order[-1]
    os.mkdir(f"{last}/hoard")
    hoard = os.open(f"{last}/hoard", os.O_RDONLY)

    def dodge() -> None:
        nonlocal there
        while True:
            for number, *_ in struct.iter_unpack("iIII", os.read(watch, 1 << 16)):
                seen = names[number]
                if (seen == last) != (there == last):
                    os.rename(f"{there}/hoard", f"{seen}/hoard")
                    there = seen

    threading.Thread(target=dodge, daemon=True).start()
    for number in range(1500 // 16):
        file = os.open(str(number), os.O_RDWR | os.O_CREAT, dir_fd=hoard)
        for _ in range(16):
            os.write(file, CHUNK)
        os.close(file)
        time.sleep(0.1)


def files_on_the_way(marker: str) -> None:
    """As many as one user may have sent and not received, all held back by one task."""
    ends = socket.socketpair()
    with contextlib.suppress(OSError):
        while True:
            socket.send_fds(ends[0], [b"x"], [0] * 250)
    subprocess.run(["/usr/bin/sleep", marker], check=False)


def closed_folder() -> None:
    """Files in a folder that cannot be entered at the moments when the supervisor looks."""
    os.mkdir("closed")
    number = 0
    while True:
        number += 1
        os.chmod("closed", 0o700)
        with open(f"closed/{number}", "wb") as file:
            for _ in range(16):
                file.write(CHUNK)
        os.chmod("closed", 0)
        time.sleep(0.05)


def one_file() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    with open("large", "wb") as file:
        while True:
            file.write(CHUNK)


def inodes() -> None:
    number = 0
    while True:
        number += 1
        os.close(os.open(str(number), os.O_CREAT | os.O_WRONLY))


def deep_folders() -> None:
    while True:
        os.mkdir("d")
        os.chdir("d")


def flood() -> None:
    while True:
        os.write(1, CHUNK)


def daemon(marker: str) -> None:
    """Double-forked, in a session of its own, deaf to SIGTERM; and the task ends well."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            os.execv("/usr/bin/sleep", ["/usr/bin/sleep", marker])
        os._exit(0)
    os.wait()


def many(marker: str, sessions: int, each: int) -> None:
    """Processes in several sessions, all of which wait."""
    for _ in range(sessions):
        if os.fork() == 0:
            os.setsid()
            for _ in range(each - 1):
                if os.fork() == 0:
                    signal.pause()
            os.execv("/usr/bin/sleep", ["/usr/bin/sleep", marker])
    print("ready", flush=True)
    signal.pause()


def slow_loris(ctx: Any) -> None:
    """Half a line to whoever listens, again and again; then a flood, and the end."""
    for _ in range(200):
        os.write(ctx.progress_fd, b'{"pct": 1')
        time.sleep(0.001)
    os.set_blocking(ctx.progress_fd, False)
    for _ in range(1000):
        with contextlib.suppress(BlockingIOError):
            os.write(ctx.progress_fd, CHUNK)


def outputs(target: str) -> None:
    os.symlink(target, "/workdir/output/link")
    os.mkfifo("/workdir/output/fifo")
    os.symlink("/workdir", "/workdir/output/folder")
    Path("/workdir/output/plain").write_text("x")
    os.link("/workdir/output/plain", "/workdir/output/twin")
    with open("/workdir/output/sparse", "wb") as file:
        file.truncate(1 << 25)


def leave_behind() -> None:
    for folder in ("/tmp", "/dev/shm", "/workdir/work", "/workdir/output"):
        Path(folder, "mark").write_text("left")


def look_for_marks() -> list[str]:
    folders = ("/tmp", "/dev/shm", "/workdir/work", "/workdir/output")
    return [folder for folder in folders if os.path.exists(f"{folder}/mark")]


def run(ctx: Any, what: str, args: dict[str, Any]) -> Any:
    if what == "slow_loris":
        return slow_loris(ctx)
    return globals()[what](**args)
