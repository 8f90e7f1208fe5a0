"""Every message says what, why and what to do: the wire's."""

from __future__ import annotations

import errno

import pytest

from rae_protocol.errors import TABLE, EnvelopeError, Unreachable, in_words
from tests.messages import faults

FIRST = {"skew"}  # D7 has its words, in lower case


@pytest.mark.parametrize("rc", sorted(TABLE))
def test_every_error_of_the_table_is_a_sentence_with_a_way_out(rc: str) -> None:
    text = TABLE[rc][1]
    assert faults(text) == []
    assert text.endswith(".")
    assert text[0].isupper() or rc in FIRST
    assert len(text) <= 100


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EACCES, "owner"),
        (errno.EROFS, "read-write"),
        (errno.ENOENT, "check the path"),
        (errno.EADDRINUSE, "another port"),
        (errno.ENOEXEC, "check the path, its owner"),
    ],
)
def test_what_the_system_refuses_comes_with_the_way_out_that_fits(number: int, words: str) -> None:
    text = in_words(OSError(number, "said by the system", "/x"))
    assert text.startswith("said by the system; ")
    assert words in text
    assert faults(text) == []


def test_an_oserror_without_a_number_still_says_something() -> None:
    assert in_words(TimeoutError("too slow")).startswith("too slow; ")
    assert faults(in_words(OSError())) == []


@pytest.mark.parametrize("error", [Unreachable("http://x did not answer"), EnvelopeError("no")])
def test_errors_of_the_clients_have_a_way_out(error: Exception) -> None:
    assert faults(str(error)) == []


@pytest.mark.parametrize(
    "text",
    ["", "No.", "Field required", "[Errno 2] gone; check it", "use {name}", "it is None; check it"],
)
def test_the_rule_finds_what_is_wrong(text: str) -> None:
    assert faults(text)
