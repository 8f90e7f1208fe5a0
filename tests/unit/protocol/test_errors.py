"""An error keeps its rc, its status and its way out, from one side to the other."""

from __future__ import annotations

import pytest

from rae_protocol.errors import TABLE, EnvelopeError, RaeError, RemoteError, Unreachable


def test_a_sentence_holds_the_cause_and_the_way_out() -> None:
    error = RaeError("unknown_task", "there is no task t1.", hint=1)
    assert (
        error.message
        == "there is no task t1. Check the id; a submitter's token sees its own tasks only."
    )
    assert error.body() == {"rc": "unknown_task", "message": error.message, "detail": {"hint": 1}}
    assert str(error) == error.message


@pytest.mark.parametrize("rc", sorted(TABLE))
def test_every_error_is_an_http_error_with_a_whole_sentence(rc: str) -> None:
    status, sentence = TABLE[rc]
    assert 400 <= status <= 503
    assert sentence.endswith(".")
    assert RaeError(rc).status == status


def test_a_remote_error_keeps_the_other_sides_words() -> None:
    error = RemoteError("stale_lease", "their words", 409, {"a": 1})
    assert (error.message, str(error), error.status, error.detail) == (
        "their words", "their words", 409, {"a": 1},
    )  # fmt: skip


def test_an_unknown_rc_of_a_newer_control_is_kept() -> None:
    assert RemoteError("brand_new", "words", 418, {}).rc == "brand_new"


def test_messages_of_the_contract_are_verbatim() -> None:
    """Contract: D7."""
    assert "timestamp outside allowed skew" in TABLE["skew"][1]


def test_local_errors_say_what_to_check() -> None:
    assert "Check the URL" in Unreachable("http://x did not answer").message
    assert "check the node's enrolment" in EnvelopeError("no").message
