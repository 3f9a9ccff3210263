"""`instantstyle serve`: its help, and what it refuses before anything listens."""

import socket
import sys
from pathlib import Path

import pytest

from cli_runner import Command, command_runner


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line as a function."""
    return command_runner(monkeypatch, capsys)


def test_help_has_examples(command: Command) -> None:
    told = command("serve", "--help")
    assert told.code == 0
    for flag in ("--host", "--port", "--model", "--adapter", "--token", "--data", "instantstyle serve --model sdxl"):
        assert flag in told.out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--host", "0.0.0.0"), "a --token is needed"),
        (("--host", "192.168.0.9"), "a --token is needed"),
        (("--token", "short"), "at least 8"),
        (("--port", "99999"), "--port"),
    ],
)
def test_what_is_refused(command: Command, flags: tuple[str, ...], said: str, tmp_path: Path) -> None:
    told = command("serve", "--no-open", "--data", tmp_path, *flags)
    assert told.code == 2
    assert said in told.err
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_taken(command: Command, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        told = command("serve", "--no-open", "--data", tmp_path, "--port", str(held.getsockname()[1]))
    assert told.code == 2
    assert "cannot listen on 127.0.0.1" in told.err


def test_without_the_extra_it_says_how_to_install(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in sys.modules if name.startswith(("instantstyle.serve", "fastapi"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    told = command("serve", "--no-open", "--data", tmp_path)
    assert told.code == 1
    assert "pip install 'instantstyle[serve]'" in told.err
