"""JSON that some part of the mesh could not carry is refused at the door, with the cause."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rae_protocol import models
from rae_protocol.errors import RaeError
from rae_protocol.names import MAX_NESTING


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"{'a': 1}",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": 9223372036854775808}',
        b'{"a": -9223372036854775809}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": "\\ud800"}',
        b'{"\\udfff": 1}',
        b'{"a": "\xff"}',
        b"\xef\xbb\xbf{}",
        b"[" * 100 + b"]" * 100,
        b'{"a":' * 100 + b"1" + b"}" * 100,
        b'{"a": 1, "a": 1}',
        b'{"x": [{"a": 1, "b": 2, "\\u0061": 3}]}',
        b"[" + b"{}," * 300_000 + b"{}]",
        b'{"a": "b", ' * 300_000,
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
    ],
)
def test_a_body_that_is_no_plain_json_is_refused(body: bytes) -> None:
    with pytest.raises(RaeError) as caught:
        models.decode(body)
    assert caught.value.rc == "invalid_json"
    assert caught.value.status == 400
    assert len(caught.value.message) < 400


def test_nesting_is_taken_up_to_the_limit() -> None:
    models.decode(b"[" * MAX_NESTING + b"]" * MAX_NESTING)
    with pytest.raises(RaeError):
        models.decode(b"[" * (MAX_NESTING + 1) + b"]" * (MAX_NESTING + 1))


@pytest.mark.parametrize("text", ["1,2:3;" * 200_000, '\\",' * 200_000, "\\\\," * 300_000])
def test_punctuation_inside_of_a_text_does_not_count(text: str) -> None:
    assert models.decode(json.dumps({"a": text, "b": "c"}).encode()) == {"a": text, "b": "c"}


def test_the_largest_integers_pass() -> None:
    assert models.decode(b"[9223372036854775807, -9223372036854775808]") == [2**63 - 1, -(2**63)]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False, min_value=-1e308, max_value=1e308)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(JSON)
def test_every_value_within_the_limits_comes_through_unchanged(value: Any) -> None:
    assert models.decode(json.dumps(value).encode()) == value


@given(JSON)
def test_the_canonical_spelling_depends_on_the_value_alone(value: Any) -> None:
    again = json.loads(json.dumps(value, indent=3))
    assert models.canonical(again) == models.canonical(value)


@given(st.binary(max_size=400))
def test_no_bytes_make_the_decoder_fail_otherwise(body: bytes) -> None:
    try:
        models.decode(body)
    except RaeError as error:
        assert error.rc == "invalid_json"
