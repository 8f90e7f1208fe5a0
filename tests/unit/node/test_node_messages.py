"""Every message says what, why and what to do: the node's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import rae_node
from rae_node.cli import main
from rae_node.config.files import dev_config, dev_runtime
from rae_node.config.layout import Layout
from rae_node.guard.words import REASONS, in_words
from tests.messages import faults, written

ERRORS = frozenset({"NodeError", "ConfigError", "TaskFailure"})
FOLDER = Path(rae_node.__file__).parent


def test_every_message_in_the_code_tells_a_way_out() -> None:
    found = list(written(FOLDER, ERRORS))
    assert len(found) > 40
    assert [(where, text, wrong) for where, text in found if (wrong := faults(text))] == []


@pytest.mark.parametrize("code", REASONS)
def test_every_reason_has_words(code: str) -> None:
    assert " " in in_words(code)


def full(layout: Layout) -> None:
    """The disk takes no state any more."""
    layout.config_file.unlink()
    layout.config_file.symlink_to("/dev/full/x")


def change(file: str, old: str, new: str) -> Callable[[Layout], None]:
    def apply(layout: Layout) -> None:
        path = layout.agent / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return apply


def nothing(_: Layout) -> None:
    """As it is."""


WRONG: dict[str, tuple[Callable[[Layout], None], list[str], str]] = {
    "an unknown key": (
        change("config.yaml", "trusted", "trusty: 1\ntrusted"), ["report"],
        "trusty: is not known; remove it",
    ),
    "a missing key": (
        change("runtime.yaml", "poll_interval", "pol_interval"), ["dry-run"],
        "yaml:4: execution.poll_interval_sec: is missing; add it",
    ),
    "no YAML": (
        change("config.yaml", "trusted: true", "trusted: [true"), ["dry-run"], "no valid YAML",
    ),
    "no settings": (lambda home: home.config_file.unlink() or home.config_file.write_text("7"),
                    ["dry-run"], "name: value"),
    "no file": (lambda home: home.config_file.unlink(), ["dry-run"], "check the path"),
    "a file in the path": (full, ["dry-run"], "choose a path whose folders are no files"),
    "no agent": (nothing, ["status"], "rae-node run"),
    "an unknown setting": (nothing, ["run", "--set", "colour=red"], "no such setting"),
    "a setting without a value": (nothing, ["run", "--set", "colour"], "NAME=VALUE"),
    "a setting that is no number": (nothing, ["run", "--set", "poll_wait_sec=soon"], "number"),
    "a folder of a dev node, but no --dev": (nothing, ["run", "--data", "d"], "add --dev"),
    "a pause to show and to set": (nothing, ["pause", "5m", "--show"], "takes no duration"),
    "no command": (nothing, ["allows"], "Name the command"),
    "a forbidden command": (nothing, ["allows", "--", "mkfs"], "allow-list"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_a_person_does_wrong_is_said_with_the_way_out(
    what: str, layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, argv, words = WRONG[what]
    layout.config_file.write_text(yaml.safe_dump(dev_config("n1", "http://127.0.0.1:1")))
    layout.runtime_file.write_text(yaml.safe_dump(dev_runtime()))
    spoil(layout)
    place = ["--root", str(layout.root)]
    code = main([argv[0], *place, *argv[1:]])
    said = capsys.readouterr()
    text = said.err if argv[0] != "report" else said.out
    assert code == 1
    assert words in text
    if argv[0] != "report":
        assert text.startswith("rae-node: ")
        assert faults(text) == []
