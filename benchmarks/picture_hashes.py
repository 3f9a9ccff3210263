"""Hashes of pictures: every method on the built-in and the tiny models, to compare two states of the code bit by bit.

    python benchmarks/picture_hashes.py --out before.json
    python benchmarks/picture_hashes.py --against before.json      # exit code 1 and a list where a picture differs

Each request is drawn on one thread, alone, on the CPU; its entry is the SHA-256 of the pixels.  Only public names are
used, so that the same script runs on either side of a rename.
"""

import argparse
import hashlib
import importlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

import instantstyle as ist  # noqa: E402

METHODS = (
    *("instantstyle", "ip-adapter", "style-aligned", "swapped"),
    *("b-lora", "stylekeeper", "cleanstyle", "stylestudio", "none"),
)
FAST: dict[str, dict[str, Any]] = {"b-lora": {"fit-steps": 2, "fit-rank": 2, "fit-rate": 0.01}}


def tiny_models() -> Any:
    """The module of the tests that makes small random models, under its present or its former name."""
    try:
        return importlib.import_module("tiny_models")
    except ModuleNotFoundError:
        return importlib.import_module("factory")


def requests(name: str) -> dict[str, ist.Request]:
    """A few dozen requests by name; for tiny random models with fewer steps."""
    small = name != "built-in"
    dog = None if name == "sd15" else "dog"  # SD1.5's text encoder has no projection into an image encoder's space
    folder = ROOT / "examples/references"
    shown = [Image.open(folder / f"{name}.png").convert("RGB") for name in ("dog-neon", "castle-hatching")]
    first, second = shown
    steps = 3 if small else 6

    def reference(image: Image.Image = first, **fields: Any) -> ist.StyleReference:
        return ist.StyleReference(image, **fields)

    def request(method: str = "instantstyle", /, *given: ist.StyleReference, **fields: Any) -> ist.Request:
        common: dict[str, Any] = {"seed": 7, "steps": steps, "options": FAST.get(method, {})}
        references = [] if method == "none" else list(given) or [reference(content=dog)]
        return ist.Request("a cat", references=references, method=method, **{**common, **fields})

    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    made = {f"method {name}": request(name) for name in METHODS}
    made["method ip-adapter"] = request("ip-adapter", reference())
    made |= {f"plan {plan}": request(plan=plan) for plan in ("style", "layout", "style+layout", "all", "precise")}
    made |= {f"subtraction {how}": request(subtraction=how) for how in ("normalised", "projected", "masked")}
    made |= {
        "plan terms": request(plan="up.0.1=1.2,down.2.1=0.5" if name != "sd15" else "up.1.1=1.2,down.2.1=0.5"),
        "two references": request("instantstyle", reference(content=dog), reference(second, weight=0.5)),
        "two averaged": request("instantstyle", reference(), reference(second), combine="average"),
        "masked": request("instantstyle", reference(mask=mask), reference(second)),
        "window": request(window=(0.2, 0.8)),
        "count": request(count=2),
        "negative": request(negative="a dog", guidance=4.0),
        "no guidance": request(guidance=1.0),
        "auto content": request("instantstyle", reference(content="auto")) if not small else request(seed=9),
        "init": request(init=ist.Init(second, 0.6)),
        "inpaint": request(init=ist.Init(second, 0.8, mask=mask)),
        "style-aligned inverted": request("style-aligned", options={"rows": "inverted"}),
        "style-aligned noised": request("style-aligned", options={"rows": "renoised"}),
        "swapped calibrated": request("swapped", options={"calibrate": True}),
    }
    for sampler in ("euler", "dpm++", "unipc", "ddim-trailing", "lcm", "tcd"):
        made[f"sampler {sampler}"] = request(sampler=sampler)
    return made


def hashes(names: list[str]) -> dict[str, str]:
    """The hash of every request's pixels, or the refusal where there is none."""
    found: dict[str, str] = {}
    for name in names:
        model = ist.load() if name == "built-in" else tiny_models().model(name)
        for what, request in requests(name).items():
            try:
                images = ist.generate(model, request).images
                pixels = b"".join(np.asarray(image).tobytes() for image in images)
                entry = hashlib.sha256(pixels).hexdigest()
            except ist.InstantStyleError as refusal:
                entry = f"refused: {type(refusal).__name__}"
            found[f"{name}: {what}"] = entry
            print(f"{name}: {what}: {entry[:60]}", file=sys.stderr)
    return found


def main() -> None:
    """Write the hashes, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--models", nargs="+", default=["built-in", "sdxl", "sd15", "emoji"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["INSTANTSTYLE_CACHE"] = cache
        found = hashes(given.models)
    if given.out:
        given.out.write_text(json.dumps(found, indent=1))
    if given.against:
        before = json.loads(given.against.read_text())
        differing = [name for name in found if before.get(name) != found[name]]
        for name in differing:
            print(f"differs: {name}: {before.get(name)} before, {found[name]} now")
        drawn = sum(not entry.startswith("refused") for entry in found.values())
        print(f"{len(found)} requests, {drawn} drawn, {len(differing)} differ")
        sys.exit(bool(differing))


if __name__ == "__main__":
    main()
