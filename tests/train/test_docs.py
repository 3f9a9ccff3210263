"""Every command of docs/training.md runs, in small: the built-in model, few pictures, two steps."""

import re
import shlex
import shutil
import sys
import tarfile
from pathlib import Path

import pytest

from train import gallery

PAGE = (Path(__file__).resolve().parents[2] / "docs/training.md").read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


def small(line: str) -> list[str]:
    """The command with fewer steps."""
    words = shlex.split(re.sub(r"--steps \d+", "--steps 2", line))
    more: dict[str, list[str]] = {
        "train adapter": ["--sheet-every", "0", "--device", "cpu"],
        "generate": ["--steps", "2"],
    }
    return [*words, *(word for name, extra in more.items() if name in line for word in extra)]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("desk")
    gallery.folder(root / "pictures")
    return root


def test_the_commands_run(desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from instantstyle.cli import main

    monkeypatch.chdir(desk)
    shutil.rmtree("features", ignore_errors=True)
    ours = [line for line in LINES if line.startswith("instantstyle ")]
    assert len(ours) == 4
    for line in ours:
        monkeypatch.setattr(sys, "argv", small(line))
        with pytest.raises(SystemExit) as done:
            main()
        said = capsys.readouterr().err
        assert not done.value.code, f"{line}: {said}"
        assert ("a million of them" in said) == line.endswith("--out features"), "the pace is told by what makes them"
    assert (desk / "cat.png").stat().st_size > 1000
    assert (desk / "my-style.md").exists()
    with tarfile.open(desk / "features/00000.tar") as tar:
        starts = [member.offset for member in tar if member.name.endswith(".latents.npy")]
    assert f"a picture takes {starts[1] - starts[0]:,} bytes" in PAGE
    assert f"so a million take {(starts[1] - starts[0]) / 1e3:.1f} GB" in PAGE


@pytest.mark.slow
def test_the_launched_command_runs(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    monkeypatch.chdir(desk)
    (line,) = [line for line in LINES if not line.startswith("instantstyle ")]
    argv = ["train", "features", "--data", "pictures", "--styles", "folder", "--out", "features"]
    subprocess.run([sys.executable, "-m", "instantstyle", *argv], check=True)
    shutil.rmtree("two.safetensors.work", ignore_errors=True)
    subprocess.run([sys.executable, "-m", "torch.distributed.run", *small(line)[1:]], check=True)
    assert (desk / "two.safetensors").exists()
