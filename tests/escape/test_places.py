"""Tasks run wherever interpreter, tasks and programs lie, and nothing beside those is shown."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rae_protocol import models
from tests.escape.harness import CHECKOUT, NODE, TASKS, python, refused
from tests.until import until
from tools.devmesh import DevMesh

PRIVATE = "for the owner alone"


@dataclass(frozen=True)
class Place:
    """A home folder with a checkout, its environment, tasks, programs, and files beside each.

    `way`: what the node calls the checkout.
    """

    home: Path
    way: Path

    @property
    def checkout(self) -> Path:
        return self.home / "mein Käfer"

    @property
    def python(self) -> Path:
        return self.way / ".venv/bin/python"

    @property
    def tasks(self) -> Path:
        return self.way / "die\nAufgaben"

    @property
    def allowed(self) -> Path:
        return self.way / "allowed"

    def make(self) -> None:
        self.checkout.mkdir(mode=0o755, parents=True)
        if self.way != self.checkout:
            self.way.symlink_to(self.checkout)
        for folder in (self.tasks, self.allowed, self.way / "bin"):
            folder.mkdir(mode=0o755)
        subprocess.run(
            [sys.executable, "-m", "venv", "--without-pip", self.checkout / ".venv"], check=True
        )
        # What this interpreter imports, without installing it again.
        library = sysconfig.get_path("purelib", vars={"base": str(self.checkout / ".venv")})
        known = [path for path in sys.path if path.endswith(("-packages", "/src"))]
        Path(library, "known.pth").write_text("\n".join(known))
        for file in TASKS.glob("*.py"):
            self.write(f"{self.tasks.name}/{file.name}", file.read_text())
        self.write("bin/hello", "#!/bin/sh\necho hello\n", 0o755)
        self.write("bin/broken", "#!/nowhere/sh\n", 0o755)
        entries = "".join(f"- path: '{self.way}/bin/{name}'\n" for name in ("hello", "broken"))
        self.write("allowed/ours.yaml", entries)
        for beside in ("README.md", "bin/README.md", "../.secret"):
            self.write(beside, PRIVATE)

    def write(self, name: str, text: str, mode: int = 0o644) -> None:
        """Whatever the umask: a file that a group may write is not trusted."""
        file = self.checkout / name
        file.write_text(text)
        file.chmod(mode)


@pytest.fixture(scope="module", params=["/tmp", "/dev/shm", "a link"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    linked = request.param == "a link"
    above = "/tmp" if linked else request.param
    with tempfile.TemporaryDirectory(prefix="rae-place-", dir=above) as folder:
        home = Path(folder) / "home" / "käthe"
        made = Place(home, Path(folder) / "way" if linked else home / "mein Käfer")
        made.make()
        yield made


@pytest.fixture(scope="module")
def there(place: Place) -> Iterator[DevMesh]:
    """A mesh whose node runs from that place."""
    with DevMesh((), node=NODE, env=lambda _: {"HOME": str(place.home)}) as mesh:
        settings = {"task_paths": [str(place.tasks)], "allowlist_dir": str(place.allowed)}
        mesh.add_node("n1", settings, str(place.python))
        mesh.wait_node("n1", "online")
        yield mesh


def done(mesh: DevMesh, body: dict[str, Any]) -> models.TaskView:
    return mesh.rae.wait(mesh.rae.submit([body])[0].task_id, 60)


def test_a_program_runs_wherever_it_lies(there: DevMesh) -> None:
    view = done(there, {"kind": "cli", "params": {"command": "hello"}, "max_attempts": 1})
    assert (view.state, view.error) == ("succeeded", None)
    assert view.result["stdout"] == "hello\n"


@pytest.mark.parametrize("attempt", ["home_folders", "source_checkout", "data_folder"])
def test_a_python_task_runs_there_and_sees_nothing_beside_what_it_needs(
    there: DevMesh, place: Place, attempt: str, record_property: Any
) -> None:
    facts = {
        "homes": [str(place.home)], "checkout": str(place.checkout), "data": str(there.data),
        "needed": [str(place.checkout / name) for name in (".venv", place.tasks.name)],
    }  # fmt: skip
    view = done(there, python("attempts", attempts=[[attempt]], facts=facts))
    assert (view.state, view.error) == ("succeeded", None)
    record_property("layer", "mount namespace")
    record_property("said", view.result[attempt])
    assert not view.result[attempt].startswith("ESCAPED"), view.result


def test_a_program_that_cannot_start_in_its_box_is_not_charged_to_the_task(there: DevMesh) -> None:
    body = {"kind": "cli", "params": {"command": "broken"}, "max_attempts": 1}
    task_id = there.rae.submit([body])[0].task_id

    def first() -> models.AttemptView | None:
        history = there.admin.task(task_id).history
        return history[0] if history and history[0].ended_at else None

    ended = until(first, "the first attempt ends", 20)
    view = there.admin.task(task_id)
    there.admin.cancel(task_id)
    assert (ended.state, ended.reason) == ("interrupted", "yield_infrastructure"), view
    assert view.error is None


@pytest.mark.parametrize("what", ["home folder", "source checkout", "data folder"])
def test_an_agent_that_would_show_a_whole_folder_of_its_owner_refuses_to_start(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {name: value for name, value in NODE.items() if name != "task_paths"}
    monkeypatch.setenv("HOME", str(tmp_path))
    with DevMesh(("n1",), node=settings) as mesh:
        node = mesh.nodes["n1"]
        node.stop()
        folders = {"home folder": tmp_path, "source checkout": CHECKOUT, "data folder": mesh.data}
        file = node.root / "agent" / "config.yaml"
        file.write_text(f"{file.read_text()}\ntask_paths: ['{folders[what]}']\n")
        node.start()
        until(lambda: not node.running, "the agent ends", 20)
        for said in (node.tail(), refused(node, "doctor"), refused(node, "report")):
            assert f"the task folder {folders[what]}" in said and what in said, said
            assert "name that in task_paths" in said, said
