"""The node's allow-list: shipped entries, and programs that no other user can replace (C5)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rae_node.errors import ConfigError, TaskFailure
from rae_node.package import DATA
from rae_node.runners.cli import AllowFolders, AllowList, CliRunner
from rae_node.runners.trust import identity, untrusted
from rae_node.workspace.workspace import Workspace
from rae_protocol.allowlist import Entry, refusal
from tests.integration.node.harness import FakeControl

SHIPPED = AllowFolders([DATA / "allowlist.d"])


def blamed(name: str, args: str) -> int | None:
    """The argument that a shipped entry refuses; None when it takes them all."""
    entry = next(entry for entry in SHIPPED.entries if entry.name == name)
    found = refusal(entry, args.split())
    return None if found is None else found.argument


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program of ours, in a folder of ours."""
    file = tmp_path / "bin" / "tool"
    file.parent.mkdir(mode=0o755)
    file.write_text("#!/bin/sh\n")
    file.chmod(0o755)
    return file


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
        # Names that a compressed file chooses, and suffixes and lists of the caller's.
        ("gzip", "-dN a.gz"), ("gzip", "--name a.gz"), ("gzip", "--suffix=.x a"),
        ("gzip", "-dcr d"),
        ("xz", "--files a"), ("xz", "--files0=a"), ("xz", "-S .x a"), ("xz", "--suffix=.x a"),
        ("zstd", "-D d a"), ("zstd", "--output-dir-flat d a"), ("zstd", "-o -x a"),
        ("zstd", "--patch-from=a b"), ("zstd", "--rm a"), ("bzip2", "-L"),
        # Programs, folders, lists and outputs of sort; old spellings of options.
        ("sort", "--compress-program sh a"), ("sort", "-ob a"), ("sort", "-ub a -o c"),
        ("sort", "-Td a"), ("sort", "-S 50% a"), ("sort", "--temporary-directory=d a"),
        ("sort", "--random-source=a b"), ("sort", "--parallel=9 a"), ("sort", "+1 -o b"),
        ("tail", "+5f a"), ("tail", "-5f a"), ("tail", "--pid=1 a"), ("tail", "--follow a"),
        ("uniq", "+5 a"), ("od", "a +10"), ("od", "--traditional a 10"), ("od", "-w99999999 a"),
        ("nl", "-b pX a"), ("nl", "-w 99999999 a"), ("nl", "-d xx a"),
        # More of grep.
        ("grep", "--include=*.c x"), ("grep", "-e x -f pats a"), ("grep", "-fpats a"),
        ("grep", "--file=pats a"), ("grep", "-ef"), ("grep", "-P (a+)+b a"),
        ("grep", "-d recurse x"),
        ("grep", "--exclude-from=a x b"), ("grep", "-e -r x"), ("grep", "--recursive x"),
        # Names read from a file; abbreviations, `--opt=value`, clusters that end in an option with
        # a value, the end of options, and stdin.
        ("sha256sum", "-bc list"), ("sha256sum", "--chec list"), ("md5sum", "-c list"),
        ("b2sum", "-c list"), ("cksum", "-c list"), ("cksum", "--algorithm=sm3 a"),
        ("gzip", "--stdo a"), ("gzip", "--stdout=x a"), ("gzip", "--decomp a"), ("xz", "--stdo a"),
        ("wc", "--files0 a"), ("wc", "-lF a"), ("head", "-qn 5 a"), ("head", "-- a"),
        ("head", "--"), ("sort", "-- -o"), ("cat", "-"), ("gzip", "-c -"), ("sha256sum", "-"),
        ("cut", "-f 1 --output-delimiter=x a"), ("base64", "--wrap=5 a"), ("cmp", "-i 5 a b"),
        ("comm", "--output-delimiter=x a b"), ("tac", "-s x a"), ("tac", "-r a"),
        ("echo", "--help"),
        ("ffprobe", "-i a.mp4"), ("ffprobe", "-f lavfi a.mp4"), ("ffprobe", "-show_data a.mp4"),
        ("ffprobe", "-o x a.mp4"), ("ffprobe", "-report a.mp4"), ("ffprobe", "-of json=c=1 a.mp4"),
        ("ffmpeg", "-i a.mp4 -filter_complex movie=b.mp4 output.mp4"), ("ffmpeg", "-y -f lavfi"),
        ("ffmpeg", "-protocol_whitelist file,http -i a.mp4 output.mp4"),
        ("ffmpeg", "-/filter_complex a.mp4 output.mp4"), ("ffmpeg", "-report -i a.mp4 output.mp4"),
    ],
)  # fmt: skip
def test_shipped_entries_offer_nothing_dangerous(name: str, args: str) -> None:
    assert blamed(name, args) is not None


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("sha256sum", "a.txt b/c.txt"), ("wc", "-lw a"), ("sort", "-t , -k 2,2n -u a"),
        ("echo", "-n hello"), ("sort", "-t : -k2,2 a"), ("cut", "-d: -f1 a"),
        ("gzip", "-kn9 a.txt"), ("gzip", "-dc a.gz"), ("xz", "-k -T2 a"), ("zstd", "-19 -k -q a"),
        ("bzip2", "-k a"), ("grep", "-ci -m 5 -e needle a"), ("head", "-n 5 a"),
        ("tail", "-n +2 a"), ("cmp", "-s a b"), ("sleep", "600.5"), ("echo", "hello world"),
        ("cut", "-d , -f 1,3-4 a"), ("base64", "-w 0 a"), ("od", "-A d -t x1z a"),
        ("ffprobe", "-v error -show_format -of json a.mp4"),
    ],
)  # fmt: skip
def test_shipped_entries_do_what_they_are_for(name: str, args: str) -> None:
    assert blamed(name, args) is None


def test_what_is_not_installed_is_not_offered() -> None:
    some = AllowList([Entry(path="/bin/sh"), Entry(path="/nowhere/tool")])
    assert (some.offered(), some.missing(), some.distrusted()) == (["sh"], ["tool"], [])
    with pytest.raises(TaskFailure, match=r"'tool' does not run on this node: .* is not there"):
        some.check("tool", [])


def test_a_bare_command_selects_the_entry_whose_path_has_that_name() -> None:
    some = AllowList([Entry(path="/bin/sh"), Entry(path="/bin/cat")])
    assert some.check("sh", []).path == some.check("/bin/sh", []).path == "/bin/sh"
    for other in ("./sh", "bin/sh", "/usr/bin/../bin/sh", "SH", "sh ", ""):
        with pytest.raises(TaskFailure, match="not on the allow-list; choose from cat, sh"):
            some.check(other, [])


def test_the_first_entry_that_accepts_decides_the_caps() -> None:
    mine = Entry(path="/bin/cat", args=[["a"]], max_runtime_s=1)
    theirs = Entry(path="/bin/cat", args=[["."]], max_runtime_s=2)
    some = AllowList([mine, theirs])
    assert [some.check("cat", [name]).max_runtime_s for name in "ab"] == [1, 2]
    with pytest.raises(TaskFailure, match="Argument 2 of cat"):
        some.check("cat", ["a", "cc"])


SPOILED: dict[str, Callable[[Path], object]] = {
    "the file is writable by all": lambda file: file.chmod(0o757),
    "the file is writable by its group": lambda file: file.chmod(0o775),
    "its folder is writable by others": lambda file: file.parent.chmod(0o777),
    "a folder above is writable by others": lambda file: file.parent.parent.chmod(0o777),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_program_that_others_can_write_is_not_offered_and_the_log_says_why(
    program: Path, how: str
) -> None:
    """Contract: C5."""
    some = AllowList([Entry(path=str(program))])
    assert some.offered() == ["tool"]
    SPOILED[how](program)
    assert some.offered() == [] and some.missing() == []
    assert "chmod go-w" in some.distrusted()[0]
    with pytest.raises(TaskFailure, match=r"'tool' does not run on this node: .* not trusted"):
        some.check("tool", [])


def test_a_link_is_only_as_good_as_the_folder_it_lies_in(program: Path, tmp_path: Path) -> None:
    open_folder = tmp_path / "open"
    open_folder.mkdir()
    for name, target in (("direct", Path("/bin/cat")), ("tool", program)):
        (open_folder / name).symlink_to(target)
        assert untrusted(open_folder / name) is None
    indirect = tmp_path / "bin" / "indirect"
    indirect.symlink_to("../open/direct")
    assert untrusted(indirect) is None
    open_folder.chmod(0o777)
    for link in (open_folder / "direct", indirect):
        assert "can be written by others" in str(untrusted(link))
    open_folder.chmod(0o1777)
    assert untrusted(indirect) is None


def test_a_program_of_another_user_is_not_trusted(program: Path) -> None:
    if os.getuid() == 0:
        os.chown(program, 65534, 65534)
        assert "belongs to another user" in str(untrusted(program))
    else:
        assert untrusted(Path("/bin/sh")) is None  # root's


def test_the_plan_carries_what_shows_that_a_program_was_replaced(
    program: Path, tmp_path: Path
) -> None:
    workspace = Workspace.create(tmp_path, "t", 1)
    runner = CliRunner(AllowList([Entry(path=str(program), args=[["a"]])]))
    task = FakeControl().give(params={"command": "tool", "args": ["a"]})
    plan = runner.plan(task, workspace)
    assert plan.argv == (str(program), "a") and plan.shown == (program,)
    assert plan.identity == identity(program)
    copy = program.with_name("copy")
    copy.write_bytes(program.read_bytes())
    copy.chmod(0o755)
    copy.rename(program)
    assert plan.identity != identity(program)
    again = runner.plan(task, workspace)
    program.write_text("#!/bin/sh\nexit 1\n")
    assert again.identity != identity(program)


def test_a_file_argument_is_resolved_inside_the_workspace(tmp_path: Path) -> None:
    workspace = Workspace.create(tmp_path, "t", 1)
    (workspace.work / "out").symlink_to("/etc")
    (workspace.work / "in").symlink_to("sub/a")
    runner = CliRunner(AllowList([Entry(path="/bin/cat", args=[["--x=.+"], ["(?!-).+"]])]))
    for good in ("in", "sub/b", "--x=in"):
        assert runner.plan(FakeControl().give(params={"command": "cat", "args": [good]}), workspace)
    for bad in ("out/passwd", "out", "--x=out/passwd"):
        with pytest.raises(TaskFailure, match=r"Argument 1 of cat.* leads out") as refused:
            runner.plan(FakeControl().give(params={"command": "cat", "args": [bad]}), workspace)
        assert refused.value.rc == "E_DENY"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("path: /bin/sh", "holds no list"),
        ("- path: sh", r"own.yaml:1: entry 1: path"),
        ("- {path: /bin/sh, args: [['(']]}", "no regular expression"),
        ("- {path: /bin/sh, args: [[a, b, c]]}", r"args\.0"),
        ("- path: /bin/sh\n  shell: true", "own.yaml:2: entry 1: shell.*known here are args, max"),
        ("[", "no valid YAML"),
        ("- path: /bin/sh\n- path: /bin/cat\n  args:\n  - [a]\n  - [b, '(c+)*']",
         r"own.yaml:5: entry 2: args\.1\.1: '\(c\+\)\*' could take too long"),
    ],
)  # fmt: skip
def test_a_broken_file_is_named_with_line_and_field(
    tmp_path: Path, text: str, problem: str
) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(ConfigError, match=problem) as error:
        AllowFolders([tmp_path])
    assert "own.yaml" in error.value.message
