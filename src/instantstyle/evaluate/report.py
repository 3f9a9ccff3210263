"""The comparison: every method and control put to the same questions, measured, and written down.

Resumable: pictures are kept by what they were made from, so a second run draws only what is missing.
"""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from instantstyle.errors import InputError, nearest
from instantstyle.evaluate.judges import HELD_OUT
from instantstyle.evaluate.metrics import Floats, Interval, bootstrap, correlation, towards_truth
from instantstyle.evaluate.questions import STEPS, Answers, Question, Way, ask
from instantstyle.evaluate.real import Pixels
from instantstyle.evaluate.suite import CELLS, Columns, controls, digest, measure, suite
from instantstyle.methods import METHODS, STRENGTHS
from instantstyle.model import Model
from instantstyle.pictures import grid, png
from instantstyle.whole import write_whole

BARE, WRONG, BLANK, WORDS = "no reference", "reference of a wrong style", "blank reference", "style named in words"
CONTROLS = (BARE, WORDS, WRONG, BLANK, "copy of the reference", "palette alone")
"""What a measure must rank below the truth to be admitted."""
CEILING = "truth through the VAE"
MEASURES = (
    *(f"four-way right, {name}" for name in ("strokes", HELD_OUT, "pixels")),
    *(f"both right, {name}" for name in ("strokes", HELD_OUT)),
    *(f"content right, {name}" for name in ("strokes", HELD_OUT)),
    *(f"style right, {name}" for name in ("strokes", HELD_OUT, "grey", "edge")),
)
"""Measures of which more is better, candidates for admission."""
Report = Callable[[str], None]


@dataclass(frozen=True)
class Entry:
    """One method at one strength, or one control: its pictures, what they cost, and what was measured of them."""

    name: str
    strength: float | None
    pixels: Pixels
    seconds: float
    evaluations: float
    columns: Columns


@dataclass(frozen=True)
class Admission:
    """Whether a measure may rank methods: the truth beats every control on it, and copying is not the best of them."""

    measure: str
    truth: float
    controls: Mapping[str, float]

    @property
    def admitted(self) -> bool:
        """Whether it may."""
        best = max(self.controls.values())
        copied = self.controls.get("copy of the reference", -1.0)
        return self.truth > best and (copied < best or best == 0)


def admissions(entries: Mapping[str, Columns], rows: npt.NDArray[np.bool_]) -> list[Admission]:
    """The admission table, over the questions chosen by `rows`; `entries` are the truth and the controls by name."""

    def mean(name: str, measure: str) -> float:
        values = entries[name][measure][rows]
        return float(np.nanmean(values)) if (~np.isnan(values)).any() else float("nan")

    truth = CEILING if CEILING in entries else "truth"
    there = [name for name in CONTROLS if name in entries]
    return [Admission(m, mean(truth, m), {name: mean(name, m) for name in there}) for m in MEASURES]


def evaluate(
    model: Model,
    folder: Path,
    *,
    small: bool = False,
    methods: Sequence[str] | None = None,
    steps: int = STEPS,
    say: Report = print,
) -> Path:
    """Measure methods (by default all there are) on the suite, and write the report.  Returns the path of report.md.

    Raises InputError for a method that does not exist.
    """
    known = [name for name in METHODS if name != "none"]
    for name in methods or ():
        if name not in known:
            raise InputError(f"there is no method {name!r}: give some of {', '.join(known)}{nearest(name, known)}")
    asked = suite(small)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    seen = [q for q in asked if q.cell == CELLS[0]]

    def drawn(way: Way, questions: Sequence[Question]) -> Answers:
        what = (digest(questions), model.identity, steps, json.dumps(asdict(way), sort_keys=True))
        file = folder / "pictures" / f"{hashlib.sha256(repr(what).encode()).hexdigest()[:16]}.npz"
        if not file.exists():
            say(f"drawing {len(questions)} pictures: {way.name}, strength {way.strength}, reference {way.reference}")
            made = ask(model, questions, way, steps)
            buffer = io.BytesIO()
            np.savez_compressed(buffer, pixels=made.pixels, cost=[made.seconds, made.evaluations])
            write_whole(file, buffer.getvalue())
        with np.load(file) as kept:
            return Answers(kept["pixels"], float(kept["cost"][0]), float(kept["cost"][1]))

    def entry(name: str, way: Way, questions: Sequence[Question], swap: bool = False) -> Entry:
        answers = drawn(way, questions)
        other = drawn(_swapped(way), questions).pixels if swap else None
        columns = measure(questions, answers.pixels, other)
        return Entry(name, way.strength, answers.pixels, answers.seconds, answers.evaluations, columns)

    bare = entry(BARE, Way("none"), asked)
    compared = [bare]
    compared.append(entry(WORDS, Way("none", styled_words=True), asked))
    compared.append(entry(WRONG, Way(reference="wrong"), asked))
    compared.append(entry(BLANK, Way(reference="blank"), asked))
    for name, pixels in controls(asked, bare.pixels, model).items():
        compared.append(Entry(name, None, pixels, 0.0, 0.0, measure(asked, pixels)))
    swept: list[Entry] = []
    for name in methods or known:
        compared.append(entry(name, Way(name), asked, swap=True))
        knob = STRENGTHS.get(name)
        if knob is None or small:
            continue
        # The same number of tries for every method, of its own sweep.
        tried = [knob.values[int(i)] for i in np.linspace(0, len(knob.values) - 1, 4).round().astype(int)]
        swept += [entry(name, Way(name, strength=value), seen) for value in tried]
    return write(folder, asked, compared, swept, model, steps)


def _swapped(way: Way) -> Way:
    return replace(way, reference="other")


def write(
    folder: Path, asked: Sequence[Question], compared: Sequence[Entry], swept: Sequence[Entry], model: Model, steps: int
) -> Path:
    """Write report.md, scores.csv and a sheet of pictures for each cell."""
    by_name = {each.name: each.columns for each in compared}
    cells = {cell: np.array([q.cell == cell for q in asked]) for cell in CELLS}
    admitted = admissions(by_name, cells[CELLS[0]])
    text = [
        "# The referee's report",
        "",
        f"{len(asked)} questions, set {digest(asked)[:16]}; model {model.found.spec}, weights {model.identity[:16]}; "
        f"{steps} steps. The judge `{HELD_OUT}` was never used to tune anything.",
        "",
        "## Which measures may rank methods",
        "",
        "A measure is admitted only if the truth (through the VAE) beats every control on it and copying the reference "
        "does not win it among the controls.",
        "",
        *_admission_table(admitted),
    ]
    for cell, rows in cells.items():
        text += ["", f"## {cell}", "", *_table(asked, compared, rows, [a.measure for a in admitted if a.admitted])]
    if swept:
        text += ["", "## Every method over its one strength", "", *_sweep(asked, swept)]
    for number, cell in enumerate(CELLS):
        name = f"sheet-{number + 1}.png"
        write_whole(folder / name, png(_sheet(asked, compared, np.flatnonzero(cells[cell])[:6])))
        text += ["", f"![{cell}: what each drew]({name})"]
    write_whole(folder / "scores.csv", _scores(asked, compared, swept).encode())
    return write_whole(folder / "report.md", ("\n".join(text) + "\n").encode())


def _admission_table(admitted: Sequence[Admission]) -> list[str]:
    names = list(admitted[0].controls)
    lines = [f"| measure | truth | {' | '.join(names)} | admitted |", "|---|---|" + "---|" * len(names) + "---|"]
    for a in admitted:
        shares = " | ".join(f"{value:.2f}" for value in a.controls.values())
        lines.append(f"| {a.measure} | {a.truth:.2f} | {shares} | {'yes' if a.admitted else 'no'} |")
    return lines


def _mean(asked: Sequence[Question], values: Floats, rows: npt.NDArray[np.bool_]) -> Interval:
    kept = [q for q, there in zip(asked, rows, strict=True) if there]
    return bootstrap(values[rows], {"thing": [q.thing for q in kept], "style": [repr(q.style) for q in kept]})


def _table(
    asked: Sequence[Question], compared: Sequence[Entry], rows: npt.NDArray[np.bool_], ranked: Sequence[str]
) -> list[str]:
    """Admitted measures with intervals, then what describes: leakage, distance, grounds, cost."""
    by_name = {each.name: each for each in compared}
    shown = [m for m in ranked if not np.isnan(by_name["truth"].columns[m][rows]).all()]
    more = (f"four-way copied, {HELD_OUT}", f"excess hit, {HELD_OUT}", f"swap leak, {HELD_OUT}", "copies")
    heads = [*shown, *more, "way left to the truth", "ground L r", "ground ab r", "seconds", "UNet rows"]
    lines = [f"| | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for each in compared:
        cells = [str(_mean(asked, each.columns[m], rows)) for m in shown]
        cells += [f"{_nanmean(each.columns[m][rows]):.2f}" if m in each.columns else "" for m in more]
        far = f"distance to truth, {HELD_OUT}"
        ways = (e.columns[far][rows] for e in (each, by_name.get(CEILING, by_name["truth"]), by_name[BARE]))
        left = towards_truth(*ways)
        c = each.columns
        light = correlation(c["ground L"][rows], c["reference ground L"][rows])
        tint = correlation(*(np.stack([c[f"{p} {x}"][rows] for x in "ab"]) for p in ("ground", "reference ground")))
        cells += [f"{left:.2f}", f"{light:.2f}", f"{tint:.2f}", f"{each.seconds:.2f}", f"{each.evaluations:.0f}"]
        lines.append(f"| {each.name} | {' | '.join(cells)} |")
    return lines


def _nanmean(values: Floats) -> float:
    return float(np.nanmean(values)) if (~np.isnan(values)).any() else float("nan")


def _sweep(asked: Sequence[Question], swept: Sequence[Entry]) -> list[str]:
    heads = (f"both right, {HELD_OUT}", f"four-way right, {HELD_OUT}", f"four-way copied, {HELD_OUT}", "copies")
    lines = [f"| method | strength | {' | '.join(heads)} |", "|---|---|" + "---|" * len(heads)]
    for each in swept:
        values = " | ".join(f"{_nanmean(each.columns[m]):.2f}" for m in heads)
        lines.append(f"| {each.name} | {each.strength:g} | {values} |")
    return lines


def _sheet(asked: Sequence[Question], compared: Sequence[Entry], rows: npt.NDArray[np.integer]) -> Image.Image:
    shown = [each for each in compared if each.name != "copy of the reference"]
    chosen = [int(i) for i in rows]
    pictures = [
        [Image.fromarray(asked[i].reference), *(Image.fromarray(each.pixels[i]) for each in shown)] for i in chosen
    ]
    labels = [f"{asked[i].thing} / {asked[i].shown}" for i in chosen]
    return grid(pictures, rows=labels, columns=["reference", *(each.name for each in shown)], cell=128)


def _scores(asked: Sequence[Question], compared: Sequence[Entry], swept: Sequence[Entry]) -> str:
    """One row a picture and measure."""
    buffer = io.StringIO()
    rows = csv.writer(buffer)
    rows.writerow(("entry", "strength", "cell", "thing", "shown", "set", "family", "seed", "measure", "value"))
    for entries, questions in ((compared, asked), (swept, [q for q in asked if q.cell == CELLS[0]])):
        for each in entries:
            for i, q in enumerate(questions):
                what = (
                    each.name,
                    each.strength,
                    q.cell,
                    q.thing,
                    q.shown,
                    q.style.set_name,
                    q.style.look.family,
                    q.seed,
                )
                rows.writerows((*what, m, f"{values[i]:.5g}") for m, values in each.columns.items())
    return buffer.getvalue()
