"""Tables of requests into folders: rows as they are meant, checked first, drawn once, whatever stops it."""

import csv
import importlib
import json
import sqlite3
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cli_runner import Command, command_runner
from instantstyle.batch.journal import FOLDER, Journal, file_name, open_journal
from instantstyle.batch.manifest import write_batch_manifest, write_shards
from instantstyle.batch.runner import BatchRunner
from instantstyle.batch.table import RequestBuilder, list_style_files, parse_seeds, product, read_prompts, read_table
from instantstyle.errors import InputError
from instantstyle.pipeline import generate
from instantstyle.request import Request, StyleReference, read_metadata
from studio_server import shared_model

ROWS: Sequence[Mapping[str, Any]] = (
    {"prompt": "a cat", "style": "neon", "seed": 3, "steps": 2},
    {"prompt": "a dog", "style": "ref.png", "content": "fish", "content_weight": 0.4, "weight": 0.8, "steps": 2},
    {"prompt": "a fox", "steps": 3, "size": [64, 64], "method": "none", "count": 2, "seed": 1},
)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line as a function."""
    return command_runner(monkeypatch, capsys)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a reference picture."""
    pixels = np.random.default_rng(0).integers(256, size=(40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "ref.png")
    return tmp_path


def _jsonl(folder: Path, rows: Sequence[object]) -> Path:
    file = folder / "jobs.jsonl"
    file.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return file


def _record(journal: Journal, folder: Path, rows: Sequence[object], **builder: Any) -> RequestBuilder:
    made = RequestBuilder(folder, **builder)
    list(journal.record(read_table(_jsonl(folder, rows)), made))
    return made


def _draw(journal: Journal, builder: RequestBuilder, on_row: Any = None, **settings: Any) -> None:
    BatchRunner(shared_model(), journal, builder, **settings).run(on_row)


def test_rows_are_the_same_in_every_format(folder: Path) -> None:
    names = list(dict.fromkeys(name for row in ROWS for name in row))
    with (folder / "jobs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows({**row, **({"size": "64x64"} if "size" in row else {})} for row in ROWS)
    arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    parquet.write_table(arrow.Table.from_pylist([{n: r.get(n) for n in names} for r in ROWS]), folder / "jobs.parquet")
    wanted = [
        Request("a cat", references=[StyleReference("neon")], seed=3, steps=2),
        Request("a dog", references=[StyleReference(folder / "ref.png", "fish", 0.4, 0.8)], steps=2),
        Request("a fox", steps=3, size=(64, 64), method="none", count=2, seed=1),
    ]
    for table in (_jsonl(folder, ROWS), folder / "jobs.csv", folder / "jobs.parquet"):
        builder = RequestBuilder(folder)
        assert [builder.build(row) for row in read_table(table) if isinstance(row, Mapping)] == wanted, table.suffix


def test_prompts_in_styles_with_seeds(folder: Path) -> None:
    (folder / "prompts.txt").write_text("a cat\n\n  a dog \n")
    rows = list(product(read_prompts(folder / "prompts.txt"), list_style_files(folder), parse_seeds("0-1,7")))
    assert len(rows) == 2 * 1 * 3
    assert rows[4] == {"prompt": "a dog", "style": str(folder / "ref.png"), "seed": 1}
    assert list(product(["a cat"], [], [])) == [{"prompt": "a cat"}]


@pytest.mark.parametrize("text", ["", "x", "3-1", "1.5", "-1", "0-99999999999"])
def test_seeds_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="--seeds are numbers and ranges"):
        parse_seeds(text)


def test_mistakes_are_listed_with_their_rows_and_stop_nothing(folder: Path) -> None:
    rows: list[object] = [
        ROWS[0],
        "{broken",
        "[1]",
        {"prompt": "a", "stepz": 3},
        {"prompt": "a", "style": "nowhere.png"},
        {"style": "neon"},
        {"prompt": "a", "content": "cat"},
        {"prompt": "a", "method": "nope"},
        {"prompt": "a", "steps": -1},
        {"prompt": "a", "style": "neon", "references": []},
        {"prompt": "a", "size": "wide"},
        '{"prompt": "a", "prompt": "b"}',
    ]
    with open_journal(folder / "out") as journal:
        _record(journal, folder, rows)
        assert (journal.counts().pending, journal.counts().bad) == (1, len(rows) - 1)
        reasons = dict(journal.mistakes(100))
        for row, said in {
            2: "not JSON", 3: "a row is an object", 4: "did you mean 'steps'", 5: "nowhere.png", 6: "no prompt",
            7: "give style as well", 8: "no method 'nope'", 9: "steps", 10: "give one of them", 11: "width x height",
            12: "'prompt' twice",
        }.items():  # fmt: skip
            assert said in reasons[row], (row, reasons[row])


@pytest.mark.parametrize(
    "name", ["../{row}.png", "/elsewhere/{row}.png", "{row}.jpg", "{nothing}.png", ".{row}.png", "{row"]
)
def test_names_that_lead_elsewhere(folder: Path, name: str) -> None:
    with open_journal(folder / "out") as journal, pytest.raises(InputError):
        list(journal.record(iter([{"prompt": "a"}]), RequestBuilder(folder), name))
    assert file_name("{style}/{prompt}-{seed}.png", 7, Request("../A  cat!", seed=3), {"style": "x/ink.png"}) == (
        "ink/a-cat-3.png"
    )


def test_two_rows_of_one_name_are_a_mistake(folder: Path) -> None:
    with open_journal(folder / "out") as journal:
        list(journal.record(iter([{"prompt": "a"}, {"prompt": "a"}]), RequestBuilder(folder), "{prompt}.png"))
        assert journal.counts().pending == 1
        assert "row 1's" in journal.mistakes(1)[0][1]


def test_pictures_are_those_of_generate(folder: Path) -> None:
    with open_journal(folder / "out") as journal:
        builder = _record(journal, folder, ROWS)
        _draw(journal, builder, concurrency=1)
        assert journal.counts().done == len(ROWS)
    for number, names in ((1, ["000001.png"]), (2, ["000002.png"]), (3, ["000003-1.png", "000003-2.png"])):
        request = builder.build(ROWS[number - 1])
        seed = read_metadata(folder / "out" / names[0]).request.seed
        drawn = generate(shared_model(), request.model_copy(update={"seed": seed}))
        for name, image in zip(names, drawn.images, strict=True):
            with Image.open(folder / "out" / name) as opened:
                assert (np.asarray(opened) == np.asarray(image)).all()


def test_together_as_alone(folder: Path) -> None:
    for concurrency in (1, 8):
        with open_journal(folder / f"out{concurrency}") as journal:
            journal.remember("seed", "1")
            _draw(journal, _record(journal, folder, ROWS), concurrency=concurrency)
    for file in (folder / "out1").glob("*.png"):
        with Image.open(file) as alone, Image.open(folder / "out8" / file.name) as together:
            assert np.abs(np.asarray(alone, int) - np.asarray(together, int)).max() <= 2


def test_an_interrupted_batch_goes_on_and_draws_nothing_twice(folder: Path) -> None:
    rows = [{"prompt": "a cat", "steps": 2, "seed": seed} for seed in range(5)] + [{"prompt": "a dog", "steps": 2}]
    seen = list[int]()

    def interrupt(row: int) -> None:
        seen.append(row)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with open_journal(folder / "out") as journal:
        builder = _record(journal, folder, rows)
        with pytest.raises(KeyboardInterrupt):
            _draw(journal, builder, interrupt, concurrency=2)
        assert journal.counts().done == 3
    before = {file: file.stat().st_mtime_ns for file in (folder / "out").glob("*.png")}
    assert len(before) == 3
    with open_journal(folder / "out") as journal:
        # A kill between a picture and its line: the picture is there, the journal does not know of it.
        base = sqlite3.connect(folder / "out" / FOLDER / "journal.sqlite")
        base.execute("update rows set state = 'pending', outcome = null where n = 1")
        base.commit()
        base.close()
        _draw(journal, builder, seen.append)
        assert journal.counts().done == len(rows)
    assert sorted(seen) == [1, *range(1, 7)]
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert len(list((folder / "out").glob("*.png"))) == len(rows)


def test_a_row_without_seed_has_the_same_one_when_it_is_drawn_again(folder: Path) -> None:
    seeds = list[int | None]()
    for _ in range(2):
        with open_journal(folder / "out") as journal:
            _draw(journal, _record(journal, folder, [{"prompt": "a cat", "steps": 1}]))
        seeds.append(read_metadata(folder / "out" / "000001.png").request.seed)
        (folder / "out" / "000001.png").unlink()
        with open_journal(folder / "out") as journal:
            list(journal.record(iter([{"prompt": "a"}]), RequestBuilder(folder)))  # another table in between
    assert seeds[0] == seeds[1]


def test_a_changed_row_is_drawn_anew_and_the_others_stay(folder: Path) -> None:
    rows = [{"prompt": "a cat", "steps": 1, "seed": seed} for seed in range(3)]
    with open_journal(folder / "out") as journal:
        _draw(journal, _record(journal, folder, rows))
        builder = _record(journal, folder, [rows[0], {**rows[1], "prompt": "a dog"}, rows[2]])
        assert [each.number for each in journal.pending()] == [2]
        _draw(journal, builder)
    assert read_metadata(folder / "out" / "000002.png").request.prompt == "a dog"


def test_one_that_fails_is_written_down_and_tried_again(folder: Path) -> None:
    rows = [{"prompt": "a cat", "steps": 1}, {"prompt": "a cat", "steps": 1, "sampler": "nope"}]
    with open_journal(folder / "out") as journal:
        builder = _record(journal, folder, rows)
        _draw(journal, builder)
        assert (journal.counts().done, journal.counts().failed) == (1, 1)
        assert "nope" in journal.mistakes(9)[0][1]
        journal.retry_failed()
        assert [each.number for each in journal.pending()] == [2]


def test_two_runs_on_one_folder_refuse_each_other(folder: Path) -> None:
    with open_journal(folder / "out"), pytest.raises(InputError, match="another run"), open_journal(folder / "out"):
        pass


def test_rows_that_can_share_a_call_come_together(folder: Path) -> None:
    rows = [{"prompt": "a", "steps": steps} for steps in (3, 1, 3, 1)]
    with open_journal(folder / "out") as journal:
        _record(journal, folder, rows)
        assert [each.number for each in journal.pending(chunk=1)] == [2, 4, 1, 3]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its files open
def test_manifest_and_shards(folder: Path) -> None:
    with open_journal(folder / "out") as journal:
        builder = _record(journal, folder, [*ROWS, {"prompt": 1, "x": 2}])
        _draw(journal, builder, meter=True)
        table: Any = importlib.import_module("pyarrow.parquet").read_table(write_batch_manifest(journal))
        rows = table.to_pylist()
        shards = write_shards(journal, 3)
        stamps = [file.stat().st_mtime_ns for file in shards]
        assert [file.stat().st_mtime_ns for file in write_shards(journal, 3)] == stamps
    assert [row["row"] for row in rows] == [1, 2, 3, 3, 4]
    assert [row["state"] for row in rows] == [*["done"] * 4, "bad"]
    assert (rows[0]["meter_score"] is None, rows[2]["meter_score"] is None) == (False, True)
    assert json.loads(rows[1]["request"])["references"][0]["image"].keys() == {"sha256"}
    read: Any = importlib.import_module("webdataset").WebDataset([str(file) for file in shards], shardshuffle=False)
    samples = list(read)
    assert [sample["txt"] for sample in samples] == [b"a cat", b"a dog", b"a fox", b"a fox"]
    assert samples[3]["png"] == (folder / "out" / "000003-2.png").read_bytes()


def test_the_command(command: Command, folder: Path) -> None:
    table = _jsonl(folder, [*ROWS, {"prompt": "a", "stepz": 1}])
    told = command("batch", table, "--out", folder / "out", "--json")
    assert told.code == 1, told.err
    counts = json.loads(told.out)
    assert (counts["rows"], counts["drawn"], counts["bad"]) == (4, 3, 1)
    assert "row 4: there is no column 'stepz'" in told.err
    _jsonl(folder, ROWS)
    told = command("batch", table, "--out", folder / "out")
    assert (told.code, told.out) == (0, f"{folder / 'out' / 'manifest.parquet'}\n")
    assert "3 rows: 3 drawn, 0 to draw" in told.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give a table of requests, or --prompts"),
        (("jobs.txt",), "there is no table"),
        (("ref.png",), "is .jsonl, .ndjson, .csv, .parquet, not '.png'"),
        (("--prompts", "none.txt"), "cannot be read"),
        (("empty.jsonl",), "no rows"),
        (("empty.jsonl", "--seeds", "1"), "go with --prompts"),
        (("--prompts", "p.txt", "--styles", "p.txt"), "is none"),
    ],
)
def test_what_is_refused(
    command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(folder)
    (folder / "empty.jsonl").touch()
    (folder / "p.txt").write_text("a cat\n")
    told = command("batch", *arguments, "--out", folder / "out")
    assert told.code == 2
    assert said in told.err


def test_rows_are_checked_before_anything_heavy_is_imported(folder: Path) -> None:
    table = _jsonl(folder, [ROWS[0], {"prompt": "a", "stepz": 1}])
    code = f"""
import sys
from instantstyle import cli
sys.argv = ["instantstyle", "batch", {str(table)!r}, "--out", {str(folder / "out")!r}, "--check"]
try:
    cli.main()
finally:
    print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "row 2: there is no column 'stepz'" in done.stderr
    assert done.stdout.splitlines()[-1] == "False"
