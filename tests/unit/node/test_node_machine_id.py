"""The name by which control knows a machine."""

from __future__ import annotations

from pathlib import Path

from rae_node.agent import startup
from rae_node.config.layout import Layout


def test_the_machine_has_one_name_that_tells_nothing(layout: Layout, tmp_path: Path) -> None:
    file = tmp_path / "machine-id"
    file.write_text("0123456789abcdef\n")
    name = startup.machine_id(layout, file)
    assert name == startup.machine_id(layout, file) and "0123" not in name
    missing = tmp_path / "none"
    assert startup.machine_id(layout, missing) == startup.machine_id(layout, missing) != name


def test_a_copy_of_a_machine_s_disk_has_another_name(layout: Layout, tmp_path: Path) -> None:
    file = tmp_path / "machine-id"
    file.write_text("0123456789abcdef\n")

    def card(machine: str, name: str, bus: str, kind: str, address: str) -> Path:
        folder = tmp_path / machine / name
        (tmp_path / "bus" / bus).mkdir(parents=True, exist_ok=True)
        (folder / "device").mkdir(parents=True)
        (folder / "device" / "subsystem").symlink_to(tmp_path / "bus" / bus)
        (folder / "addr_assign_type").write_text(f"{kind}\n")
        (folder / "address").write_text(f"{address}\n")
        return tmp_path / machine

    ours = card("ours", "eth0", "pci", "0", "02:00:00:00:00:01")
    name = startup.machine_id(layout, file, ours)
    copy = card("copy", "eth0", "pci", "0", "02:00:00:00:00:02")
    assert startup.machine_id(layout, file, copy) != name
    # Neither an adapter that is plugged in nor an address that software chose counts.
    card("ours", "usb0", "usb", "0", "02:00:00:00:00:03")
    card("ours", "eth1", "pci", "3", "02:00:00:00:00:04")
    (ours / "lo").mkdir()
    assert startup.machine_id(layout, file, ours) == name
    # Of a wireless card the radio's address counts, whatever its interface is called by now.
    names = set()
    for interface, radio in (("05", "06"), ("07", "06"), ("07", "08")):
        wireless = card(f"laptop{interface}{radio}", "wlan0", "pci", "3", interface)
        (wireless / "wlan0" / "phy80211").mkdir()
        (wireless / "wlan0" / "phy80211" / "macaddress").write_text(radio)
        names.add(startup.machine_id(layout, file, wireless))
    assert len(names) == 2
