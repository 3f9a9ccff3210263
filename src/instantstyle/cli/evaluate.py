"""`instantstyle evaluate`, `probe` and `compare`: benchmark methods, probe blocks, draw one prompt by every method."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from instantstyle.cli.flags import ModelOption
from instantstyle.errors import InputError

AdapterOption = Annotated[str | None, typer.Option(help="IP-Adapter weights.", show_default="the model's")]


def evaluate(
    out: Annotated[Path, typer.Option(help="The folder for report.md, scores, figures.")] = Path("out/referee"),
    subset: Annotated[
        Literal["all", "small"], typer.Option(help="small: a few questions and strengths, in a few minutes.")
    ] = "all",
    count: Annotated[int | None, typer.Option(help="At most so many questions a cell.", min=1)] = None,
    methods: Annotated[
        list[str] | None, typer.Option(help="A method to measure; may be given several times.", show_default="all")
    ] = None,
    model: ModelOption = "emoji",
    adapter: AdapterOption = None,
    steps: Annotated[int, typer.Option(help="Steps of denoising.", min=1)] = 25,
    jobs: Annotated[int, typer.Option(help="Processes that draw, of one thread each.", min=1, max=64)] = 1,
    pictures: Annotated[
        Path | None, typer.Option(help="Where drawings are kept.", show_default="in the report's folder")
    ] = None,
) -> None:
    """Measure every method against the truth, and write report.md, scores and figures.

    Every picture is kept once it is drawn, so whatever stops the command, the same command goes on where it was. All
    needs the drawings of the emoji world (make world); the small set has its own with it.

    \b
    instantstyle evaluate --subset small --out out/small
    instantstyle evaluate --jobs 2 --count 12
    instantstyle evaluate --methods instantstyle --methods ip-adapter
    """
    from functools import partial

    from instantstyle.cli.progress import hush, standing

    hush()
    from instantstyle.evaluate.report import run_evaluation
    from instantstyle.loading import load

    loaded = load(model, adapter=adapter)
    load_again = partial(load, model, adapter=adapter) if jobs > 1 else None
    with standing("drawing") as update:
        report = run_evaluation(
            loaded,
            out,
            subset=subset,
            count=count,
            methods=methods,
            steps=steps,
            pictures=pictures,
            workers=jobs,
            load=load_again,
            log=partial(typer.echo, err=True),
            on_progress=lambda now: update(now.done, now.total, now.seconds, now.seconds_left),
        )
    typer.echo(report)


def probe(
    model: ModelOption = "emoji",
    adapter: AdapterOption = None,
    count: Annotated[int, typer.Option(help="Questions a plan.", min=2)] = 48,
    steps: Annotated[int, typer.Option(help="Steps of denoising.", min=1)] = 25,
    plan: Annotated[
        list[str] | None, typer.Option(help="A plan to probe; several may be given.", show_default="each module alone")
    ] = None,
    without: Annotated[bool, typer.Option("--without", help="Also all modules but one, each in turn.")] = False,
    layout: Annotated[bool, typer.Option("--layout", help="Also ask whether the layout follows.")] = False,
    out: Annotated[Path | None, typer.Option(help="A PNG file to draw the figure into.", show_default=False)] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Keep the presets that are found in the model's folder, as presets.json.")
    ] = False,
) -> None:
    """Find which blocks carry style: one attention module at a time, as a table and a figure.

    \b
    instantstyle probe --out probe.png
    instantstyle probe --plan style --plan up.0.1=1 --count 24
    """
    from instantstyle.cli.progress import hush
    from instantstyle.utils.atomic_files import check_writable
    from instantstyle.utils.extras import import_extra
    from instantstyle.utils.images import write_png

    if out is not None:
        if out.suffix.lower() != ".png":
            raise InputError(f"the figure is a PNG file, so {str(out)!r} must end in .png")
        check_writable(out)
        import_extra("matplotlib", "evaluate")
    if write and plan:
        raise InputError("presets are found by probing each module alone: leave --plan out, or --write")
    hush()
    from instantstyle.evaluate.block_probe import infer_presets, probe_blocks, probe_figure, probe_table, write_presets
    from instantstyle.loading import load

    loaded = load(model, adapter=adapter)
    scores = probe_blocks(loaded, count, steps, plan, without=without, layout=layout)
    typer.echo(probe_table(scores))
    if out is not None:
        typer.echo(write_png(probe_figure(scores), out))
    if write:
        presets = infer_presets(scores, loaded.family.layout.modules)
        typer.echo(write_presets(loaded, presets, f"instantstyle probe --count {count} --steps {steps}"))


def compare(
    prompt: Annotated[str, typer.Argument(help="What the pictures are to show.", show_default=False)],
    style: Annotated[list[str], typer.Option(help="A reference picture; may be given several times: a row each.")],
    out: Annotated[Path, typer.Option(help="The PNG file of the grid.")],
    model: ModelOption = "emoji",
    adapter: AdapterOption = None,
    seed: Annotated[int, typer.Option(help="The number chance begins from.")] = 0,
    steps: Annotated[int, typer.Option(help="Steps of denoising.")] = 30,
) -> None:
    """Draw one prompt by every method, in one labelled grid.

    \b
    instantstyle compare "a cat" --style reference.png --out grid.png
    instantstyle compare "a cat" --style one.png --style two.png --seed 7 --out grid.png
    """
    from instantstyle.cli.progress import hush
    from instantstyle.request import Request, StyleReference
    from instantstyle.utils.atomic_files import check_writable
    from instantstyle.utils.images import image_grid, load_image, write_png

    if out.suffix.lower() != ".png":
        raise InputError(f"the grid is a PNG file, so {str(out)!r} must end in .png")
    check_writable(out)
    references = {path: StyleReference(path) for path in style}
    hush()
    from instantstyle.loading import load
    from instantstyle.methods import METHODS
    from instantstyle.sampling import Engine

    engine = Engine(load(model, adapter=adapter))
    names = sorted(METHODS, key=lambda name: name != "none")
    runs = {
        (path, name): engine.submit(
            Request(prompt, references=[] if name == "none" else [reference], method=name, seed=seed, steps=steps)
        )
        for path, reference in references.items()
        for name in names
    }
    engine.run()
    rows = [[load_image(path), *(runs[path, name].result().images[0] for name in names)] for path in style]
    labels = ["no reference" if name == "none" else name for name in names]
    sheet = image_grid(rows, rows=[Path(path).stem for path in style], columns=["reference", *labels], cell=160)
    typer.echo(write_png(sheet, out))
