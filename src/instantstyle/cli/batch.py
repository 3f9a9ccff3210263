"""`instantstyle batch`: a table of requests into a folder of pictures."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instantstyle.cli.flags import given, parse_adapters, parse_memory
from instantstyle.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from instantstyle.batch.journal import Journal
    from instantstyle.batch.table import RequestBuilder

BATCH_EXAMPLES = """Examples:

    instantstyle batch jobs.jsonl --out pictures

    instantstyle batch jobs.csv --out pictures --name "{style}/{prompt}-{seed}.png" --concurrency 32

    instantstyle batch --prompts prompts.txt --styles styles/ --seeds 0-9 --steps 20 --out pictures

A row has the fields of a request: {"prompt": "a cat", "style": "ink.png", "content": "dog", "seed": 7}. The same
command goes on where it was stopped, whatever stopped it."""

SHOWN = 20
"""Mistakes that are printed; the manifest has all."""


def batch(
    out: Annotated[Path, typer.Option(help="The folder of the pictures.", show_default=False)],
    table: Annotated[
        Path | None, typer.Argument(help="A .jsonl, .csv or .parquet file, a request a row.", show_default=False)
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="Instead of a table: a text file, a prompt a line.")] = None,
    styles: Annotated[Path | None, typer.Option(help="With --prompts: a folder of reference pictures.")] = None,
    seeds: Annotated[str | None, typer.Option(help="With --prompts: seeds, as 0-9 or 3,5,7.")] = None,
    name: Annotated[
        str, typer.Option(help="File names, of {row}, {prompt}, {style}, {seed} and {method}.")
    ] = "{row:06d}.png",
    method: Annotated[str | None, typer.Option(help="How the style enters, for rows that do not say.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of denoising, for rows that do not say.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance, for rows that do not say.")] = None,
    negative: Annotated[str | None, typer.Option(help="What is not to be shown, for rows that do not say.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Requests that are drawn together.")] = 16,
    meter: Annotated[
        bool, typer.Option("--meter", help="Draw each without its reference too, and measure: twice the time.")
    ] = False,
    shards: Annotated[int | None, typer.Option(min=1, help="Also write tars of so many pictures (webdataset).")] = None,
    check: Annotated[bool, typer.Option("--check", help="Check the rows and stop.")] = False,
    model: Annotated[str, typer.Option(help="emoji, sdxl, sd15, a folder in diffusers' layout or a hub id.")] = "emoji",
    adapter: Annotated[
        list[str] | None, typer.Option(help="IP-Adapter weights; several as NAME=FILE.", show_default="the model's")
    ] = None,
    lora: Annotated[list[str] | None, typer.Option(help="A LoRA: FILE or FILE:WEIGHT; may be given often.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    memory: Annotated[str, typer.Option(help="keep, free or offload, as for generate.")] = "keep",
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts and the files as JSON.")] = False,
) -> None:
    """Draw a table of requests into a folder; the same command goes on after any stop."""
    from instantstyle.batch.journal import check_template, ensure_folder, open_journal
    from instantstyle.batch.table import RequestBuilder
    from instantstyle.cli.output import print_done, print_note, to_json

    rows, folder, identity = _rows(table, prompts, styles, seeds)
    check_template(name)
    defaults = given(method=method, steps=steps, guidance=guidance, negative=negative)
    builder = RequestBuilder(folder, defaults)
    ensure_folder(out)
    with open_journal(out) as journal:
        _record(journal, rows, builder, name, hashlib.sha256(repr((identity, name, defaults)).encode()).hexdigest())
        counts = journal.counts()
        for row, reason in journal.mistakes(SHOWN):
            print_note(f"row {row}: {reason}")
        if counts.bad > SHOWN:
            print_note(f"and {counts.bad - SHOWN} more")
        print_note(f"{counts.total} rows: {counts.done} drawn, {counts.pending} to draw, {counts.bad} with mistakes")
        if counts.total == 0:
            raise InputError("the table has no rows")
        if not check and counts.pending:
            loading = given(adapter=parse_adapters(adapter or []), device=device, dtype=dtype, memory=memory)
            _draw(journal, builder, model, lora or [], loading, concurrency=concurrency, meter=meter)
        written = _write(journal, shards)
        counts = journal.counts()
    if as_json:
        print_done(
            to_json({"rows": counts.total, "drawn": counts.done, "failed": counts.failed, "bad": counts.bad, **written})
        )
    else:
        print_done(str(written["manifest"]))
    if counts.failed or counts.bad:
        print_note(f"{counts.failed} rows failed and {counts.bad} have mistakes: see column reason of the manifest")
        raise typer.Exit(1)


def _rows(
    table: Path | None, prompts: Path | None, styles: Path | None, seeds: str | None
) -> "tuple[Iterable[Any], Path, str]":
    """The rows, the folder that their paths start from, and what tells them from other rows."""
    from instantstyle.batch.table import list_style_files, parse_seeds, product, read_prompts, read_table

    if (table is None) == (prompts is None):
        raise InputError("give a table of requests, or --prompts with --styles and --seeds")
    if table is not None:
        if styles is not None or seeds is not None:
            raise InputError("--styles and --seeds go with --prompts; in a table they are columns")
        rows = read_table(table)
        with table.open("rb") as file:
            return rows, table.resolve().parent, hashlib.file_digest(file, "sha256").hexdigest()
    assert prompts is not None
    parts = (read_prompts(prompts), list_style_files(styles) if styles else [], parse_seeds(seeds) if seeds else [])
    return product(*parts), Path.cwd(), repr(parts)


def _record(journal: "Journal", rows: "Iterable[Any]", builder: "RequestBuilder", name: str, identity: str) -> None:
    """Check the rows, unless they are those of the run before."""
    from instantstyle.cli.output import print_note

    if journal.fact("table") == identity:
        journal.retry_failed()
        return
    for checked in journal.record(rows, builder, name):
        if checked % 10_000 == 0:
            print_note(f"{checked} rows checked")
    journal.remember("table", identity)


def _draw(
    journal: "Journal",
    builder: "RequestBuilder",
    model: str,
    loras: list[str],
    loading: dict[str, Any],
    *,
    concurrency: int,
    meter: bool,
) -> None:
    from instantstyle.cli.progress import hush, standing

    hush()
    from instantstyle.batch.runner import BatchRunner, Pace
    from instantstyle.loading import load
    from instantstyle.weights.lora import parse_lora

    loading = {**loading, "memory": parse_memory(loading["memory"]), "loras": [parse_lora(text) for text in loras]}
    runner = BatchRunner(load(model, **loading), journal, builder, concurrency=concurrency, meter=meter)
    total, pace = journal.counts().pending, Pace(journal.counts().pending)
    try:
        with standing("drawing") as on_picture:

            def on_row(number: int) -> None:
                pace.row()
                on_picture(pace.rows, total, pace.seconds, pace.seconds_left)

            runner.run(on_row)
    except KeyboardInterrupt:
        _write(journal, None)
        raise


def _write(journal: "Journal", shards: int | None) -> dict[str, Any]:
    from instantstyle.batch.manifest import write_batch_manifest, write_shards

    written: dict[str, Any] = {"manifest": str(write_batch_manifest(journal))}
    return written if shards is None else {**written, "shards": [str(file) for file in write_shards(journal, shards)]}
