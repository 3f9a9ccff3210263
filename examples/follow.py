"""A drawing's edges in the style of another picture: how closely they are followed, from not at all to wholly."""

from pathlib import Path

import instantstyle as ist
from instantstyle.utils import images

HERE = Path(__file__).parent / "references"
WEIGHTS = (0.0, 0.3, 0.6, 1.0)

if __name__ == "__main__":
    model = ist.load()
    if "canny" not in model.controls:
        raise SystemExit("the built-in model has no ControlNet in this installation: see docs/control.md")
    reference, shape = ist.StyleReference(HERE / "dog-neon.png"), HERE / "whale-plain.png"
    requests = [
        ist.Request("a whale", references=[reference], controls=[ist.Control("canny", shape, weight)], seed=7)
        for weight in WEIGHTS
    ]
    row = [ist.generate(model, request).images[0] for request in requests]
    Path("out").mkdir(exist_ok=True)
    print(images.write_png(images.image_grid([row], columns=[f"{weight:g}" for weight in WEIGHTS]), "out/follow.png"))
