"""A cat in the style of a picture: the ten lines to begin with."""

from pathlib import Path

import instantstyle as ist

HERE = Path(__file__).parent

if __name__ == "__main__":
    model = ist.load()
    reference = ist.StyleReference(sorted(HERE.glob("references/*.png"))[0], content="dog")
    result = ist.generate(model, ist.Request("a cat", references=[reference], seed=7))
    Path("out").mkdir(exist_ok=True)
    print(result.save("out/first.png"))
