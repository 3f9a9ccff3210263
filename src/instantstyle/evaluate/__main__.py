"""`python -m instantstyle.evaluate [--model M] [--count N] [--out FILE]`: the probe, as a Markdown table."""

import argparse
from pathlib import Path

from instantstyle.evaluate.probe import probe, table
from instantstyle.model import load


def main() -> None:
    """Probe a model and print (or write) the table."""
    parser = argparse.ArgumentParser(description="Which blocks carry style? One attention module at a time.")
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--adapter", help="another adapter file than the model's own")
    parser.add_argument("--count", type=int, default=48, help="questions a plan")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--plans", nargs="*", help="these plans instead of every module alone")
    parser.add_argument("--out", type=Path, help="write the table here too")
    given = parser.parse_args()
    text = table(probe(load(given.model, adapter=given.adapter), given.count, given.steps, given.plans))
    print(text)
    if given.out is not None:
        given.out.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
