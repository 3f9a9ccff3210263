"""Prompts x reference pictures with the built-in model, as one labelled grid: out/demo.png."""

from pathlib import Path

import instantstyle as ist
from instantstyle import pictures

HERE = Path(__file__).parent
PROMPTS = ("a cat", "a house", "a rocket", "a guitar", "a rose", "an umbrella")
OUT = Path("out/demo.png")

if __name__ == "__main__":
    model = ist.load()
    paths = sorted(HERE.glob("references/*.png"))
    references: list[ist.StyleReference | None] = [None]
    for path in paths:
        print(f"opened {path}")
        references.append(ist.StyleReference(path, content=path.stem.split("-")[0]))
    rows = [[None, *(pictures.read(path) for path in paths)]]
    for prompt in PROMPTS:
        requests = [ist.Request(prompt, references=[r] if r else [], seed=7) for r in references]
        rows.append([ist.generate(model, request).images[0] for request in requests])
        print(f"drew {prompt}")
    OUT.parent.mkdir(exist_ok=True)
    grid = pictures.grid(rows, rows=["", *PROMPTS], columns=["no reference", *(path.stem for path in paths)])
    pictures.write_png(grid, OUT)
    print(OUT.resolve())
