"""`generate --server`: the files are those drawn here, and what goes wrong is a sentence."""

import json
import socket
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from cli_runner import Command, command_runner
from instantstyle.cli.server_client import StudioClient
from instantstyle.errors import InputError, InstantStyleError
from instantstyle.request import Request
from instantstyle.serve.studio import Studio
from studio_server import live_server

TOKEN = "a-secret-of-the-tests"
DRAWING = ("generate", "a cat", "--style", "neon", "--seed", "3", "--steps", "3", "--count", "2")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line as a function."""
    return command_runner(monkeypatch, capsys)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[str, Studio]]:
    """A studio that wants a token."""
    with live_server(tmp_path_factory.mktemp("studio"), token=TOKEN) as held:
        yield held


def test_the_same_files_as_drawn_here(
    command: Command, server: tuple[str, Studio], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here.png", tmp_path / "there.png"
    assert command(*DRAWING, "--out", here).code == 0
    monkeypatch.setenv("INSTANTSTYLE_SERVER", server[0])
    drawn = command(*DRAWING, "--token", TOKEN, "--out", there)
    assert drawn.code == 0, drawn.err
    assert drawn.out.splitlines() == [str(tmp_path / f"there-{i}.png") for i in (1, 2)]
    for i in (1, 2):
        assert (tmp_path / f"there-{i}.png").read_bytes() == (tmp_path / f"here-{i}.png").read_bytes()


def test_json_and_a_file_that_remembers_nothing(command: Command, server: tuple[str, Studio], tmp_path: Path) -> None:
    out = tmp_path / "cat.png"
    drawn = command(
        "generate", "a cat", "--steps", "2", "--no-metadata", "--json", "--server", server[0], "--token", TOKEN,
        "--out", out,
    )  # fmt: skip
    told = json.loads(drawn.out)
    assert told["paths"] == [str(out)]
    assert told["server"] == server[0]
    assert isinstance(told["request"]["seed"], int)
    assert b"instantstyle" not in out.read_bytes()


@pytest.mark.parametrize(
    ("flags", "said", "code"),
    [
        (("--model", "sdxl"), "--model is about the model", 2),
        (("--lora", "ink.safetensors"), "--lora is about the model", 2),
        (("--token", "the-wrong-token"), "INSTANTSTYLE_TOKEN", 2),
        (("--server", "ftp://127.0.0.1"), "the address of a studio", 2),
        (("--steps", "300"), "this server takes at most 200", 2),
    ],
)
def test_what_is_refused(
    command: Command, server: tuple[str, Studio], tmp_path: Path, flags: tuple[str, ...], said: str, code: int
) -> None:
    out = tmp_path / "cat.png"
    told = command("generate", "a cat", "--server", server[0], "--token", TOKEN, "--out", out, *flags)
    assert (told.code, told.out) == (code, ""), told.err
    assert said in told.err
    assert not out.exists()


def test_a_server_that_is_not_there(command: Command, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    told = command("generate", "a cat", "--server", f"127.0.0.1:{port}", "--out", tmp_path / "cat.png")
    assert told.code == 1
    assert "cannot be reached" in told.err
    assert "instantstyle serve" in told.err


def test_an_interrupt_cancels_the_job_there(server: tuple[str, Studio]) -> None:
    def interrupt(step: int, steps: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        StudioClient(server[0], TOKEN).draw(Request("a dog", steps=200), progress=interrupt)
    (job,) = server[1].store.jobs(limit=1)
    until = time.monotonic() + 30
    while server[1].row(job.id).state != "cancelled":  # at its next step
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_stream_that_breaks_is_taken_up_again(server: tuple[str, Studio], monkeypatch: pytest.MonkeyPatch) -> None:
    client, asked = StudioClient(server[0], TOKEN), list[str]()
    events = client._events  # pyright: ignore[reportPrivateUsage]

    def breaking(job: str, last: str):
        asked.append(last)
        for number, event in enumerate(events(job, last)):
            yield event
            if number == 0 and len(asked) == 1:
                raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(client, "_events", breaking)
    assert len(client.draw(Request("a dog", steps=3, seed=1)).images) == 1
    assert len(asked) == 2
    assert asked[0] == ""
    assert asked[1].isdigit()


def test_an_address(server: tuple[str, Studio]) -> None:
    assert StudioClient("localhost:7860/").address == "http://localhost:7860"
    with pytest.raises(InputError, match="the address of a studio"):
        StudioClient("http://")
    with pytest.raises(InstantStyleError, match="INSTANTSTYLE_TOKEN"):
        StudioClient(server[0]).family()
    assert StudioClient(server[0], TOKEN).family() == "emoji"
