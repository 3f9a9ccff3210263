"""The same request with the reference speaking at other blocks: style, layout, everywhere."""

from pathlib import Path

import instantstyle as ist
from instantstyle.utils import images

PLANS = ("style", "layout", "style+layout", "all", "precise")

if __name__ == "__main__":
    model = ist.load()
    reference = ist.StyleReference(Path(__file__).parent / "references/whale-plain.png")
    requests = [ist.Request("a house", references=[reference], plan=plan, seed=7) for plan in PLANS]
    row = [ist.generate(model, request).images[0] for request in requests]
    Path("out").mkdir(exist_ok=True)
    print(images.write_png(images.image_grid([row], columns=PLANS), "out/plans.png"))
