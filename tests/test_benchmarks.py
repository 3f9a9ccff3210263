"""The benchmark compares like with like: through its own doors both sides draw the same picture."""

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import tiny_models


@pytest.fixture(scope="module")
def bench(script: Callable[[str], ModuleType]) -> ModuleType:
    """benchmarks/run.py as a module."""
    return script("benchmarks/run.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of the built-in model's layout."""
    return tiny_models.emoji(tmp_path_factory.mktemp("benchmark") / "random")


def test_both_sides_draw_the_same_picture_and_the_reference_speaks(
    bench: ModuleType, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two steps: a random network multiplies a rounding difference tenfold at every step, a trained one does not.
    case = bench.Case(folder, bench.picture(tmp_path, folder), "float32", 2)
    draws = {side: bench.LOAD[side](case) for side in bench.SIDES}
    assert bench.difference(draws, range(2)) <= bench.LEVELS
    muted = {"down": {"block_1": [0.0, 0.0]}, "up": {"block_0": [0.0, 0.0, 0.0]}}
    monkeypatch.setattr(bench, "style_scale", lambda: muted)
    assert bench.difference({**draws, "diffusers": bench.diffusers(case)}, [0]) > 10 * bench.LEVELS


@pytest.mark.slow
def test_it_writes_its_table(bench: ModuleType, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.md"
    argv = ["--rounds", "1", "--steps", "2", "--dtype", "float32", "--model", str(folder), "--out", str(out)]
    bench.main(argv)
    page = out.read_text(encoding="utf-8")
    assert page.count("| float32 |") == 5
    assert "at most 0 of 255" in page or "at most 1 of 255" in page


@pytest.mark.slow
def test_the_full_size_benchmark_runs_in_small(
    script: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files written, both sides loaded and stepped in processes of their own, equal, and nothing left behind."""
    out, folder = tmp_path / "page.md", tmp_path / "files"
    script("benchmarks/fullsize.py").main(["--folder", str(folder), "--small", "--remove", "--out", str(out)])
    page = out.read_text(encoding="utf-8")
    assert page.count("| instantstyle | ") == page.count("| diffusers | ") == 1
    match = re.search(r"differ by (\S+) of their size", page)
    assert match
    assert float(match[1]) < 0.02
    assert not folder.exists()
