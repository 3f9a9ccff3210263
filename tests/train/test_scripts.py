"""The scripts about training run in small: what they write has the rows it is to have."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from instantstyle.emoji.sources import cache_folder

pytestmark = pytest.mark.slow


def test_what_a_step_costs_is_written(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    out = tmp_path / "page.md"
    script("benchmarks/training.py").main(
        ["--rounds", "1", "--steps", "1", "--batch", "1", "--skip", "counted", "--out", str(out)]
    )
    rows = [line.split(" | ") for line in out.read_text("utf-8").splitlines() if line.startswith("| ours")]
    style, everything = rows
    assert float(style[1]) > 0
    assert float(style[3]) < float(everything[3]), "the style blocks alone keep fewer activations"


def test_a_training_killed_thrice_is_the_one_that_was_not(
    script: Callable[[str], ModuleType],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "soak.md"
    with pytest.raises(SystemExit) as done:
        script("benchmarks/soak.py").main(
            ["--steps", "300", "--kills", "3", "--folder", str(tmp_path), "--out", str(out)]
        )
    said = capsys.readouterr().out
    assert not done.value.code, said
    assert said.strip().endswith("the same")
    page = out.read_text("utf-8")
    assert "the same to the bit" in page
    for kind in ("training", "saving", "starting"):
        assert f"| {kind} |" in page


@pytest.mark.skipif(not (cache_folder() / "masters-128").is_dir(), reason="the drawings are not here: make world")
def test_the_claim_is_compared_arm_by_arm(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    out = tmp_path / "claim.md"
    argv = ["--folder", str(tmp_path), "--looks", "2", "--count", "4", "--drawn", "2", "--steps", "2", "--batch", "4"]
    claim = script("benchmarks/claim.py")
    claim.main([*argv, "--seeds", "1", "--processes", "1", "--out", str(out)])
    page = out.read_text("utf-8")
    for arm in ("mute", "style", "paired", "loud", "without", "the truth"):
        assert f"\n| {arm} | " in page
    truth = next(line for line in page.splitlines() if line.startswith("| the truth"))
    assert truth.count("0.00 (0.00 to 0.00)") == 2, "the truth's ground is the reference's"
    with Image.open(tmp_path / "claim.png") as figure:
        assert min(figure.size) > 200
    speeds = {"all": 90.0, "style": 130.0}
    assert claim.steps_in(25, speeds, 200, 32, 3, 96, 2) > claim.steps_in(25, speeds, 200, 32, 3, 96, 1) > 100
    made = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.npz")}
    claim.main([*argv, "--seeds", "1", "--processes", "1", "--out", str(out)])
    assert {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.npz")} == made, "what is there is not made again"
