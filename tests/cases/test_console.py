"""A console that fails after the work is done: exit codes say what happened to the picture, and nothing is lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tiny_models
from instantstyle.cli.output import print_done, print_result, robust_streams
from instantstyle.errors import OutputError

NAME = "кот-猫.png"


def run(
    folder: Path, *arguments: str | Path, stdout: str | None = None, stderr: str | None = None, **env: str
) -> tuple[int, bytes, bytes]:
    """The command in a process of its own: exit code, stdout, stderr; the streams may be files."""
    command = [sys.executable, "-m", "instantstyle", *map(str, arguments)]
    with open(stdout or os.devnull, "wb") as out, open(stderr or os.devnull, "wb") as err:  # noqa: PTH123
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, **env},
            stdout=out if stdout else subprocess.PIPE,
            stderr=err if stderr else subprocess.PIPE,
            check=False,
        )
    return done.returncode, done.stdout or b"", done.stderr or b""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a picture of a small model, whose name few consoles can encode."""
    here = tmp_path_factory.mktemp("console")
    draw = ("generate", "a cat", "--model", tiny_models.folder("emoji"), "--steps", "1", "--seed", "1", "--out", NAME)
    code, out, err = run(here, *draw, PYTHONIOENCODING="cp1252")
    assert (code, out.decode("ascii").strip()) == (0, r"\u043a\u043e\u0442-\u732b.png"), err
    assert (here / NAME).is_file()
    return here


def test_again_is_about_the_picture_whatever_the_console_encodes(folder: Path) -> None:
    for encoding in ("cp1252", "ascii", "utf-8"):
        code, out, err = run(folder, "again", NAME, PYTHONIOENCODING=encoding)
        assert code == 0, err
        assert b"identical" in out


@pytest.mark.slow  # failed once beside other tests; the cause is not known yet
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_full_disk_behind_the_console_loses_no_picture(stream: str, folder: Path) -> None:
    (folder / "new.png").unlink(missing_ok=True)
    code, *_ = run(folder, "again", NAME, "--out", "new.png", **{stream: "/dev/full"})
    assert code == 0
    assert (folder / "new.png").is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_command_whose_output_is_all_it_makes_fails_with_it(folder: Path) -> None:
    code, _, err = run(folder, "again", NAME, "--as-request", stdout="/dev/full")
    assert code == 1
    assert b"error: cannot write to standard output" in err


def test_json_is_ascii_and_survives_every_console(folder: Path) -> None:
    code, out, _ = run(folder, "again", NAME, "--json", "--out", "ж.png", PYTHONIOENCODING="ascii")
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
