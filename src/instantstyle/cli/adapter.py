"""`instantstyle adapter show|slim`: what an IP-Adapter file is for, and a file of the blocks that a plan reads."""

from pathlib import Path
from typing import Annotated, Any

import typer

adapter = typer.Typer(
    name="adapter",
    help="IP-Adapter files: what they are for, and smaller ones of them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
MODEL = Annotated[str | None, typer.Option(help="The model it is for.", show_default="the family that its shapes fit")]


@adapter.command("show")
def show_adapter(
    file: Annotated[Path, typer.Argument(help="An IP-Adapter file.", show_default=False)],
    model: MODEL = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Say which family, image encoder and blocks an adapter is for."""
    from instantstyle.cli.output import print_result, to_json
    from instantstyle.weights.adapter import adapter_modules, load_adapter

    family = _family(file, model)
    loaded = load_adapter(file, family.layout, lazy=True)
    facts: dict[str, str | int | list[str]] = {
        "family": family.name,
        "kind": "plus" if loaded.is_plus else "base",
        "tokens": loaded.token_count,
        "reads": loaded.expected_features,
        "blocks": list(adapter_modules(file, family.layout)),
        "bytes": file.stat().st_size,
    }
    if as_json:
        print_result(to_json(facts))
    else:
        texts = {name: ", ".join(value) if isinstance(value, list) else value for name, value in facts.items()}
        print_result("\n".join(f"{name:<8} {text}" for name, text in texts.items()))


@adapter.command("slim")
def slim_adapter(
    full: Annotated[Path, typer.Argument(help="An IP-Adapter file.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.", show_default=False)],
    plan: Annotated[str, typer.Option(help="Which blocks to keep: a preset, or terms as up.0.1=1.")] = "style",
    model: MODEL = None,
) -> None:
    """Write an adapter with only the blocks that a plan reads: in SDXL, a style block is a sixth of them."""
    from instantstyle.blocks import parse_block_plan
    from instantstyle.cli.output import print_done, print_note
    from instantstyle.errors import InputError
    from instantstyle.weights.adapter import extract_blocks

    if out.suffix != ".safetensors":
        raise InputError(f"adapters are written as .safetensors, and {str(out)!r} ends otherwise")
    family = _family(full, model)
    extract_blocks(full, out, parse_block_plan(plan, family.layout, family.presets), family.layout)
    before, after = full.stat().st_size, out.stat().st_size
    print_done(str(out))
    print_note(f"{after:,} of {before:,} bytes ({after / before:.0%})")


def _family(file: Path, model: str | None) -> Any:
    """The family of the model that was named, or the one that the adapter's shapes fit."""
    from instantstyle.weights.adapter import family_of_adapter
    from instantstyle.weights.resolve import resolve_model
    from instantstyle.weights.unet_config import family_of

    return family_of_adapter(file) if model is None else family_of(resolve_model(model).network_config)
