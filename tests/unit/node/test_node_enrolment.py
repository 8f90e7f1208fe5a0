"""The enrolment secret: where it comes from, and what a faulty one says."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from rae_node.agent import startup
from rae_node.errors import ConfigError


def test_an_unusable_enrolment_says_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "enrolment.json"
    with pytest.raises(ConfigError, match="raectl nodes enrol"):
        startup.read_enrolment(str(file), {})
    file.write_text("[]")
    with pytest.raises(ConfigError, match="raectl nodes enrol"):
        startup.read_enrolment(str(file), {})
    file.write_text('{"enrolment_secret": "s"}')
    with pytest.raises(ConfigError, match="control_public_keys"):
        startup.read_enrolment(str(file), {})


def test_a_secret_in_the_environment_is_taken_out_of_it(tmp_path: Path) -> None:
    environ = {"RAE_SECRET": "word", "CREDENTIALS_DIRECTORY": str(tmp_path)}
    (tmp_path / "enrolment").write_text("other word")
    assert startup.read_secret("env:RAE_SECRET", environ) == "word"
    assert "RAE_SECRET" not in environ
    assert startup.read_secret("credential:enrolment", environ) == "other word"


@pytest.mark.parametrize(
    ("source", "way_out"),
    [
        ("env:NOT_SET", "NOT_SET is not set; set it"),
        ("credential:enrolment", "add LoadCredential=enrolment"),
        ("/does/not/exist", "raectl nodes enrol"),
    ],
)
def test_a_secret_that_is_not_there_names_its_source(source: str, way_out: str) -> None:
    with pytest.raises(ConfigError, match=way_out):
        startup.read_secret(source, {})


def test_a_broken_enrolment_is_never_quoted(tmp_path: Path) -> None:
    environ = {"RAE_SECRET": '{"enrolment_secret": "hush'}
    with pytest.raises(ConfigError) as caught:
        startup.read_enrolment("env:RAE_SECRET", environ)
    assert "hush" not in "".join(traceback.format_exception(caught.value))
