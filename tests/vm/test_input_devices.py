"""Which devices the input detector's unit lets it open, on a kernel that enforces device lists."""

from __future__ import annotations

from tests.vm.guest import Guest

# In the unit's cgroup, whose device list the kernel asks, as the unit's user and in its groups.
_ENTER = (
    "echo $$ > /sys/fs/cgroup/rae.slice/rae-input.service/cgroup.procs && exec setpriv "
    '--reuid=rae-input --regid=rae-input --groups=rae-input,input python3 -c "$0"'
)
_OPEN = """
import glob, os
for path in [*sorted(glob.glob("/dev/input/event*")), "/dev/uinput", "/dev/vda", "/dev/tty1"]:
    for way, flags in (("read", os.O_RDONLY), ("write", os.O_RDWR)):
        try:
            os.close(os.open(path, flags | os.O_NONBLOCK))
            print(path.rstrip("0123456789"), way)
        except PermissionError:
            pass
"""


def test_the_detector_reads_input_devices_writes_to_none_and_opens_no_other(
    vm_text: Guest,
) -> None:
    vm = vm_text.vm
    vm.run(["systemctl", "start", "rae-input"], timeout_s=120)
    vm.run(["modprobe", "uinput"])
    # Whatever permissions a desktop gives away.
    vm.run(["chmod", "0666", "/dev/uinput", "/dev/vda", "/dev/tty1"])
    opened = vm.run(["sh", "-c", _ENTER, _OPEN]).stdout.splitlines()
    assert set(opened) == {"/dev/input/event read"}
    vm.run(["systemctl", "stop", "rae-input"])
    assert "uinput write" in vm.run(["python3", "-c", _OPEN]).stdout, "the list forbids it, no mode"
