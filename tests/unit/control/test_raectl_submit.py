"""What the words of `raectl submit` become."""

from __future__ import annotations

from typing import Any

import pytest

from rae_control.cli.raectl import build_parser
from rae_control.cli.raectl_submit import UsageError, spec_from
from rae_protocol.client import RaeClient


def artifact(word: str) -> Any:
    args = build_parser().parse_args(["submit", "--artifact", word, "--", "true"])
    return spec_from(RaeClient("http://127.0.0.1:9", None), args)["artifacts"][0]


@pytest.mark.parametrize(
    ("word", "name", "more"),
    [
        ("12:30.bin", "12:30.bin", {}),
        ("12:30.txt:text/csv", "12:30.txt", {"type": "text/csv"}),
        ("a:b/c:image/png:5", "a:b/c", {"type": "image/png", "max_mb": 5.0}),
        ("a.bin", "a.bin", {}),
        ("a.bin:image/png", "a.bin", {"type": "image/png"}),
        ("a.bin::5", "a.bin", {"max_mb": 5.0}),
        ("a.bin:", "a.bin", {}),
    ],
)
def test_the_name_of_an_artifact_may_have_colons(
    word: str, name: str, more: dict[str, object]
) -> None:
    assert artifact(word) == {"name": name, **more}


@pytest.mark.parametrize("name", ["out.txt", "d/run.log", "12:30.txt"])
def test_an_artifact_that_is_a_text_by_its_name_can_be_filled_from_stdout(name: str) -> None:
    assert artifact(name) == {"name": name, "type": "text/plain"}
    assert artifact(f"{name}::2") == {"name": name, "type": "text/plain", "max_mb": 2.0}


def test_a_size_that_is_no_number_is_refused() -> None:
    with pytest.raises(UsageError, match="'x' is no number of MB"):
        artifact("a.bin:image/png:x")
