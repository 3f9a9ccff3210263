"""Every example and every block of code in the README runs, on the built-in model."""

import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from instantstyle.loading import load

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with the README's `ref.png` in it."""
    shutil.copy(ROOT / "examples/references/dog-neon.png", tmp_path / "ref.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("example", "written"), [("first", "first.png"), ("plans", "plans.png"), ("together", "together-2.png")]
)
def test_an_example_runs(example: str, written: str, desk: Path) -> None:
    runpy.run_path(str(ROOT / f"examples/{example}.py"), run_name="__main__")
    assert (desk / "out" / written).stat().st_size > 1000


def test_following_runs_or_says_what_it_lacks(desk: Path) -> None:
    """The built-in model's ControlNet is trained after all else; without it the example is a sentence."""
    if "canny" in load().controls:
        runpy.run_path(str(ROOT / "examples/follow.py"), run_name="__main__")
        assert (desk / "out/follow.png").stat().st_size > 1000
    else:
        with pytest.raises(SystemExit, match=r"has no ControlNet in this installation: see docs/control\.md"):
            runpy.run_path(str(ROOT / "examples/follow.py"), run_name="__main__")


@pytest.mark.slow
def test_the_demo_runs(desk: Path) -> None:
    runpy.run_path(str(ROOT / "examples/demo.py"), run_name="__main__")
    assert (desk / "out/demo.png").stat().st_size > 10_000


def test_no_example_is_forgotten() -> None:
    # draw_references.py makes committed files and needs drawings fetched from elsewhere
    known = {"first", "follow", "plans", "together", "demo", "draw_references"}
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == known


def test_the_readmes_python_runs(desk: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert (desk / "cat.png").exists()


def test_the_readmes_commands_run(desk: Path) -> None:
    lines = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
    assert lines
    for line in lines:
        program, *argv = shlex.split(line, comments=True)
        assert program == "instantstyle"
        code = "import sys; from instantstyle.cli import main; sys.argv = sys.argv[1:]; main()"
        done = subprocess.run([sys.executable, "-c", code, program, *argv], capture_output=True, text=True)
        assert done.returncode == 0, f"{line}: {done.stderr}"
    assert (desk / "cat.png").exists()
