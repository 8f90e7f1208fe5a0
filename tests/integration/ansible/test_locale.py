"""Output of programs that is matched comes in English, whatever the language of the host."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rae_node.diagnostics.report import unit_state
from tests.integration.ansible.role import ROLE, play


def test_a_package_that_is_gone_stops_no_removal_on_a_german_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANGUAGE", "de")
    common = {"name": str(ROLE.parent / "common"), "tasks_from": "remove_packages.yml"}
    removal = [{"ansible.builtin.include_role": common}]
    variables = {"common_packages": ["no-such-package-of-the-mesh"]}
    done = play(tmp_path, {"desk": variables}, removal, {})
    assert done.code == 0, done.text


def test_systemctl_is_asked_in_english(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in on the PATH answers in the language that it is asked in."""
    program = tmp_path / "systemctl"
    program.write_text(f"#!{sys.executable}\nimport os\nprint(os.environ['LANGUAGE'])\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("LANGUAGE", "de")
    assert "de" not in unit_state().split()
