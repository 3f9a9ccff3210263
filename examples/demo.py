"""Prompts x reference pictures with the built-in model, as one labelled grid: out/demo.png."""

from pathlib import Path

import instantstyle as ist
from instantstyle.utils import images

HERE = Path(__file__).parent
PROMPTS = ("a cat", "a house", "a rocket", "a guitar", "a rose", "an umbrella")
OUT = Path("out/demo.png")

if __name__ == "__main__":
    engine = ist.Engine(ist.load())
    paths = sorted(HERE.glob("references/*.png"))
    references: list[ist.StyleReference | None] = [None]
    for path in paths:
        print(f"opened {path}")
        references.append(ist.StyleReference(path, content=path.stem.split("-")[0]))
    rows = [[None, *(images.load_image(path) for path in paths)]]
    for prompt in PROMPTS:
        for reference in references:
            given = [reference] if reference else []
            engine.submit(ist.Request(prompt, references=given, seed=7))
        rows.append([result.images[0] for result in engine.run()])  # a whole row in one batch
        print(f"drew {prompt}")
    OUT.parent.mkdir(exist_ok=True)
    grid = images.image_grid(rows, rows=["", *PROMPTS], columns=["no reference", *(path.stem for path in paths)])
    images.write_png(grid, OUT)
    print(OUT.resolve())
