"""The command line as tests run it: in this process, its words and its exit code caught."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from instantstyle import cli


class CommandResult(NamedTuple):
    """What a command said and how it ended."""

    code: int
    out: str
    err: str


Command = Callable[..., CommandResult]


def command_runner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """A function from a command's arguments to what it said."""

    def run(*arguments: str | Path) -> CommandResult:
        monkeypatch.setattr(sys, "argv", ["instantstyle", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert isinstance(ended.value.code, int)
        shown = capsys.readouterr()
        return CommandResult(ended.value.code, shown.out, shown.err)

    return run
