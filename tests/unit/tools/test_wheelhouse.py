"""What hosts install from has, for each Python, the versions that constraints.txt names for it."""

from __future__ import annotations

import pytest

from tools.wheelhouse import CONSTRAINTS, PYTHONS, pinned


@pytest.mark.parametrize(
    ("python", "evdev"), [("3.10", "1.9.3"), ("3.11", "2.0.0"), ("3.13", "2.0.0")]
)
def test_a_condition_is_read_for_the_hosts_python_and_not_for_ours(python: str, evdev: str) -> None:
    held = pinned(python).splitlines()
    assert [line for line in held if line.startswith("evdev-binary")] == [f"evdev-binary=={evdev}"]
    assert not [line for line in held if ";" in line]


@pytest.mark.parametrize("python", PYTHONS)
def test_every_python_has_one_version_of_each_package(python: str) -> None:
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    named = {line.partition("==")[0] for line in lines if line and line[0] != "#"}
    assert sorted(line.partition("==")[0] for line in pinned(python).splitlines()) == sorted(named)
