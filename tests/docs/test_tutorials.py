"""Every command and every Python block of docs/tutorials runs, in the order of its page, with fewer denoising steps."""

import re
import shlex
from pathlib import Path

import pytest

from cli_runner import command_runner

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)
TUTORIALS = sorted((ROOT / "docs/tutorials").glob("*.md"))
RUN_ELSEWHERE = {
    "api": "tests/serve/test_api_page.py",
    "batch": "tests/docs/test_guides.py",
    "generating": "tests/docs/test_guides.py",
    "own-models": "tests/docs/test_own_models.py",
    "training": "tests/train/test_docs.py",
    "transformers": "tests/docs/test_guides.py",
}
"""Pages whose commands need files that a test makes for them."""
STEPS = 4


def with_few_steps(arguments: list[str]) -> list[str]:
    """A command's arguments, with few steps where the command draws."""
    return [*arguments, "--steps", str(STEPS)] if arguments[0] in ("generate", "compare") else arguments


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INSTANTSTYLE_STYLES", str(tmp_path / "styles"))
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    run = command_runner(monkeypatch, capsys)
    blocks: list[tuple[str, str]] = BLOCK.findall(page.read_text(encoding="utf-8"))
    assert blocks
    for language, text in blocks:
        if language == "python":
            exec(compile(re.sub(r"(steps=\d+, )?seed=", f"steps={STEPS}, seed=", text), page.name, "exec"), {})
            continue
        for line in text.splitlines():
            program, *arguments = shlex.split(line, comments=True)
            assert program == "instantstyle", line
            outcome = run(*with_few_steps(arguments))
            assert outcome.code == 0, f"{line}\n{outcome.err}"
            for name in re.findall(r"--out (\S+\.png)", line):
                assert "--count" in line or (tmp_path / name).stat().st_size > 1000, f"{line} wrote no {name}"


def test_every_page_with_commands_is_run() -> None:
    with_commands = {page.stem for page in (ROOT / "docs").rglob("*.md") if BLOCK.search(page.read_text())}
    assert with_commands == {page.stem for page in TUTORIALS} | set(RUN_ELSEWHERE)
    for page, test in RUN_ELSEWHERE.items():
        assert f"docs/{page}.md" in (ROOT / test).read_text(encoding="utf-8")
