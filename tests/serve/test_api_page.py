"""docs/api.md: each of its commands does what the page says."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_command_of_the_page(server: str, tmp_path: Path, number: int) -> None:
    language, text = BLOCKS[number]
    Image.new("RGB", (64, 64), "red").save(tmp_path / "ref.png")
    text = text.replace("http://127.0.0.1:7860", server)
    if language == "python":
        done = subprocess.run([sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "done" in done.stdout or "completed" in done.stdout
        return
    for command in re.split(r"\n(?=curl)", text):
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
        answer = json.loads(done.stdout)
        assert "error" not in answer or answer["error"] is None, answer
        assert answer.get("state", "done") == "done"
