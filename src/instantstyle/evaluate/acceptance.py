"""`python -m instantstyle.evaluate.acceptance [--model FOLDER]`: what the built-in model must reach, row by row.

Every share is given beside its ceiling: what the same judge says of the real pictures that the questions ask for.
All questions are about unseen (thing, set) cells, 25 steps, one seed fixed beforehand, the family's `style` preset at
strength 1 unless a row says otherwise.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from instantstyle.emoji.sources import SETS
from instantstyle.emoji.splits import TRAINED_CONCEPTS, splits
from instantstyle.emoji.style_transforms import HELD_OUT_FAMILIES, TRAINED_FAMILIES, sample_transform
from instantstyle.errors import InputError
from instantstyle.evaluate import nearest_neighbour
from instantstyle.evaluate.classifiers import HELD_OUT, load_classifier, pixels_of, predict
from instantstyle.evaluate.ground_truth import Pixels, Style, render
from instantstyle.evaluate.metrics import background_correlation, cosine_distance, psnr, wilson
from instantstyle.evaluate.tasks import SEED, STEPS, Setting, Task, held_out_tasks, make_task, run_tasks, with_family
from instantstyle.loading import load
from instantstyle.model import Model
from instantstyle.pipeline import generate
from instantstyle.request import Request, StyleReference
from instantstyle.utils.atomic_files import write_atomic

JUDGES = ("strokes", HELD_OUT)
CARD_MARKERS = ("<!-- floors -->", "<!-- /floors -->")
"""Between which a model card holds the table."""
Bools = npt.NDArray[np.bool_]
ProgressFn = Callable[[int, int], None]


@dataclass(frozen=True)
class Check:
    """One figure, what the truth itself scores, and what must be reached."""

    what: str
    judge: str
    value: float
    ceiling: float | None
    """The same measure of the real pictures."""
    floor: float
    higher_is_better: bool = True
    """Whether more is better."""
    note: str = ""
    bound: float | None = None
    """What must reach the floor where it is not the figure itself: the lower end of its interval."""

    @property
    def passed(self) -> bool:
        """Whether the floor is reached."""
        reached = self.value if self.bound is None else self.bound
        return reached >= self.floor if self.higher_is_better else reached <= self.floor


def acceptance_checks(model: Model, count: int = 96, steps: int = STEPS, tick: ProgressFn | None = None) -> list[Check]:
    """Measure every row; `count` questions for the main ones, fewer for the others."""
    styled, bare = Setting(), Setting("none")
    asked = held_out_tasks(count)
    answers, without = run_tasks(model, asked, styled, steps, tick), run_tasks(model, asked, bare, steps, tick)
    truths = np.stack([q.truth for q in asked])
    rows = _content(asked, answers.pixels, without.pixels, truths)
    rows += _grounds(asked, answers.pixels, without.pixels, truths)
    plain = held_out_tasks(max(count // 2, 18), ("plain",), SEED + 1)
    drawn = run_tasks(model, plain, styled, steps, tick).pixels
    rows += _icon_sets(plain, drawn)
    copied = nearest_neighbour.copied_reference(asked, answers.pixels)
    of_truth = float(nearest_neighbour.copied_reference(asked, truths).mean())
    rows.append(Check("copies", "nearest", float(copied.mean()), of_truth, 0.05, higher_is_better=False))
    rows += _unseen_looks(model, max(count // 2, 6), steps, tick)
    rows += _facts(model, truths, steps)
    return rows


def _content(asked: Sequence[Task], drawn: Pixels, bare: Pixels, truths: Pixels) -> list[Check]:
    things, looks = [q.target for q in asked], [q.style.transform.kind for q in asked]
    rows: list[Check] = []

    def of(name: str, pixels: Pixels) -> tuple[Bools, Bools]:
        if name != "nearest":
            verdict = predict(load_classifier(name), pixels)
            return verdict.correct("concept", things), verdict.correct("family", looks)
        said, family = (
            nearest_neighbour.nearest_concepts(asked, pixels),
            nearest_neighbour.nearest_families(asked, pixels),
        )
        return np.array(said) == np.array(things), np.array(family) == np.array(looks)

    for name in (*JUDGES, "nearest"):
        (content, family), (real_content, real_family) = of(name, drawn), of(name, truths)
        free = float(of(name, bare)[0].mean())
        top, high = float(real_content.mean()), float(real_family.mean())
        both, ceiling = float((content & family).mean()), float((real_content & real_family).mean())
        rows += [
            Check(
                "content right", name, float(content.mean()), top, 0.85 * top, note=f"{free:.0%} without a reference"
            ),
            Check("treatment family right", name, float(family.mean()), high, 0.75 * high),
            Check("both right", name, both, ceiling, 0.6 * ceiling),
        ]
    return sorted(rows, key=lambda row: row.what != "content right")


def _grounds(asked: Sequence[Task], drawn: Pixels, bare: Pixels, truths: Pixels) -> list[Check]:
    references = np.stack([q.reference for q in asked])
    light, colour = background_correlation(drawn, references)
    free, real = background_correlation(bare, references), background_correlation(truths, references)
    note = "{:.2f} without a reference"
    return [
        Check("ground lightness, r", "Lab", light, real[0], 0.9, note=note.format(free[0])),
        Check("ground a and b, r", "Lab", colour, real[1], 0.5, note=note.format(free[1])),
    ]


def _icon_sets(asked: Sequence[Task], drawn: Pixels) -> list[Check]:
    ours, real = icon_set_accuracy(asked, drawn), icon_set_accuracy(asked, np.stack([q.truth for q in asked]))
    note = "untreated references, chance 0.11"
    return [
        Check("drawing set right", name, float(right.mean()), float(real[name].mean()), 2.5 / 9, note=note)
        for name, right in ours.items()
    ]


def icon_set_accuracy(asked: Sequence[Task], drawn: Pixels) -> dict[str, Bools]:
    """Of each picture whether its drawing set is told rightly, by every judge and by the nearest true picture."""
    names = [q.style.icon_set for q in asked]
    told = {name: predict(load_classifier(name), drawn).correct("drawer", names) for name in JUDGES}
    return {**told, "nearest": np.array(nearest_neighbour.nearest_icon_sets(asked, drawn)) == np.array(names)}


def _unseen_looks(model: Model, each: int, steps: int, tick: ProgressFn | None) -> list[Check]:
    """Looks that nothing was trained on: is the true one nearest among all families, or among all sets?"""
    rng, held_out = np.random.default_rng(SEED + 2), splits()
    cells = sorted(cell for cell in held_out.cells if cell[0] in TRAINED_CONCEPTS)
    treated, hands = list[Task](), list[Task]()
    for number in range(each * len(HELD_OUT_FAMILIES)):
        thing, set_name = cells[int(rng.integers(len(cells)))]
        look = sample_transform(rng, [HELD_OUT_FAMILIES[number % len(HELD_OUT_FAMILIES)]])
        treated.append(make_task(thing, set_name, look, rng, SEED + 500 + number))
    unseen_sets = sorted(held_out.sets)
    for number in range(each * len(unseen_sets)):
        thing, set_name = str(rng.choice(TRAINED_CONCEPTS)), unseen_sets[number % len(unseen_sets)]
        hands.append(make_task(thing, set_name, sample_transform(rng, ["plain"]), rng, SEED + 700 + number))
    families, sets = (*TRAINED_FAMILIES, *HELD_OUT_FAMILIES), tuple(SETS)
    rows: list[Check] = []
    for what, asked, known, candidate in (
        ("unseen treatment families", treated, families, _in_family),
        ("openmoji", hands, sets, _by_set),
    ):
        drawn = run_tasks(model, asked, Setting(), steps, tick).pixels
        true = [q.style.transform.kind if candidate is _in_family else q.style.icon_set for q in asked]
        for name in (*JUDGES, "nearest"):
            said = _nearest_look(name, asked, drawn, known, candidate)
            hits = sum(s == t for s, t in zip(said, true, strict=True))
            low, high = wilson(hits, len(asked))
            note = f"the lower end of {low:.2f} to {high:.2f} (95 %, {len(asked)} questions) must be above chance"
            figure, chance = hits / len(asked), 1 / len(known)
            rows.append(Check(f"{what}: nearest look", name, figure, 1.0, chance, note=note, bound=low))
    return rows


def _in_family(q: Task, family: str) -> Pixels:
    return render(q.target, Style(q.style.icon_set, with_family(q.style.transform, family)))


def _by_set(q: Task, set_name: str) -> Pixels:
    return render(q.target, Style(set_name, q.style.transform))


def _nearest_look(
    name: str,
    asked: Sequence[Task],
    drawn: Pixels,
    known: Sequence[str],
    candidate: Callable[[Task, str], Pixels],
) -> list[str]:
    """For each picture the look whose true picture of the same thing is nearest, to a judge or as measured."""
    said: list[str] = []
    for q, x in zip(asked, drawn, strict=True):
        candidates = np.stack([candidate(q, each) for each in known])
        if name == "nearest":
            said.append(known[nearest_neighbour.nearest_indices(x, candidates)])
        else:
            seen = predict(load_classifier(name), np.concatenate([candidates, x[None]])).how
            middle = seen[:-1].mean(0)
            said.append(known[int(cosine_distance(seen[:-1] - middle, seen[-1] - middle).argmin())])
    return said


def _facts(model: Model, truths: Pixels, steps: int) -> list[Check]:
    side = model.family.size[0]
    large = [Image.fromarray(each).resize((side, side), Image.Resampling.BICUBIC) for each in truths]
    back = pixels_of([model.decode_latents(model.encode_latents(each))[0] for each in large])
    weights = sum(file.stat().st_size for file in model.source.folder.rglob("*.safetensors")) / 1e6
    asked = Request(prompt="a cat", references=[StyleReference(large[0])], seed=1, steps=steps)
    seconds: list[float] = []
    for _ in range(3):
        began = time.perf_counter()
        generate(model, asked)
        seconds.append(time.perf_counter() - began)
    return [
        Check("things", "count", len(model.vocabulary), None, 120),
        Check("side, pixels", "count", side, None, 64),
        Check("VAE round trip, dB", "PSNR", psnr(back, truths), None, 26, note="unseen cells, all looks"),
        Check("weights, MB", "size", weights, None, 60, higher_is_better=False),
        Check(
            "one picture, seconds",
            "clock",
            min(seconds),
            None,
            2.5,
            higher_is_better=False,
            note=f"{steps} steps, best of 3",
        ),
    ]


def acceptance_table(rows: Sequence[Check]) -> str:
    """The rows as a Markdown table."""
    lines = ["| what | judge | figure | real pictures | floor | met | |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        ceiling = "" if row.ceiling is None else f"{row.ceiling:.2f}"
        sign = "at least" if row.higher_is_better else "at most"
        lines.append(
            f"| {row.what} | {row.judge} | {row.value:.2f} | {ceiling} | {sign} {row.floor:.2f} | "
            f"{'yes' if row.passed else 'no'} | {row.note} |"
        )
    return "\n".join(lines)


def into_card(card: Path, rows: Sequence[Check]) -> None:
    """Write the table between a model card's marks.  Raises InputError when it has none."""
    begin, end = CARD_MARKERS
    text = card.read_text("utf-8") if card.is_file() else ""
    before, _, rest = text.partition(begin)
    _, marked, after = rest.partition(end)
    if not marked:
        raise InputError(f"{card} has no place for the floors: a card is to hold {begin} and {end}")
    write_atomic(card, f"{before}{begin}\n\n{acceptance_table(rows)}\n\n{end}{after}".encode())


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description="What the built-in model must reach, row by row.")
    parser.add_argument("--model", default="emoji", help="the built-in model, or a folder")
    parser.add_argument("--adapter", help="another adapter file than the model's own")
    parser.add_argument("--count", type=int, default=96, help="questions of the main rows")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, help="write the table here, and the figures beside it as JSON")
    parser.add_argument("--card", action="store_true", help="write the table into the model's own card, too")
    given = parser.parse_args()

    def tick(done: int, of: int) -> None:
        print(f"drawn {done}/{of}", file=sys.stderr, flush=True)

    model = load(given.model, adapter=given.adapter)
    rows = acceptance_checks(model, given.count, given.steps, tick)
    print(acceptance_table(rows))
    if given.out is not None:
        write_atomic(given.out, f"{acceptance_table(rows)}\n".encode())
        figures = [{**asdict(row), "met": bool(row.passed)} for row in rows]
        write_atomic(given.out.with_suffix(".json"), f"{json.dumps(figures, indent=1)}\n".encode())
    if given.card:
        into_card(model.source.folder / "README.md", rows)


if __name__ == "__main__":
    main()
