"""A URL that parsers could read in different ways is no URL of an input."""

from __future__ import annotations

import pytest

from rae_protocol import models
from rae_protocol.errors import RaeError
from rae_protocol.tasks import TaskSpec
from rae_protocol.weburl import host_of, plain_host

PLAIN = [
    ("http://allowed.example", "allowed.example"),
    ("http://allowed.example?q=1", "allowed.example"),
    ("https://allowed.example:8443/a/b.tar.gz?x=1&y=[2]|{3}", "allowed.example"),
    ("https://ALLOWED.Example/%C3%A4", "allowed.example"),
    ("https://xn--bcher-kva.example/", "xn--bcher-kva.example"),
    ("https://my_files.example/a@b:c//d", "my_files.example"),
    ("http://127.0.0.1:1/x", "127.0.0.1"),
    ("http://[::1]/x", "::1"),
    ("http://[0:0:0:0:0:0:0:1]:8080/x", "::1"),
    ("http://[::FFFF:127.0.0.1]/x", "::ffff:127.0.0.1"),
]
STRANGE = [
    "http://127.0.0.1:80\\@allowed.example/x",
    "http://allowed.example\\@127.0.0.1/x",
    "http://allowed.example/a\\b",
    "http://allowed.example@127.0.0.1/",
    "http://user:word@allowed.example/",
    "http://@allowed.example/",
    "http://127.0.0.1#@allowed.example/",
    "http://allowed.example/x#part",
    "http://allowed.example/a b",
    "http://allowed.example/a\tb",
    "http://allowed.example/\r\nX-Header: 1",
    "http://allowed.example/x\n",
    " http://allowed.example/x",
    "http://allowed.example/\x00",
    "http://allowed.example/\x7f",
    "http://allowed.example/ä",
    "http://bücher.example/",
    "http://allowed。example/",
    "http://①②⑦.0.0.1/",
    "http://%31%32%37.0.0.1/",
    "http://allowed%2eexample/",
    "http://allowed.example./",
    "http://127.0.0.1./",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0x7f.0.0.0x1/",
    "http://0177.0.0.1/",
    "http://127.1/",
    "http://0/",
    "http://1.2.3.4.5/",
    "http://256.0.0.1/",
    "http://[::1%25lo]/",
    "http://[::1/",
    "http://[127.0.0.1]/",
    "http://[]/",
    "http://::1/",
    "http:///x",
    "http:/allowed.example/x",
    "http:allowed.example",
    "//allowed.example/x",
    "HTTP://allowed.example/x",
    "ftp://allowed.example/x",
    "file:///etc/passwd",
    "unix:///run/x",
    "http://allowed.example:/x",
    "http://allowed.example:0/x",
    "http://allowed.example:65536/x",
    "http://allowed.example:+80/x",
    "http://allowed.example:80:90/x",
    "http://-allowed.example/x",
    "http://allowed..example/x",
    f"http://{'a' * 64}.example/x",
    "http://*.example/x",
]


def submitted(url: str) -> TaskSpec:
    return models.parse(models.TaskSpec, {"kind": "cli", "inputs": {"f": {"url": url}}})


@pytest.mark.parametrize(("url", "host"), PLAIN)
def test_a_plain_url_is_taken_and_has_one_host(url: str, host: str) -> None:
    submitted(url)
    assert host_of(url) == host


@pytest.mark.parametrize("url", STRANGE)
def test_a_url_that_parsers_read_in_different_ways_is_refused_at_submit(url: str) -> None:
    with pytest.raises(RaeError) as refused:
        submitted(url)
    assert refused.value.rc == "invalid_body"
    with pytest.raises(ValueError, match=r"."):
        host_of(url)


def test_a_task_that_an_older_control_let_in_stays_readable() -> None:
    old = '{"kind": "cli", "inputs": {"f": {"url": "http://a.example/#1"}}}'
    assert TaskSpec.model_validate_json(old).inputs


@pytest.mark.parametrize("text", ["fe80::1%eth0", "a.example/24", "a.example:80", "", "[a]"])
def test_what_is_no_host_has_no_spelling(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        plain_host(text)
