"""Every example and every block of code in the README runs, on the built-in model and on a small random SDXL."""

import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tiny_models
from cli_runner import command_runner
from instantstyle.loading import load
from instantstyle.weights import hub

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with the README's `ref.png` in it."""
    shutil.copy(ROOT / "examples/references/dog-neon.png", tmp_path / "ref.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("example", "written"), [("first", "first.png"), ("plans", "plans.png"), ("together", "together-2.png")]
)
def test_an_example_runs(example: str, written: str, workdir: Path) -> None:
    runpy.run_path(str(ROOT / f"examples/{example}.py"), run_name="__main__")
    assert (workdir / "out" / written).stat().st_size > 1000


def test_the_control_example_runs_or_says_what_is_missing(workdir: Path) -> None:
    if "canny" in load().controls:
        runpy.run_path(str(ROOT / "examples/follow.py"), run_name="__main__")
        assert (workdir / "out/follow.png").stat().st_size > 1000
    else:
        with pytest.raises(SystemExit, match=r"has no ControlNet in this installation: see docs/control\.md"):
            runpy.run_path(str(ROOT / "examples/follow.py"), run_name="__main__")


@pytest.mark.slow
def test_the_demo_runs(workdir: Path) -> None:
    runpy.run_path(str(ROOT / "examples/demo.py"), run_name="__main__")
    assert (workdir / "out/demo.png").stat().st_size > 10_000


def test_no_example_is_forgotten() -> None:
    # draw_references.py makes committed files and needs drawings fetched from elsewhere
    known = {"first", "follow", "plans", "together", "demo", "draw_references"}
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == known


@pytest.mark.filterwarnings("ignore")  # of diffusers' Euler
def test_the_readmes_python_runs(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []

    def fetch(name: str) -> Path:
        fetched.append(name)
        return tiny_models.folder("sdxl")

    monkeypatch.setattr(hub, "fetch_model", fetch)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        (workdir / "cat.png").unlink(missing_ok=True)
        exec(compile(block, "README.md", "exec"), {})
        assert (workdir / "cat.png").exists()
    assert len(fetched) == 1


def test_the_readmes_commands_run(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
    assert lines
    run = command_runner(monkeypatch, capsys)
    for line in lines:
        program, *arguments = shlex.split(line, comments=True)
        assert program == "instantstyle"
        outcome = run(*arguments)
        assert outcome.code == 0, f"{line}: {outcome.err}"
    assert (workdir / "cat.png").exists()
    assert (workdir / "house.png").exists()


def test_the_installed_program_runs() -> None:
    done = subprocess.run([sys.executable, "-m", "instantstyle", "doctor"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "torch" in done.stdout
