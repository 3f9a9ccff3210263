"""The gallery: prompts by style cards, blocks, subtraction, strength and control, with measurements of each.

    python docs/gallery.py     # writes docs/gallery.md and docs/gallery/*.png

Captions state what was done and measured, and no more; what people see in a picture comes from
`docs/observations.json` (section name to a sentence) and is put below it.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

import instantstyle as ist
from instantstyle.emoji.procedural import on_white, thing
from instantstyle.families import EMOJI
from instantstyle.methods.content_subtraction import nearest_text
from instantstyle.request.style_card import list_style_cards
from instantstyle.utils import images
from instantstyle.utils.atomic_files import write_atomic

DOCS = Path(__file__).resolve().parent
FOLDER = DOCS / "gallery"
OBSERVATIONS = DOCS / "observations.json"
SEED, STEPS = 7, 25

References = Sequence[ist.StyleReference]


@dataclass(frozen=True)
class Cell:
    """One picture of a section: its request, and the concept it is to show."""

    concept: str
    request: ist.Request


@dataclass(frozen=True)
class Section:
    """One picture of the gallery: a grid, rows of requests under a row of references or none."""

    name: str
    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[str]
    cells: Sequence[Sequence[Cell]]
    top: Sequence[Image.Image | None] = ()
    aside: Sequence[Image.Image] = ()
    """A picture left of each row: the control picture it follows."""


def _cell(concept: str, references: References = (), **fields: object) -> Cell:
    article = "an" if concept[0] in "aeiou" else "a"
    request = ist.Request.model_validate(
        {
            "prompt": f"{article} {concept}",
            "references": tuple(references),
            "seed": SEED,
            "steps": STEPS,
        }
        | fields
    )
    return Cell(concept, request)


def _picture(name: str) -> ist.StyleReference:
    path = DOCS.parent / "examples/references" / name
    return ist.StyleReference(path)


def cards_section(model: ist.Model) -> Section:
    """Prompts by the cards that come with the package."""
    names = list(list_style_cards(own=False))
    things = ("cat", "house", "rocket", "guitar", "umbrella")
    cells = [[_cell(each), *(_cell(each, [ist.StyleReference(name)]) for name in names)] for each in things]
    top = [None, *(ist.StyleReference(name).image.open() for name in names)]
    caption = (
        "The shipped style cards (`--style neon`), each at the model's style blocks; above them their first picture."
    )
    return Section("cards", "Prompts by style cards", caption, ["no style", *names], ["", *things], cells, top)


def blocks_section(model: ist.Model) -> Section:
    """The same references at other blocks."""
    plans = ("style", "layout", "style+layout", "all")
    names = ("dog-neon.png", "castle-hatching.png", "leaf-duotone.png", "fire-pixel.png")
    things = ("cat", "rose")
    cells = [
        [_cell(each), *(_cell(each, [_picture(name)], plan=plan) for plan in plans)]
        for name in names
        for each in things
    ]
    rows = [f"{name.removesuffix('.png')}, {each}" for name in names for each in things]
    caption = "One reference a row, entering at the style blocks, the layout block, both, and all (plain IP-Adapter)."
    return Section("blocks", "Style, layout, everywhere", caption, ["no style", *plans], rows, cells)


def subtraction_section(model: ist.Model) -> Section:
    """What the reference shows, taken out of it by weights."""
    weights = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
    contents = {"dog-neon.png": "dog", "castle-hatching.png": "castle", "whale-plain.png": "whale"}
    cells = [
        [_cell("cat", [ist.StyleReference(_picture(name).image, word, weight)], plan="all") for weight in weights]
        for name, word in contents.items()
    ]
    caption = "A cat with the reference at all blocks, where its content leaks most, `content` subtracted by weights."
    columns = [f"{weight:g}" for weight in weights]
    return Section(
        "subtraction", "Subtraction", caption, columns, [f"minus {word}" for word in contents.values()], cells
    )


def strength_section(model: ist.Model) -> Section:
    """Weights of the reference."""
    weights = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
    names = ("neon", "watercolour", "pixel", "papercut")
    cells = [[_cell("house", [ist.StyleReference(name, weight=weight)]) for weight in weights] for name in names]
    caption = "A house in four styles at the style blocks, by the reference's weight."
    return Section("strength", "Strength", caption, [f"{weight:g}" for weight in weights], names, cells)


def control_section(model: ist.Model) -> Section | None:
    """Edges of a drawing followed, in styles; None where the model has no ControlNet for them."""
    if "canny" not in model.controls:
        return None
    shapes = {"house": "house", "fish": "fish", "mushroom": "mushroom"}
    names = ("neon", "watercolour", "pixel", "papercut")
    cells: list[list[Cell]] = []
    aside = [Image.fromarray(on_white(thing(each))) for each in shapes]
    for drawing, each in zip(aside, shapes.values(), strict=True):
        control = ist.Control("canny", drawing, 1.0)
        cells.append(
            [
                _cell(each, controls=(control,)),
                *(_cell(each, [ist.StyleReference(s)], controls=(control,)) for s in names),
            ]
        )
    caption = "Canny edges (50/200, weight 1) of three drawings of our own, followed, in four styles."
    return Section("control", "Control", caption, ["no style", *names], list(shapes), cells, aside=aside)


SECTIONS: Sequence[Callable[[ist.Model], Section | None]] = (
    cards_section,
    blocks_section,
    subtraction_section,
    strength_section,
    control_section,
)


def draw_section(model: ist.Model, section: Section) -> list[list[Image.Image]]:
    """The pictures of a section, a row in one batch."""
    rows: list[list[Image.Image]] = []
    for row in section.cells:
        engine = ist.Engine(model)
        for cell in row:
            engine.submit(cell.request)
        rows.append([result.images[0] for result in engine.run()])
        print(f"{section.name}: {len(rows)} of {len(section.cells)} rows", file=sys.stderr)
    return rows


def recognition(model: ist.Model, section: Section, rows: Sequence[Sequence[Image.Image]]) -> str:
    """How many pictures of each column show what was asked for, by the model's own CLIP."""
    flat = [picture for row in rows for picture in row]
    embeds = model.encode_image(flat)
    words = [model.vocabulary[i] for i in nearest_text(embeds, model.vocabulary_embeds(embeds.shape[-1]))]
    right = [word == cell.concept for word, cell in zip(words, (c for row in section.cells for c in row), strict=True)]
    across = len(section.columns)
    counts = [sum(right[i::across]) for i in range(across)]
    columns = ", ".join(f"{name} {count}/{len(rows)}" for name, count in zip(section.columns, counts, strict=True))
    return f"Recognised by the model's own CLIP: {columns}."


def _sheet(section: Section, rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    grid: list[Sequence[Image.Image | None]] = [*([section.top] if section.top else []), *rows]
    columns = section.columns
    if section.aside:
        grid = [[a, *row] for a, row in zip(section.aside, rows, strict=True)]
        columns = ["drawing", *columns]
    return images.image_grid(grid, rows=section.rows, columns=columns, cell=80)


def main() -> None:
    """Write all pictures and the page."""
    model = ist.load()
    FOLDER.mkdir(exist_ok=True)
    observations: dict[str, str] = json.loads(OBSERVATIONS.read_text(encoding="utf-8")) if OBSERVATIONS.exists() else {}
    parts = [
        "# Gallery\n\nWritten by `python docs/gallery.py` (or `make gallery`); do not edit.  What is said to be seen "
        f"comes from docs/observations.json.\n\nModel {model.source.spec}, weights "
        f"{model.weights_fingerprint[:12]}, {STEPS} steps, seed {SEED}, guidance {EMOJI.guidance:g}.  "
        "Nothing was picked: one seed for all, fixed beforehand.\n"
    ]
    for make in SECTIONS:
        section = make(model)
        if section is None:
            continue
        rows = draw_section(model, section)
        images.write_png(_sheet(section, rows), FOLDER / f"{section.name}.png")
        lines = [f"## {section.title}", section.caption, f"![{section.title}](gallery/{section.name}.png)"]
        lines += [recognition(model, section, rows), *filter(None, [observations.get(section.name)])]
        parts.append("\n\n".join(lines) + "\n")
        print(FOLDER / f"{section.name}.png")
    if (DOCS / "foreign.md").exists():
        parts.append(
            "## Foreign references\n\nPhotographs, a painting, a screenshot, nothing: [foreign.md](foreign.md).\n"
        )
    print(write_atomic(DOCS / "gallery.md", "\n".join(parts).encode()))


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    try:
        main()
    except ist.InstantStyleError as error:
        sys.exit(f"error: {error}")
