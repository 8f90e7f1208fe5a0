"""A mesh works wherever its data lie, whatever the locale: long paths, spaces, umlauts, marks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness import MakeMesh

PLACES = [("ein Käfer/100%23 ?#", "C"), ("l" * 120, "de_DE.UTF-8")]
TASKS = [
    {"kind": "cli", "params": {"command": "echo", "args": ["ü"]}},
    {"kind": "python", "params": {"task": "example"}},
]


@pytest.mark.parametrize(("place", "locale"), PLACES, ids=["odd", "long"])
def test_a_mesh_works_from_a_folder_of_any_name(
    make_mesh: MakeMesh, tmp_path: Path, place: str, locale: str
) -> None:
    data, temporary = tmp_path / place, tmp_path / ("t" * 120)
    data.mkdir(parents=True)
    temporary.mkdir()
    env = {"TMPDIR": str(temporary), "LANG": locale, "LANGUAGE": "de"}
    mesh = make_mesh("n1", data=data, env=lambda _: env)
    views = [mesh.rae.wait(ref.task_id, 30) for ref in mesh.rae.submit(TASKS)]
    assert [view.state for view in views] == ["succeeded", "succeeded"]
    assert views[0].result["stdout"] == "ü\n"
