"""`instantstyle evaluate`, `probe` and `compare`: methods measured, blocks probed, one prompt drawn by every method."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from instantstyle.errors import InputError

ModelOption = Annotated[str, typer.Option(help="emoji, a folder in diffusers' layout, a file or a hub id.")]
AdapterOption = Annotated[str | None, typer.Option(help="IP-Adapter weights.", show_default="the model's")]


def evaluate(
    out: Annotated[Path, typer.Option(help="The folder for report.md, scores.csv, pictures.")] = Path("out/referee"),
    subset: Annotated[Literal["all", "small"], typer.Option(help="small: a few questions, no sweeps.")] = "all",
    methods: Annotated[
        list[str] | None, typer.Option(help="A method to measure; may be given several times.", show_default="all")
    ] = None,
    model: ModelOption = "emoji",
    adapter: AdapterOption = None,
    steps: Annotated[int, typer.Option(help="Steps of denoising.")] = 25,
) -> None:
    """Measure every method against the truth; resumable."""
    from instantstyle.cli.progress import hush

    hush()
    from instantstyle.evaluate.report import evaluate as run
    from instantstyle.model import load

    def say(line: str) -> None:
        typer.echo(line, err=True)

    loaded = load(model, adapter=adapter)
    typer.echo(run(loaded, out, small=subset == "small", methods=methods, steps=steps, say=say))


def probe(
    model: ModelOption = "emoji",
    adapter: AdapterOption = None,
    count: Annotated[int, typer.Option(help="Questions a plan.")] = 48,
    steps: Annotated[int, typer.Option(help="Steps of denoising.")] = 25,
    plan: Annotated[
        list[str] | None, typer.Option(help="A plan to probe; several may be given.", show_default="each module alone")
    ] = None,
) -> None:
    """Find which blocks carry style: one attention module at a time, as a table."""
    from instantstyle.cli.progress import hush

    hush()
    from instantstyle.evaluate.probe import probe as run
    from instantstyle.evaluate.probe import table
    from instantstyle.model import load

    typer.echo(table(run(load(model, adapter=adapter), count, steps, plan)))


def compare(
    prompt: Annotated[str, typer.Argument(help="What the pictures are to show.", show_default=False)],
    style: Annotated[list[str], typer.Option(help="A reference picture; may be given several times: a row each.")],
    out: Annotated[Path, typer.Option(help="The PNG file of the grid.")],
    model: ModelOption = "emoji",
    adapter: AdapterOption = None,
    seed: Annotated[int, typer.Option(help="The number chance begins from.")] = 0,
    steps: Annotated[int, typer.Option(help="Steps of denoising.")] = 30,
) -> None:
    """Draw one prompt by every method, in one labelled grid."""
    from instantstyle.cli.progress import hush
    from instantstyle.pictures import grid, read, write_png
    from instantstyle.request import Request, StyleReference
    from instantstyle.whole import check_writable

    if out.suffix.lower() != ".png":
        raise InputError(f"the grid is a PNG file, so {str(out)!r} must end in .png")
    check_writable(out)
    given = [(path, StyleReference(path)) for path in style]
    hush()
    from instantstyle.engine import Engine
    from instantstyle.methods import METHODS
    from instantstyle.model import load

    engine = Engine(load(model, adapter=adapter))
    names = sorted(METHODS, key=lambda name: name != "none")
    runs = {
        (path, name): engine.submit(
            Request(prompt, references=[] if name == "none" else [said], method=name, seed=seed, steps=steps)
        )
        for path, said in given
        for name in names
    }
    engine.run()
    rows = [[read(path), *(runs[path, name].result().images[0] for name in names)] for path, _ in given]
    labels = ["no reference" if name == "none" else name for name in names]
    sheet = grid(rows, rows=[Path(path).stem for path, _ in given], columns=["reference", *labels], cell=160)
    typer.echo(write_png(sheet, out))
