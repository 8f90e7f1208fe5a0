"""The page for the owner of a machine: `rae-node help owner`, docs/owner.md, and what it says."""

from __future__ import annotations

import re
import shutil
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import yaml

from rae_node.cli import main
from rae_node.guard.gpu_rules import Resting
from rae_node.guard.owner_file import Limits, OwnerYaml, load_owner
from rae_node.guard.owner_rules import STRICT, in_hours, mode_at
from tools.wheelhouse import CHECKOUT

PAGE = CHECKOUT / "docs" / "owner.md"
TEXT = PAGE.read_text(encoding="utf-8")
UNITS = CHECKOUT / "services" / "node" / "src" / "rae_node" / "data" / "units"
(EXAMPLE,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)


def test_the_verb_prints_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "owner"]) == 0
    assert capsys.readouterr().out == TEXT


def test_help_alone_names_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help"]) == 0
    assert "help owner" in capsys.readouterr().out


def test_a_wheel_has_the_page_itself_where_the_checkout_has_a_link(tmp_path: Path) -> None:
    """As tools/wheelhouse.py copies the sources that it builds a wheel from."""
    source = CHECKOUT / "services" / "node" / "src" / "rae_node" / "data" / "owner.md"
    assert source.resolve() == PAGE
    copied = shutil.copytree(source.parent, tmp_path / "data") / "owner.md"
    assert not copied.is_symlink()
    assert copied.read_text(encoding="utf-8") == TEXT


def test_the_page_fits_a_terminal_in_plain_ascii() -> None:
    assert TEXT.isascii()
    assert [line for line in TEXT.splitlines() if len(line) > 110] == []
    assert len(TEXT.splitlines()) <= 150


def test_the_example_is_an_owner_yaml_with_every_key(tmp_path: Path) -> None:
    file = tmp_path / "owner.yaml"
    file.write_text(EXAMPLE, encoding="utf-8")
    file.chmod(0o644)
    rules = load_owner(file)
    known = yaml.safe_load(EXAMPLE)
    assert list(known) == list(OwnerYaml.model_fields)
    assert list(known["limits"]) == list(Limits.model_fields)
    assert rules.lend == STRICT.lend
    assert rules.resting == Resting(frozenset({"firefox", "steamwebhelper"}), everyone=False)
    berlin, windows = ZoneInfo("Europe/Berlin"), rules.windows or ()
    friday, saturday = (datetime(2030, 1, day, tzinfo=berlin) for day in (4, 5))
    assert [in_hours(windows, friday.replace(hour=at)) for at in (7, 12, 18)] == [True, False, True]
    assert in_hours(windows, saturday.replace(hour=12))


def test_the_end_of_a_rule_is_one_that_the_file_takes(tmp_path: Path) -> None:
    (said,) = re.findall(r"`(never until [^`]+)`", TEXT)
    file = tmp_path / "owner.yaml"
    file.write_text(f"lend: {said}\ntime_zone: Europe/Berlin\n", encoding="utf-8")
    file.chmod(0o644)
    end = datetime(2030, 12, 24, 18, tzinfo=ZoneInfo("Europe/Berlin")).timestamp()
    rules = load_owner(file)
    assert [mode_at(rules, at) for at in (end - 1, end)] == ["never", "auto"]


def test_every_service_that_the_page_names_is_a_unit_with_that_user() -> None:
    rows = re.findall(r"^\| (`rae-[^|]+) \| `?([a-z-]+)`? \|", TEXT, re.MULTILINE)
    named = {unit: user for units, user in rows for unit in re.findall(r"`(rae-[a-z-]+@?)`", units)}
    assert set(named) == {file.stem for file in UNITS.glob("*.service")}
    for unit, user in named.items():
        said = (UNITS / f"{unit}.service").read_text(encoding="utf-8")
        assert re.findall(r"^User=(.+)$", said, re.MULTILINE) == ([] if user == "root" else [user])
        assert "\nSlice=rae.slice\n" in said
    stopped = re.findall(r"systemctl (?:stop|disable --now) ([a-z -]+)`", TEXT)
    assert {*stopped} == {"rae-node rae-ollama rae-input"}, "each is ended with its tasks"
