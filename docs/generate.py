"""Writes what can be derived: the tree in README.md, docs/help.md, and the tables of docs/own-models.md.

The tree comes from docstrings, the help from the command line, the tables from the data that tests run.

    python docs/generate.py

A test calls the same functions and compares, so no page can go stale.
"""

import ast
import importlib.util
import os
import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- tree: written by docs/generate.py -->\n", "<!-- /tree -->"
_COLUMN = 30

# What has no docstring to take its line from.
PLAIN = {
    "Makefile": "the commands: make help",
    "pyproject.toml": "packaging; settings of the checks; who may import whom",
    "constraints.txt": "the versions that were tested",
    "README.md": "this page",
    "CHANGELOG.md": "what changed",
    "CONTRIBUTING.md": "how to change it, in two commands",
    "LICENSE": "Apache-2.0",
    "NOTICE": "whose emoji the built-in model has seen, and their licences",
    ".ci/run": "what CI runs",
    "src/instantstyle/assets/emoji/": "the built-in model: weights in diffusers' layout, and its card",
    "src/instantstyle/assets/clip/": "CLIP's vocabulary, for checkpoints in one file",
    "src/instantstyle/assets/referee/": "the small set's questions and drawings: make referee-small",
    "src/instantstyle/assets/styles/": "style cards of our own drawing: make styles",
    "src/instantstyle/emoji/splits.json": "what is held out",
    "src/instantstyle/py.typed": "the types are public",
    "docs/guide.md": "setting up, making pictures, making them again",
    "docs/concepts.md": "what the words mean",
    "docs/own-models.md": "use your own models: checkpoints, adapters, encoders, memory",
    "docs/control.md": "following the edges, lines or depth of a picture",
    "docs/styles.md": "style cards, and words the built-in model knows",
    "docs/gallery.md": "prompts by styles, blocks, subtraction, strength: make gallery",
    "docs/gallery/": "its pictures",
    "docs/foreign.md": "references unlike the training data: make foreign",
    "docs/train-your-own.md": "a style adapter of one's own, from pictures to a picture",
    "docs/help.md": "every command and option, generated",
    "docs/methods.md": "what each method does, its equation, knobs and pitfalls",
    "docs/demo.png": "the picture above",
    "benchmarks/results/": "measurements, with hardware and date",
    "benchmarks/LOG.md": "what was measured and led nowhere",
    "gpu/QUEUE.md": "what waits for a GPU",
    "examples/references/": "the reference pictures of the demo",
}


def line_of(path: Path) -> str:
    """The first sentence of a module's docstring, on one line.  Raises ValueError when there is none."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not docstring:
        raise ValueError(f"{path.relative_to(ROOT)} has no docstring: its first line is its line in README.md's tree")
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    sentence, stop, _ = paragraph.partition(". ")
    return sentence.removesuffix(".") if stop else paragraph.removesuffix(".")


def tree() -> str:
    """The repository as a code block, a line a file, folders after their files, in the order people read."""
    lines = [_row(name, text, 0) for name, text in PLAIN.items() if "/" not in name and (ROOT / name).exists()]
    lines.append(_row(".ci/run", PLAIN[".ci/run"], 0))
    lines += ["src/instantstyle/", *_folder(ROOT / "src/instantstyle", 1)]
    for name in ("tests", "examples", "docs", "benchmarks", "gpu"):
        lines += [f"{name}/", *_folder(ROOT / name, 1)]
    return "```\n" + "\n".join(lines) + "\n```\n"


def _folder(folder: Path, depth: int) -> list[str]:
    lines: list[str] = []
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name)):
        if path.name.startswith(".") or path.name == "__pycache__":
            continue
        name = path.relative_to(ROOT).as_posix()
        if f"{name}/" in PLAIN:
            lines.append(_row(f"{path.name}/", PLAIN[f"{name}/"], depth))
        elif path.is_dir():
            inside = _folder(path, depth + 1)
            lines += [f"{'  ' * depth}{path.name}/", *inside] if inside else []
        elif name in PLAIN:
            lines.append(_row(path.name, PLAIN[name], depth))
        elif path.suffix == ".py" and path.stat().st_size:
            lines.append(_row(path.name, line_of(path), depth))
    return lines


def _row(name: str, text: str, depth: int) -> str:
    return f"{'  ' * depth + name:{_COLUMN}} {text}"


def readme() -> str:
    """README.md with today's tree in it, and with the referee's figures where its report is committed."""
    before, begin, rest = (ROOT / "README.md").read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md has lost its marks: put {BEGIN.strip()} and {END} around the tree")
    return _measured(before + begin + tree() + end + after)


def _measured(page: str) -> str:
    section = runpy.run_path(str(ROOT / "docs/referee.py"))["section"](ROOT)
    begin, end = "<!-- referee: written by docs/generate.py -->\n", "<!-- /referee -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"README.md has lost its marks: put {begin.strip()} and {end} around the referee's figures")
    return page if section is None else before + begin + section + end + after


COMMANDS = (
    "",
    "generate",
    "again",
    "doctor",
    "compare",
    "evaluate",
    "probe",
    "similarity",
    "style",
    "style make",
    "style show",
    "style list",
    "train",
    "train adapter",
    "train features",
    "train b-lora",
)


def help_page() -> str:
    """docs/help.md: what `--help` prints for the program and each command, at a fixed width and without colour."""
    environment = {**os.environ, "COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1", "TERM": "dumb"}
    environment.pop("FORCE_COLOR", None)
    page = "# Help\n\nWritten by docs/generate.py from `--help`; do not edit.\n"
    for command in COMMANDS:
        argv = ["instantstyle", *command.split(), "--help"]
        code = "import sys; from instantstyle.cli import main; sys.argv = sys.argv[1:]; main()"
        shown = subprocess.run(
            [sys.executable, "-c", code, *argv], env=environment, capture_output=True, text=True, check=True
        ).stdout
        text = "\n".join(line.rstrip() for line in shown.strip("\n").splitlines())
        page += f"\n## {' '.join(argv[:-1])}\n\n```\n{text}\n```\n"
    return page


TABLES = {"pairings": "tests/cli/pairings.py", "proven": "tests/oracle/proven.py"}
"""Marks in docs/own-models.md, and the modules that say what stands between them: data that tests run."""


def own_models() -> str:
    """docs/own-models.md with today's tables in it."""
    page = (ROOT / "docs/own-models.md").read_text(encoding="utf-8")
    for name, path in TABLES.items():
        begin, end = f"<!-- {name}: written by docs/generate.py from {path} -->\n", f"<!-- /{name} -->"
        before, found, rest = page.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"docs/own-models.md has lost its marks: put {begin.strip()} and {end} around the table")
        page = before + begin + "\n" + _table(path) + "\n" + end + after
    return page


def _table(path: str) -> str:
    spec = importlib.util.spec_from_file_location(f"documented_{Path(path).stem}", ROOT / path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module.table()


def main() -> None:
    """Write all pages."""
    (ROOT / "docs/own-models.md").write_text(own_models(), encoding="utf-8")
    (ROOT / "docs/help.md").write_text(help_page(), encoding="utf-8")
    (ROOT / "README.md").write_text(readme(), encoding="utf-8")


if __name__ == "__main__":
    main()
