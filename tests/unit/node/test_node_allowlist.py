"""The allow-list lets through what it names and nothing that leaves the workspace (C5)."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rae_node.assemble import PACKAGE_DATA
from rae_node.errors import ConfigError, TaskFailure
from rae_node.runners.cli import (
    AllowList,
    Entry,
    first_unmatched,
    leaves_workspace,
    load_allowlist,
)

SHIPPED = load_allowlist([PACKAGE_DATA / "allowlist.d"])
FFMPEG = next(entry for entry in SHIPPED._entries if entry.name == "ffmpeg")


def entries(name: str) -> Entry:
    return next(entry for entry in SHIPPED._entries if entry.name == name)


def test_c5_the_contracts_ffmpeg_call_is_accepted() -> None:
    args = ["-y", "-i", "input1.mp4", "-c:v", "libx264", "output.mp4"]
    assert first_unmatched(FFMPEG.args, args) is None
    assert (FFMPEG.max_total_args_len, FFMPEG.max_runtime_s, FFMPEG.max_output_mb) == (
        4096,
        7200,
        5000,
    )


@pytest.mark.parametrize(
    ("args", "bad"),
    [
        ("-y -i input1.exe output.mp4", 1),
        ("-y -i input1.mp4 -c:v h264 output.mp4", 3),
        ("-i input1.mp4 other.mp4", 2),
        ("-f lavfi -i a.mp4 output.mp4", 0),
    ],
)
def test_c5_other_ffmpeg_arguments_are_named(args: str, bad: int) -> None:
    assert first_unmatched(FFMPEG.args, args.split()) == bad


@pytest.mark.parametrize(
    "arg",
    [
        "/etc/passwd", "../a", "a/../../b", "~/x", "~root", "http://x/a.mp4", "concat:a|b",
        "file:a.mp4", "--out=/etc/x", "--out=../x", "--a=b=~/x", "-o/etc/x", "-o~x", "a\nb",
        "a\x00b",
    ],
)  # fmt: skip
def test_arguments_that_could_leave_the_workspace_are_refused_whatever_a_pattern_says(
    arg: str,
) -> None:
    anything = AllowList([Entry(path="/bin/sh", args=[["(?s).*"]])])
    with pytest.raises(TaskFailure) as refused:
        anything.check("sh", [arg])
    assert refused.value.rc == "E_DENY" and "Argument 1" in refused.value.message


@pytest.mark.parametrize("arg", ["a.txt", "d/a.txt", "-c:v", "--opt=a/b", "a..b", "-", "", "a=b"])
def test_arguments_inside_the_workspace_pass(arg: str) -> None:
    assert leaves_workspace(arg) is None


@given(st.text(max_size=20), st.text(max_size=10))
def test_no_spelling_of_an_absolute_or_parent_path_passes(tail: str, option: str) -> None:
    for arg in (f"/{tail}", f"../{tail}", f"--{option}=/{tail}", f"x/../{tail}"):
        assert leaves_workspace(arg) is not None


@given(st.lists(st.sampled_from(["-i", "a", "b", "-y"]), max_size=6))
def test_matching_equals_trying_every_split(args: list[str]) -> None:
    patterns = [["-i", "[ab]"], ["-y"], ["a"]]

    def naive(rest: list[str]) -> bool:
        if not rest:
            return True
        two = len(rest) > 1 and rest[0] == "-i" and rest[1] in "ab" and naive(rest[2:])
        return two or (rest[0] in {"-y", "a"} and naive(rest[1:]))

    assert (first_unmatched(patterns, args) is None) == naive(args)


def test_a_miss_names_the_argument_and_what_is_allowed() -> None:
    with pytest.raises(TaskFailure) as refused:
        SHIPPED.check("wc", ["-l", "--files0-from=a"])
    assert "Argument 2 of wc" in refused.value.message and "-[clmwL]+" in refused.value.message
    with pytest.raises(TaskFailure, match=r"rm.*not on this node's allow-list; choose from .*wc"):
        SHIPPED.check("rm", ["-rf", "x"])


def test_too_long_arguments_are_refused() -> None:
    tight = AllowList([Entry(path="/bin/sh", args=[["a*"]], max_total_args_len=5)])
    assert tight.check("sh", ["aaa", "aa"]).path == "/bin/sh"
    with pytest.raises(TaskFailure, match="6 bytes; write at most 5"):
        tight.check("sh", ["aaa", "aaa"])


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("sort", "--compress-program=sh a"), ("sort", "-o b a"), ("sort", "-T d a"),
        ("sort", "--files0-from=a"), ("grep", "-r x"), ("grep", "-f pats a"), ("grep", "-R x"),
        ("grep", "-nf a b"), ("xz", "--files=a"), ("tail", "-f a"), ("tail", "-F a"),
        ("sha256sum", "-c list"), ("sha256sum", "--check list"), ("gzip", "-r d"),
        ("gzip", "-S .x a"), ("zstd", "--filelist=a"), ("zstd", "-r d"), ("cat", "-- a"),
        ("sleep", "4000"), ("sleep", "inf"), ("wc", "--files0-from=a"), ("true", "x"),
        ("od", "-S 3 a"), ("uniq", "--group a"),
    ],
)  # fmt: skip
def test_shipped_entries_offer_nothing_dangerous(name: str, args: str) -> None:
    assert first_unmatched(entries(name).args, args.split()) is not None


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("sha256sum", "a.txt b/c.txt"), ("wc", "-lw a"), ("sort", "-t , -k 2,2n -u a"),
        ("gzip", "-kn9 a.txt"), ("gzip", "-dc a.gz"), ("xz", "-k -T2 a"), ("zstd", "-19 -k -q a"),
        ("bzip2", "-k a"), ("grep", "-ci -m 5 -e needle a"), ("head", "-n 5 a"),
        ("tail", "-n +2 a"), ("cmp", "-s a b"), ("sleep", "600.5"), ("echo", "hello world"),
        ("cut", "-d , -f 1,3-4 a"), ("base64", "-w 0 a"), ("od", "-A d -t x1z a"),
        ("ffprobe", "-v error -show_format -of json a.mp4"),
    ],
)  # fmt: skip
def test_shipped_entries_do_what_they_are_for(name: str, args: str) -> None:
    assert first_unmatched(entries(name).args, args.split()) is None


def test_what_is_not_installed_is_not_offered() -> None:
    some = AllowList([Entry(path="/bin/sh"), Entry(path="/nowhere/tool")])
    assert (some.offered(), some.missing()) == (["sh"], ["tool"])
    with pytest.raises(TaskFailure, match="not on this node"):
        some.check("tool", [])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("path: /bin/sh", "holds no list"),
        ("- path: sh", "entry 1: path"),
        ("- {path: /bin/sh, args: [['(']]}", "no regular expression"),
        ("- {path: /bin/sh, args: [[a, b, c]]}", r"args\.0"),
        ("- {path: /bin/sh, shell: true}", "shell"),
        ("[", "no valid YAML"),
    ],
)
def test_a_broken_file_is_named_with_the_field(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(ConfigError, match=problem) as error:
        load_allowlist([tmp_path])
    assert "own.yaml" in error.value.message
