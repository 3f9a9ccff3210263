"""The command line does what it says: pictures that remember, made again to the pixel; light, quiet and atomic."""

import inspect
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

import tiny_models
from cli_runner import Command, CommandResult, command_runner
from instantstyle import cli
from instantstyle.cli.again import DIFFERENT, IDENTICAL, UNDECIDED
from instantstyle.cli.generate import generate_command
from instantstyle.methods import METHODS
from instantstyle.request import Request, StyleReference, recall
from instantstyle.sampling import Engine
from instantstyle.utils import images


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """The command line as a function, run in an own folder that holds `ref.png` and `other.png`."""
    monkeypatch.chdir(tmp_path)
    tiny_models.picture(1).save("ref.png")
    tiny_models.picture(2).save("other.png")
    return command_runner(monkeypatch, capsys)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model of the built-in's layout."""
    return tiny_models.emoji(tmp_path_factory.mktemp("models") / "emoji")


@pytest.fixture
def draw(command: Command, small: Path) -> Command:
    """`instantstyle generate "a cat" --seed 7 --out cat.png` of two steps with more flags."""

    def run(*flags: str | Path) -> CommandResult:
        return command("generate", "a cat", "--model", small, "--steps", "2", "--seed", "7", "--out", "cat.png", *flags)

    return run


def opened(path: str | Path) -> Image.Image:
    """A picture with what its file says of it, the file closed again."""
    with Image.open(path) as picture:
        picture.load()
        return picture


def pixels(path: str | Path) -> np.ndarray[Any, Any]:
    return np.asarray(opened(path))


def test_a_picture_is_made_again_from_itself_alone(draw: Command, command: Command) -> None:
    done = draw("--style", "ref.png", "--content", "dog")
    assert (done.code, done.out) == (0, "cat.png\n")
    assert "s a step" in done.err
    Path("ref.png").unlink()
    again = command("again", "cat.png", "--out", "again.png")
    assert again.code == 0, again
    assert again.out.splitlines() == ["cat.png: identical, all 4,096 pixels", "again.png"]
    assert np.array_equal(pixels("cat.png"), pixels("again.png"))
    assert recall("cat.png") == recall("again.png")


def test_a_picture_changed_by_hand_is_told(draw: Command, command: Command) -> None:
    draw()
    with Image.open("cat.png") as made:
        made.load()
        info = PngImagePlugin.PngInfo()
        info.add_itxt(images.METADATA_KEY, recall("cat.png").to_json())
        red, green, blue = cast("tuple[int, int, int]", made.getpixel((3, 4)))
        made.putpixel((3, 4), (red, green, blue ^ 0b1000))
        made.save("cat.png", pnginfo=info)
    again = command("again", "cat.png")
    assert (again.code, again.out) == (DIFFERENT, "cat.png: differs in 1 of 4,096 pixels, by at most 8 of 255\n")
    found = json.loads(command("again", "cat.png", "--json").out)
    assert (found["identical"], found["differing"], found["largest"]) == (False, 1, 8)


def test_a_field_that_0_1_0_remembered_and_did_not_use_is_named_and_left_out(draw: Command, command: Command) -> None:
    draw("--style", "ref.png", "--method", "swapped")
    held = recall("cat.png")
    remembered = held.model_copy(update={"request": held.request.model_copy(update={"combine": "average"})})
    with Image.open("cat.png") as made:
        images.write_png(made.convert("RGB"), "cat.png", remembered.to_json(), None)
    again = command("again", "cat.png")
    assert (again.code, again.out) == (IDENTICAL, "cat.png: identical, all 4,096 pixels\n")
    assert "the picture remembers combine, which method 'swapped' does not use: left out" in again.err


def test_an_adapter_or_a_method_without_a_reference_is_told(draw: Command) -> None:
    refused = draw("--adapter", "some.safetensors")
    assert (refused.code, "--adapter says something of a reference, and there is none" in refused.err) == (2, True)
    warned = draw("--method", "ip-adapter")
    assert (warned.code, "warning: method 'ip-adapter' does nothing without a reference" in warned.err) == (0, True)


def test_again_notices_other_weights(draw: Command, command: Command, tmp_path: Path) -> None:
    draw()
    other = tiny_models.emoji(tmp_path / "other", seed=1)
    again = command("again", "cat.png", "--model", other)
    assert again.code == UNDECIDED
    assert "note: the picture was made with weights" in again.err
    assert again.out.rstrip().endswith("whether it should cannot be told")
    assert json.loads(command("again", "cat.png", "--model", other, "--json").out)["verdict"] == "cannot be told"


def test_the_exit_codes_of_again_are_documented(draw: Command, command: Command) -> None:
    text = command("again", "--help").out
    for code, words in ((IDENTICAL, "identical"), (1, "failed"), (2, "usage"), (DIFFERENT, "not identical")):
        assert any(line.split()[:1] == [str(code)] and words in line for line in text.splitlines()), code
    assert f"  {UNDECIDED}  made again, it differs" in text
    draw()
    assert command("again", "cat.png").code == IDENTICAL
    refused = command("again", "cat.png", "--as-request", "--out", "new.png")
    assert (refused.code, "--as-request makes no picture" in refused.err) == (2, True)


def test_each_of_several_pictures_is_made_again(draw: Command, command: Command) -> None:
    done = draw("--style", "ref.png", "--count", "3")
    assert done.out.split() == ["cat-1.png", "cat-2.png", "cat-3.png"]
    assert not Path("cat.png").exists()
    assert not np.array_equal(pixels("cat-1.png"), pixels("cat-3.png"))
    assert command("again", "cat-3.png").code == 0


def test_a_picture_is_made_again_after_the_models_presets_changed(command: Command, small: Path) -> None:
    shutil.copytree(small, "own")
    ask = ("generate", "a cat", "--model", "own", "--style", "ref.png", "--steps", "2", "--seed", "7", "--out")
    assert command(*ask, "cat.png").code == 0
    Path("own/presets.json").write_text(json.dumps({"style": {"mid": 5.0, "down": 5.0}}))
    assert command(*ask, "other.png").code == 0
    assert not np.array_equal(pixels("cat.png"), pixels("other.png")), "they would be told apart"
    assert command("again", "cat.png").code == 0
    assert command("again", "other.png").code == 0


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")  # diffusers' Euler
def test_flags_pair_up_and_become_the_request(draw: Command) -> None:
    flags = "--style ref.png --style other.png --weight 0.5 --weight 0.7 --content-weight 0.25 --method instantstyle"
    more = "--plan up.0.1=1.2,mid=0.5 --window 0.1 0.9 --size 96x64 --guidance 3 --negative dog --sampler euler"
    last = "--subtraction masked --combine average --fit crop --count 1 --dtype float32 --device cpu"
    done = draw("--content", "dog", "--content", "house", *f"{flags} {more} {last} --guidance-rescale 0.4".split())
    assert done.code == 0, done
    memory = recall("cat.png")
    assert memory.request == Request(
        "a cat",
        "dog",
        [StyleReference("ref.png", "dog", 0.25, 0.5), StyleReference("other.png", "house", 0.25, 0.7)],
        "instantstyle",
        "up.0.1=1.2,mid=0.5",
        (0.1, 0.9),
        size=(96, 64),
        steps=2,
        guidance=3,
        sampler="euler",
        seed=7,
        subtraction="masked",
        combine="average",
        fit="crop",
        guidance_rescale=0.4,
    )
    assert opened("cat.png").size == (96, 64)


def test_several_contents_of_one_reference(draw: Command) -> None:
    assert draw("--style", "ref.png", "--content", "dog", "--content", "house").code == 0
    assert recall("cat.png").request.references[0].content_phrases == ("dog", "house")


def test_every_field_has_a_flag_that_shows_its_default(command: Command) -> None:
    parameters = inspect.signature(generate_command).parameters
    assert set(Request.model_fields) - {"controls", "init", "references"} <= set(parameters)
    text = " ".join(command("generate", "--help").out.partition("Options:")[2].split())
    for model in (Request, StyleReference):
        for name in set(model.model_fields) & set(parameters) - {"prompt", "content"}:
            default: Any = model.model_fields[name].default
            if default not in (None, "", {}):
                values = cast("tuple[object, ...]", default if isinstance(default, tuple) else (default,))
                shown = " ".join(str(value).removesuffix(".0") for value in values)
                entry = re.split(r" --[a-z-]+ <", text[text.index(f"--{name.replace('_', '-')} <") :])[0]
                assert f"[default: ({shown})]" in entry, name


def test_the_best_of_several_seeds_is_kept(draw: Command, command: Command) -> None:
    told = draw("--style", "ref.png", "--content", "dog", "--best-of", "3", "--json")
    assert told.code == 0, told.err
    assert "best of 3 by the meter" in told.err
    said = json.loads(told.out)
    scores = [each["score"] for each in said["best_of"]]
    assert scores == sorted(scores, reverse=True)
    assert {each["seed"] for each in said["best_of"]} == {7, 8, 9}
    assert recall("cat.png").request.seed == said["best_of"][0]["seed"] == said["request"]["seed"]
    assert command("again", "cat.png", "--model", said["model"]).code in (IDENTICAL, UNDECIDED)
    assert draw("--style", "ref.png", "--best-of", "3", "--count", "2").code == 0
    kept = [recall(f"cat-{i}.png").request for i in (1, 2)]
    assert {request.count for request in kept} == {1}
    assert len({request.seed for request in kept}) == 2


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--best-of", "3"), "give --style"),
        (("--style", "ref.png", "--best-of", "2", "--count", "3"), "--count 3 is more than the 2"),
        (("--style", "ref.png", "--best-of", "0"), "--best-of"),
    ],
)
def test_what_best_of_refuses(draw: Command, flags: tuple[str, ...], said: str) -> None:
    told = draw(*flags)
    assert told.code == 2
    assert said in told.err
    assert not Path("cat.png").exists()


def test_best_of_is_not_for_a_server(command: Command) -> None:
    there = ("--server", "http://127.0.0.1:9")
    told = command("generate", "a cat", "--style", "ref.png", "--best-of", "2", "--out", "cat.png", *there)
    assert (told.code, "ranks what is drawn here" in told.err) == (2, True)


def test_help_shows_examples_and_every_method(command: Command) -> None:
    text = command("generate", "--help").out
    assert 'instantstyle generate "a cat" --style reference.png --out cat.png' in text
    assert all(method in text for method in METHODS)


def test_json_is_for_programs(draw: Command) -> None:
    said = json.loads(draw("--style", "ref.png", "--json").out)
    assert said["paths"] == ["cat.png"]
    assert Request.from_fields(said["request"]) == recall("cat.png").request
    assert said["identity"] == recall("cat.png").identity


def test_without_metadata_the_file_says_nothing(draw: Command) -> None:
    assert draw("--style", "ref.png", "--no-metadata").code == 0
    assert opened("cat.png").info == {}


def test_the_line_that_others_read(draw: Command) -> None:
    draw()
    line = opened("cat.png").info["parameters"]
    assert line.startswith("a cat\nSteps: 2, Sampler: ddim, CFG scale: 3, Seed: 7, Size: 64x64, Model: ")


def test_an_animated_reference_is_its_first_frame(draw: Command) -> None:
    tiny_models.picture(1).save("moving.gif", save_all=True, append_images=[tiny_models.picture(2)])
    assert draw("--style", "moving.gif").code == 0
    kept = recall("cat.png").request.references[0].image.open()
    assert kept.tobytes() == opened("moving.gif").convert("RGB").tobytes()


@pytest.mark.parametrize("when", ["stepping", "writing"])
def test_an_interruption_leaves_no_file(when: str, draw: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    if when == "stepping":
        monkeypatch.setattr(Engine, "step", interrupted)
    else:
        monkeypatch.setattr(os, "fsync", interrupted)
    before = sorted(Path().iterdir())
    done = draw()
    assert done.code in (1, 130)  # 1 with versions of typer before 0.20
    assert "Traceback" not in done.err
    assert sorted(Path().iterdir()) == before


@pytest.mark.slow
def test_ctrl_c_for_real(small: Path, tmp_path: Path) -> None:
    """In a process of its own, once it says that it is at a step."""
    words = ["generate", "a cat", "--model", str(small), "--steps", "1000", "--count", "16", "--out", "cat.png"]
    code = """if True:
        import sys
        from instantstyle import cli
        from instantstyle.sampling.engine import Engine

        step = Engine.step

        def first_step(engine):
            print("stepping", file=sys.stderr, flush=True)
            Engine.step = step
            return step(engine)

        Engine.step = first_step
        cli.main()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr
    assert "stepping\n" in iter(process.stderr.readline, "")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode in (1, 130)
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_our_own_mistakes_are_sentences_too(draw: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(Engine, "submit", broken)
    done = draw()
    assert done.code == 1
    assert done.err.startswith("error: ZeroDivisionError: division by zero (")
    monkeypatch.setenv("INSTANTSTYLE_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_doctor_tells_what_a_bug_report_needs(command: Command, small: Path) -> None:
    import hashlib

    import torch

    report = json.loads(command("doctor", "--model", small, "--json").out)
    assert report["versions"]["torch"] == torch.__version__
    assert (report["threads"], report["dtype"]) == (
        torch.get_num_threads(),
        "float32" if report["device"] == "cpu" else report["dtype"],
    )
    hashes = {file["name"]: file["sha256"] for file in report["model"]["files"]}
    weights = small / "unet/diffusion_pytorch_model.safetensors"
    assert hashes["unet/diffusion_pytorch_model.safetensors"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    shown = command("doctor", "--model", small)
    assert shown.code == 0
    assert hashes["ip_adapter.safetensors"][:16] in shown.out


def test_help_is_light() -> None:
    """None of what takes long is imported, and it takes under 0.3 s.

    Of the processor, at best of five: when cores are shared the wall clock measures the others.
    """
    code = "import sys; sys.argv[1:] = ['--help']; from instantstyle.cli import main"
    then = "try: main()\nexcept SystemExit: print(sorted(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", f"{code}\n{then}"], capture_output=True, text=True, check=True).stdout
    assert all(name in shown for name in ("generate", "again", "doctor"))
    for heavy in ("torch", "diffusers", "transformers", "numpy", "PIL", "pydantic"):
        assert f"'{heavy}'" not in shown
    taken: list[float] = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "instantstyle", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(taken) < 0.3


def test_invert_draws_a_table_and_a_figure(command: Command, small: Path) -> None:
    flags = ("--model", small, "--steps", "2,3", "--guidance", "1,2", "--prompt", "a cat", "--json")
    done = command("invert", "ref.png", "--out", "fig.png", *flags)
    assert done.code == 0, done
    said = json.loads(done.out)
    assert [(row["guidance"], row["steps"]) for row in said["reconstructions"]] == [(1, 2), (1, 3), (2, 2), (2, 3)]
    assert opened("fig.png").size[0] > 4 * 128
    refused = command("invert", "ref.png", "--out", "fig.png", "--steps", "2,many")
    assert refused.code == 2
    assert "--steps takes numbers from 1 to 1000 with commas between, not '2,many'" in refused.err
