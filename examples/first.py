"""A cat in the style of a picture: the ten lines to begin with."""

from pathlib import Path

import instantstyle as ist

if __name__ == "__main__":
    model = ist.load()
    reference = ist.StyleReference(Path(__file__).parent / "references/dog-neon.png", content="dog")
    result = ist.generate(model, ist.Request("a cat", references=[reference], seed=7))
    Path("out").mkdir(exist_ok=True)
    result.save("out/first.png")
    print("out/first.png")
