"""`rae-node dry-run` beside a running agent, and `rae-node pause --show`."""

from __future__ import annotations

import json

import pytest
import yaml

from rae_node.cli import main
from rae_node.config import files as config
from rae_node.config.layout import Layout
from rae_node.diagnostics import checks
from rae_node.guard.words import in_words
from tests.integration.node.harness import MakeRig
from tests.until import until


@pytest.fixture
def files(layout: Layout) -> Layout:
    layout.config_file.write_text(yaml.safe_dump(config.dev_config("n1", "http://127.0.0.1:1")))
    layout.runtime_file.write_text(yaml.safe_dump(config.dev_runtime()))
    return layout


def test_the_dry_run_repeats_what_the_agent_knows_besides_the_guard(
    make_rig: MakeRig, files: Layout
) -> None:
    rig = make_rig()
    until(rig.agent.link.ready.is_set, "it is registered")
    until(lambda: checks.dry_run(files)[0][-1] == "The agent    takes work", "it takes work")
    rig.agent.draining = True
    assert "an operator drains this node" in checks.dry_run(files)[0][-1]
    rig.agent.draining = False
    rig.agent.context.live.runtime = rig.agent.context.runtime.model_copy(
        update={
            "safety": rig.agent.context.runtime.safety.model_copy(update={"cooldown_minutes": 9.0})
        }
    )
    rig.agent.guard.begin_cooldown()
    assert "takes no work" in checks.dry_run(files)[0][-1]
    assert in_words("cooldown") in checks.dry_run(files)[0][-1]


def test_pause_show_tells_the_pause_and_changes_nothing(
    files: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--root", str(files.root))

    def shown(*words: str) -> str:
        assert main(["pause", "--show", *words, *where]) == 0
        return capsys.readouterr().out.strip()

    assert shown() == "not paused"
    assert json.loads(shown("--json")) == {"paused": False, "left_s": 0.0}
    main(["pause", "30m", *where])
    capsys.readouterr()
    assert shown() == "paused for another 30 min"
    assert 1790 < json.loads(shown("--json"))["left_s"] <= 1800
    files.pause_file.write_text("")
    assert shown() == "paused until `rae-node resume`"
    assert json.loads(shown("--json")) == {"paused": True, "left_s": None}
