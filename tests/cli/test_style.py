"""`instantstyle style`: cards are made, listed, shown and used by name; whatever is wrong is a sentence."""

import json
from pathlib import Path

import pytest
from PIL import Image

import tiny_models
from cli_runner import Command, command_runner
from instantstyle.request import recall
from instantstyle.request.style_card import SUFFIX, StyleCard, read_card


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """The command line as a function, in an own folder with two pictures and a folder for one's own cards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INSTANTSTYLE_STYLES", str(tmp_path / "own"))
    tiny_models.picture(1).save("one.png")
    tiny_models.picture(2).save("two.png")
    return command_runner(monkeypatch, capsys)


def test_a_card_is_made_shown_listed_and_used_by_name(command: Command) -> None:
    small = tiny_models.folder("emoji")
    flags = ("--content", "dog", "--licence", "CC0-1.0", "--credit", "me", "--model", small)
    made = command("style", "make", "one.png", "two.png", "--name", "ink", *flags)
    assert (made.code, made.out.strip()) == (0, str(Path.cwd() / "own" / f"ink{SUFFIX}"))
    shown = json.loads(command("style", "show", "ink", "--json", "--out", "ink.png").out)
    assert (shown["name"], shown["content"], shown["pictures"], shown["licence"]) == ("ink", "dog", 2, "CC0-1.0")
    with Image.open("ink.png") as sheet:
        assert sheet.width > 2 * 128
    listed = {row["name"]: row for row in json.loads(command("style", "list", "--json").out)}
    assert (listed["ink"]["shipped"], listed["neon"]["shipped"]) == (False, True)
    assert "ink            yours, CC0-1.0" in command("style", "list").out
    drawn = command("generate", "a cat", "--style", "ink", "--model", small, "--steps", "1", "--out", "cat.png")
    assert (drawn.code, drawn.out) == (0, "cat.png\n"), drawn.err
    remembered = recall("cat.png").request.references[0].image
    assert isinstance(remembered, StyleCard)
    (Path("own") / f"ink{SUFFIX}").unlink()
    assert command("again", "cat.png").code == 0


def test_a_card_for_another_model_is_refused_until_looked_at_anew(command: Command) -> None:
    small = tiny_models.folder("emoji")
    draw = ("generate", "a cat", "--style", "neon", "--model", small, "--steps", "1", "--out", "cat.png")
    refused = command(*draw)
    assert refused.code == 1
    assert "another image encoder" in refused.err
    assert not Path("cat.png").exists()
    assert command(*draw, "--re-embed").code == 0
    made = command("style", "make", "neon", "--model", small, "--out", f"both{SUFFIX}")
    assert made.code == 0, made.err
    both = read_card(f"both{SUFFIX}")
    assert (both.name, both.licence, len(both.sights)) == ("neon", "CC0-1.0", 2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("make", "none.png"), "there is no picture at 'none.png'"),
        (("make", "one.png", "neon"), "not of both"),
        (("make", "one.png", "--name", "../up"), "cannot be called"),
        (("make", "one.png", "--out", "ink.safetensors"), "must end so"),
        (("make", "one.png", "--out", f"no/ink{SUFFIX}"), "there is no folder"),
        (("show", "neom"), "did you mean 'neon'"),
        (("show", f"none{SUFFIX}"), "there is no style card"),
    ],
)
def test_what_is_wrong_is_a_sentence(command: Command, arguments: tuple[str, ...], said: str) -> None:
    ended = command("style", *arguments)
    assert ended.code in (1, 2)
    assert ended.err.startswith("error: ")
    assert said in ended.err
    assert not list(Path.cwd().rglob(f"*{SUFFIX}"))


def test_a_damaged_card_of_ones_own_is_listed_as_such(command: Command) -> None:
    Path("own").mkdir()
    (Path("own") / f"bad{SUFFIX}").write_bytes(b"nothing")
    listed = command("style", "list")
    assert (listed.code, "damaged" in listed.out, "neon" in listed.out) == (0, True, True)
    assert command("style", "show", "bad").code == 1
