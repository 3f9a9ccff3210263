"""mkdocs hooks: tables generated from the code, and links to files of the repository outside docs/.

A comment `<!-- generated: NAME ARGUMENTS -->` in a page is replaced by what `GENERATORS[NAME]` returns, so that no page
repeats what the code or a measurement already says.  A relative link that leaves docs/ works in the repository as it
stands; on the site its target becomes a page under repository/.
"""

import importlib.util
import json
import os.path
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
LINK = re.compile(r"(\]\()([^)#\s]+)(#[^)\s]*)?(\))")
GENERATED = re.compile(r"<!-- generated: (\S+)(?: (\S+))? -->")
CODE = {".py": "python", ".yaml": "yaml", ".toml": "toml"}


def _module(path: str) -> ModuleType:
    """A script of the repository that belongs to no package, as a module."""
    name = f"documented_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; bars inside cells are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def method_options(method: str) -> str:
    """The options of one method as a table, or a sentence where it has none."""
    from instantstyle.methods import METHODS

    rows: list[list[str]] = []
    for name, option in METHODS[method].options.items():
        if option.choices:
            accepted = ", ".join(f"`{choice}`" for choice in option.choices)
        elif isinstance(option.default, bool):
            accepted = "`true`, `false`"
        elif isinstance(option.default, str):
            accepted = "text"
        else:
            accepted = f"{option.low:g} to {option.high:g}"
        default = str(option.default).lower() if isinstance(option.default, bool) else str(option.default)
        rows.append([f"`{name}`", f"`{default}`" if default else "", accepted, option.help])
    return markdown_table(["option", "default", "values", ""], rows) if rows else "This method has no options."


def method_strength(method: str) -> str:
    """What the reference's weight means in a method."""
    from instantstyle.methods import METHODS

    strength = METHODS[method].strength
    if strength is None:
        return "This method has no strength."
    values = ", ".join(f"{value:g}" for value in strength.values)
    return f"The reference's weight is {strength.help}. As published: {strength.default:g}. Swept: {values}."


def methods_table(_: str) -> str:
    """Every method: what it does, its source, what it uses and costs."""
    from instantstyle.methods import METHODS

    rows: list[list[str]] = []
    for name, spec in METHODS.items():
        linked = f"[`{name}`]({name}.md)" if spec.takes_references else f"`{name}`"
        training = f", after a training of about {spec.fit_cost:g}" if spec.fit_cost else ""
        needs = "adapter" if spec.needs_adapter else ""
        rows.append([linked, spec.help, f"arXiv {spec.paper}" if spec.paper else "", needs, f"{spec.cost:g}{training}"])
    return markdown_table(["method", "what it does", "source", "needs", "time relative to no style"], rows)


def method_fields(method: str) -> str:
    """Which fields of requests and references a method uses; the others are refused."""
    from instantstyle.methods import METHODS

    spec = METHODS[method]
    request, reference = (
        ", ".join(f"`{name}`" for name in sorted(names)) for names in (spec.request_fields, spec.reference_fields)
    )
    of_references = f"picture, `weight`{', ' if reference else ''}{reference}"
    return f"Used of a request: {request}. Used of a reference: {of_references}. Other style fields are refused."


def command_help(_: str) -> str:
    """The help of every command, as `--help` prints it."""
    import typer.main

    from instantstyle.cli import app

    def sections(command: Any, path: tuple[str, ...], parent: Any) -> Iterator[str]:
        context = command.context_class(command, info_name=path[-1], parent=parent, terminal_width=100)
        text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
        yield f"## {' '.join(path)}\n\n```text\n{text}\n```"
        for name, inner in getattr(command, "commands", {}).items():
            yield from sections(inner, (*path, name), context)

    return "\n\n".join(sections(typer.main.get_command(app), ("instantstyle",), None))


def referee(_: str) -> str:
    """The figures of the committed evaluation report."""
    return _module("docs/evaluation_tables.py").section(
        json.loads((ROOT / "benchmarks/results/referee/report.json").read_text(encoding="utf-8"))
    )


GENERATORS: Mapping[str, Callable[[str], str]] = {
    "method-options": method_options,
    "method-strength": method_strength,
    "method-fields": method_fields,
    "methods": methods_table,
    "command-help": command_help,
    "evaluation": referee,
    "refused-pairings": lambda _: _module("tests/cli/pairings.py").table(),
    "compared-with-diffusers": lambda _: _module("tests/oracle/combinations.py").table(),
}


def expand(markdown: str) -> str:
    """The text with its `generated` comments replaced."""

    def generated(match: re.Match[str]) -> str:
        return GENERATORS[match[1]](match[2] or "")

    return GENERATED.sub(generated, markdown)


def site_path(path: Path) -> str:
    """Where a file lies in the site's sources: docs/ at the top, the rest of the repository under repository/."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    inside = path.relative_to(ROOT).as_posix()
    return f"repository/{inside}.md" if path.suffix in CODE else f"repository/{inside}"


def repository_links(markdown: str, source: Path) -> dict[str, Path]:
    """Relative links of a page to existing files, as written, and the files."""
    targets = {match[2] for match in LINK.finditer(markdown) if "://" not in match[2]}
    files = {target: Path(os.path.normpath(source.parent / target)) for target in targets}
    return {target: file for target, file in files.items() if file.is_file() and file.is_relative_to(ROOT)}


def rewrite(markdown: str, source: Path) -> str:
    """The page with its links to files of the repository as links inside the site."""
    links, here = repository_links(markdown, source), Path(site_path(source)).parent

    def link(match: re.Match[str]) -> str:
        if match[2] not in links:
            return match[0]
        return f"{match[1]}{os.path.relpath(site_path(links[match[2]]), here)}{match[3] or ''}{match[4]}"

    return LINK.sub(link, markdown)


def text_of(path: Path) -> str:
    """A file of the repository as Markdown."""
    text = path.read_text(encoding="utf-8")
    if path.suffix in CODE:
        return f"# {path.relative_to(ROOT).as_posix()}\n\n```{CODE[path.suffix]}\n{text}\n```\n"
    return text


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside docs/ that pages link to, and those that these link to."""
    waiting = [Path(file.abs_src_path) for file in files.documentation_pages() if file.abs_src_path]
    done = set(waiting)
    while waiting:
        source = waiting.pop()
        for path in repository_links(expand(text_of(source)), source).values():
            if path in done:
                continue
            done.add(path)
            if path.is_relative_to(DOCS):
                continue
            uri = site_path(path)
            if uri.endswith(".md"):
                waiting.append(path)
                content = rewrite(text_of(path), path)
                file = File.generated(config, uri, content=content, inclusion=InclusionLevel.NOT_IN_NAV)
            else:
                file = File.generated(config, uri, abs_src_path=str(path))
            files.append(file)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Expand what is generated and send links to the site's copies."""
    source = page.file.abs_src_path
    if source is None or not Path(source).is_relative_to(DOCS):
        return markdown
    return rewrite(expand(markdown), Path(source))
