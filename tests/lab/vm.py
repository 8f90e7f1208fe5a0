"""A virtual machine with a kernel of its own, under qemu without KVM: boot or resume, ssh, input.

Everything of it ends with the process that made it: qemu and ssh are tied to it, and the disk of a
resumed machine has no name.
"""

from __future__ import annotations

import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType

from tests.lab import preflight
from tests.lab.host import Done, run_command
from tests.lab.preflight import LabError
from tests.lab.qmp import Qmp
from tools.devmesh import wait_until
from tools.processes import MeshError, Process

_TAG = "lab"  # of the snapshot inside its file
# nokaslr and the rest: seconds of the boot. tsc: acpi_pm stands still after a suspend, and hpet
# takes the alarm of the clock that is to end it.
_KERNEL = (
    "console=ttyS0 quiet loglevel=3 mitigations=off audit=0 nokaslr cryptomgr.notests "
    "random.trust_cpu=on raid=noautodetect 8250.nr_uarts=1 no_timer_check net.ifnames=0 "
    "clocksource=tsc tsc=reliable"
)
# A snapshot can be resumed only by a machine of the same devices, and not with `+invtsc`.
MACHINE = (
    "-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35", "-no-hpet",
    "-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max", "-smp", "2", "-m", "1024",
    "-rtc", "base=utc", "-append", _KERNEL,
    "-device", "virtio-blk-pci,drive=disk", "-device", "virtio-net-pci,netdev=net,romfile=",
    "-device", "virtio-rng-pci", "-device", "virtio-gpu-pci,id=gpu",
    "-device", "virtio-keyboard-pci", "-device", "virtio-mouse-pci",
    "-device", "qemu-xhci,id=xhci",
)  # fmt: skip
# A firmware sets where ACPI's ports are; qemu's does not after a suspend, which would be the last.
_ACPI_PORTS = (
    r"printf '\001\006\000\000\200' | "
    "dd of=/sys/bus/pci/devices/0000:00:1f.0/config bs=1 seek=64 conv=notrunc"
)
_BOOT_S = 180.0


class Vm:
    """Use it as a context manager: `with Vm(image, snapshot) as vm: vm.qmp.key("a")`.

    `image` is the folder of tests/lab/vm_image.py; without a snapshot the machine boots. `keep` is
    the disk of a machine that `save` makes a snapshot of.
    """

    def __init__(
        self, image: Path, snapshot: Path | None = None, *, keep: Path | None = None
    ) -> None:
        self._image, self._snapshot, self._keep = image, snapshot, keep

    def __enter__(self) -> Vm:
        preflight.check_vm()
        with ExitStack() as stack:
            # A short path: those of sockets have 107 bytes at most.
            folder = tempfile.TemporaryDirectory(prefix="rae-vm-", ignore_cleanup_errors=True)
            self.folder = Path(stack.enter_context(folder))
            self._spawner = stack.enter_context(ThreadPoolExecutor(1, "vm"))
            self._parts = stack
            try:
                self._start()
            except MeshError as error:
                said = f"the virtual machine does not start: {error}\n{self._qemu.tail()}"
                raise LabError(said) from None
            self._parts = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        """End it."""
        self._parts.close()

    def _start(self) -> None:
        disk, base = self._keep or self.folder / "disk.qcow2", f"{self._image}/disk.img"
        if self._snapshot:
            shutil.copyfile(self._snapshot, disk)
        else:
            _do("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, str(disk))
        self._qemu = self._spawn("qemu", [
            # What is measured inside must not depend on what else this machine does.
            "nice", "-n", "-10", "qemu-system-x86_64", *MACHINE,
            "-kernel", str(self._image / "vmlinuz"), "-initrd", str(self._image / "initrd.img"),
            # A snapshot names the file that it is based on, and the cache may have moved since.
            "-drive", f"file={disk},format=qcow2,if=none,id=disk,cache=unsafe,"
            f"backing.driver=raw,backing.file.filename={base}",
            # Nothing of the guest's gets out, but for what ssh forwards.
            "-netdev", "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:0-:22",
            "-chardev", f"file,id=serial,path={self.folder}/serial.log", "-serial",
            "chardev:serial", "-qmp", f"unix:{self.folder}/qmp,server=on,wait=off",
            *(["-loadvm", _TAG] if self._snapshot else []),
        ])  # fmt: skip
        self.qmp = Qmp(self.folder / "qmp")
        self._parts.callback(self.qmp.close)
        if not self._keep:
            disk.unlink()  # qemu has it open: should all of us be killed, it is gone, too
        forwards = self.qmp.monitor("info usernet").splitlines()
        self._port = next(int(line.split()[3]) for line in forwards if "HOST_FORWARD" in line)
        wait_until(self._greets, _BOOT_S, "sshd answers in the guest", every_s=0.1)
        # One connection for all that follows: the first costs seconds, each other 0.1 s.
        self._connection = self._spawn("ssh", self._ssh("-M", "-N"))
        wait_until(self._connected, 60, "ssh has its connection", every_s=0.1)
        if self._snapshot:  # its clock went on from where it stood when the snapshot was made
            self.run(["date", "-s", f"@{time.time():.3f}"])

    def _spawn(self, name: str, command: Sequence[str]) -> Process:
        process = Process(name, command, self.folder / f"{name}.log", self._spawner)
        self._parts.callback(process.stop)
        process.start()
        return process

    def _greets(self) -> bool:
        if not self._qemu.running:
            raise MeshError("qemu ended")
        with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1) as peer:
            peer.settimeout(2)
            return peer.recv(4) == b"SSH-"
        return False

    def _connected(self) -> bool:
        check = self._ssh("-O", "check")
        return subprocess.run(check, capture_output=True, timeout=30, check=False).returncode == 0

    def _ssh(self, *flags: str) -> list[str]:
        options = [
            "BatchMode=yes", "HostKeyAlias=vm", f"UserKnownHostsFile={self._image}/known_hosts",
            "IdentitiesOnly=yes", "ConnectTimeout=60", f"ControlPath={self.folder}/ssh",
        ]  # fmt: skip
        words = [word for option in options for word in ("-o", option)]
        return ["ssh", "-F", "none", "-i", f"{self._image}/key", "-p", str(self._port), *words,
                *flags, "root@127.0.0.1"]  # fmt: skip

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs another one in the guest, as root."""
        return [*self._ssh(), shlex.join(argv)]

    def run(
        self, argv: Sequence[str], *, stdin: str = "", timeout_s: float = 60.0,
        check: bool = True,
    ) -> Done:  # fmt: skip
        """Run a command in the guest, as root. Raises LabError when it fails and `check` is set."""
        return run_command("the vm", self.command(argv), argv, stdin, timeout_s, check, None)

    @contextmanager
    def start(self, argv: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
        """Run a command in the guest while the block runs; its output is a pipe."""
        pipe = subprocess.PIPE
        with subprocess.Popen(self.command(argv), stdout=pipe, text=True) as popen:
            try:
                yield popen
            finally:
                popen.terminate()

    def put(self, path: str, content: str, mode: int = 0o644) -> None:
        """Write a file of root's, and the folders that it lacks. Raises LabError."""
        self.run(["install", "-D", "-m", f"{mode:o}", "/dev/stdin", path], stdin=content)

    def unpack(self, archive: bytes) -> None:
        """Unpack a tar at the root. Raises LabError."""
        unpack = self.command(["tar", "--extract", "--no-same-owner", "--directory=/"])
        done = subprocess.run(unpack, input=archive, capture_output=True, timeout=60, check=False)
        if done.returncode:
            raise LabError(f"the vm could not unpack: {done.stderr.decode(errors='replace')}")

    def unit_log(self, name: str) -> str:
        """What the journal has of a unit since boot."""
        return self.run(["journalctl", "--boot", "--no-pager", "-o", "cat", "-u", name]).stdout

    def forward(self, there: int, here: int) -> None:
        """Let the guest reach a port of this machine's loopback at one of its own loopback."""
        _do(*self._ssh("-O", "forward", "-R", f"127.0.0.1:{there}:127.0.0.1:{here}"))

    def suspend(self) -> None:
        """Suspend to RAM, whoever blocks that; its clocks but CLOCK_BOOTTIME stand still."""
        self.run(["systemctl", "suspend", "--check-inhibitors=no"])
        wait_until(lambda: self.qmp.state() == "suspended", 60, "it sleeps", every_s=0.01)

    def wake(self) -> None:
        """End that, and wait until it answers."""
        self.qmp.call("system_wakeup")
        wait_until(lambda: self.qmp.state() == "running", 20, "it is awake")
        self.run(["sh", "-c", _ACPI_PORTS])

    def screendump(self, file: Path) -> None:
        """Write what the screen shows, as PNG."""
        self.qmp.call("screendump", filename=str(file), format="png")

    def save(self) -> None:
        """Finish the snapshot at `keep`; this machine ends. Raises LabError."""
        self.run(["sync"])
        self._connection.stop()  # a resumed machine must know nothing of this connection
        self.qmp.call("stop")
        if said := self.qmp.monitor(f"savevm {_TAG}").strip():
            raise LabError(f"qemu keeps no snapshot: {said}")
        self._qemu.stop()  # what it still holds of the file, it writes now


def _do(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise LabError(f"`{' '.join(argv)}` failed: {done.stderr.strip()}")
