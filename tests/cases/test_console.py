"""A console that fails after the work is done: exit codes say what happened to the picture, and nothing is lost."""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Literal, TextIO, get_args

import pytest

import tiny_models
from instantstyle import cli
from instantstyle.cli.output import print_done, print_result, robust_streams
from instantstyle.errors import OutputError

NAME = "кот-猫.png"
FULL = Path("/dev/full")
needs_full_disk = pytest.mark.skipif(not FULL.exists(), reason="there is no device that is always full")


@contextlib.contextmanager
def console(stdout: Path, stderr: Path, encoding: str) -> Generator[tuple[TextIO, TextIO]]:
    """Standard streams as Python opens them over files, with the encoding of PYTHONIOENCODING."""
    before = sys.stdout, sys.stderr
    opened = [stdout.open("wb"), stderr.open("wb")]
    sys.stdout = io.TextIOWrapper(opened[0], encoding)
    sys.stderr = io.TextIOWrapper(opened[1], encoding, "backslashreplace", line_buffering=True)
    try:
        yield sys.stdout, sys.stderr
    finally:
        sys.stdout, sys.stderr = before


Stream = Literal["stdout", "stderr"]


def run(
    folder: Path, *arguments: str | Path, full: Stream | None = None, encoding: str = "utf-8"
) -> tuple[int, bytes, bytes]:
    """The command in this process, one stream on a full disk: exit code as its own process has it, stdout, stderr.

    Python flushes both streams when it ends, and exits with 120 if either refuses.
    """
    out, err = (FULL if full == name else folder / name for name in get_args(Stream))
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.chdir(folder),
        console(out, err, encoding) as streams,
    ):
        patch.setattr(sys, "argv", ["instantstyle", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    code = ended.value.code
    assert isinstance(code, int)
    for stream in streams:
        try:
            stream.close()
        except OSError:
            code = 120
    return code, b"" if out == FULL else out.read_bytes(), b"" if err == FULL else err.read_bytes()


def run_apart(folder: Path, *arguments: str | Path, full: Stream) -> int:
    """The exit code of the command in a process of its own, one stream on a full disk."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "instantstyle", *map(str, arguments)]
    with FULL.open("wb") as disk:
        out, err = (disk if full == name else subprocess.DEVNULL for name in get_args(Stream))
        return subprocess.run(command, cwd=folder, env=environment, stdout=out, stderr=err, check=False).returncode


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a picture of a small model, whose name few consoles can encode."""
    here = tmp_path_factory.mktemp("console")
    draw = ("generate", "a cat", "--model", tiny_models.folder("emoji"), "--steps", "1", "--seed", "1", "--out", NAME)
    code, out, err = run(here, *draw, encoding="cp1252")
    assert (code, out.decode("ascii").strip()) == (0, r"\u043a\u043e\u0442-\u732b.png"), err
    assert (here / NAME).is_file()
    return here


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_again_is_about_the_picture_whatever_the_console_encodes(encoding: str, folder: Path) -> None:
    code, out, err = run(folder, "again", NAME, encoding=encoding)
    assert code == 0, err
    assert b"identical" in out


@needs_full_disk
@pytest.mark.parametrize("stream", get_args(Stream))
def test_a_full_disk_behind_the_console_loses_no_picture(stream: Stream, folder: Path) -> None:
    (folder / "new.png").unlink(missing_ok=True)
    code, _, err = run(folder, "again", NAME, "--out", "new.png", full=stream)
    assert code == 0, err
    assert (folder / "new.png").is_file()


@needs_full_disk
def test_a_process_of_its_own_ends_as_in_this_one(folder: Path) -> None:
    """A light command: one that writes to stderr what nobody needs, and to stdout what it is run for."""
    command = ("again", NAME, "--as-request")
    assert run(folder, *command, full="stderr")[0] == run_apart(folder, *command, full="stderr") == 0
    assert run(folder, *command, full="stdout")[0] == run_apart(folder, *command, full="stdout") == 1


@needs_full_disk
def test_a_command_whose_output_is_all_it_makes_fails_with_it(folder: Path) -> None:
    code, _, err = run(folder, "again", NAME, "--as-request", full="stdout")
    assert code == 1
    assert b"error: cannot write to standard output" in err


def test_json_is_ascii_and_survives_every_console(folder: Path) -> None:
    code, out, _ = run(folder, "again", NAME, "--json", "--out", "ж.png", encoding="ascii")
    assert code == 0
    assert json.loads(out)["written"] == "ж.png"


@pytest.mark.parametrize(
    ("encoding", "text", "expected"),
    [
        ("cp1252", "кот é", rb"\u043a\u043e\u0442 " + "é".encode("cp1252")),
        ("ascii", "😀", rb"\U0001f600"),
        ("utf-8", "кот", "кот".encode()),
        ("utf-8", "a\udcff.png", b"a\xff.png"),
        ("latin-1", "a\udcff к", b"a\xff \\u043a"),
        ("utf-8", "\ud800", rb"\ud800"),
    ],
)
def test_what_cannot_be_encoded_is_escaped(
    encoding: str, text: str, expected: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "out").open("w", encoding=encoding) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with robust_streams():
            print_result(text)
    assert (tmp_path / "out").read_bytes().strip() == expected


def test_a_closed_stdout_is_a_note_after_the_work_and_an_error_instead_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    print_done("cat.png")
    assert "it would have said: cat.png" in capsys.readouterr().err
    with pytest.raises(OutputError, match="it is closed"):
        print_result("cat.png")
