"""A hostile file ends in a sentence or a right result, within 1 GiB and 20 s, and no file is left behind."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from hostile.campaign import MAX_CPU_SECONDS, MAX_MEBIBYTES
from hostile.readers import READERS

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent.parent / "docs" / "hostile-files.md"


def campaign(out: Path, *flags: str) -> list[dict[str, Any]]:
    """What became of every case, from a process of its own: one to be copied for each case must have no threads."""
    import instantstyle

    paths = [str(Path(instantstyle.__file__).parent.parent), str(HERE.parent)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, str(HERE / "campaign.py"), str(out), *flags]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return [json.loads(line) for line in out.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return campaign(tmp_path_factory.mktemp("campaign") / "short.jsonl", "--short")


@pytest.mark.parametrize("reader", READERS)
def test_every_file_ends_in_a_sentence_or_a_right_result(reader: str, outcomes: list[dict[str, Any]]) -> None:
    mine = [row for row in outcomes if row["reader"] == reader]
    assert len(mine) >= 10
    assert {row["kind"] for row in mine} >= {"result", "refused"}
    assert [f"{row['name']}: {row['fault']}" for row in mine if row["fault"]] == []
    assert all(row["mebibytes"] <= MAX_MEBIBYTES and row["seconds"] <= MAX_CPU_SECONDS for row in mine)


def test_the_campaign_is_as_large_as_its_page_says(outcomes: list[dict[str, Any]]) -> None:
    assert len(outcomes) >= 300
    counts = Counter(row["reader"] for row in outcomes)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.read_text("utf-8").splitlines()]
    page = {row[0]: row[1] for row in rows if len(row) == 5 and row[0] in READERS}
    assert page == {reader: str(counts[reader]) for reader in READERS}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_mutation_of_every_file(seed: int, tmp_path: Path) -> None:
    outcomes = campaign(tmp_path / "whole.jsonl", "--seed", str(seed))
    assert len(outcomes) >= 1500
    assert [f"{row['reader']}, {row['name']}: {row['fault']}" for row in outcomes if row["fault"]] == []
