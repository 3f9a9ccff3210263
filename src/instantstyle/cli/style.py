"""`instantstyle style make|show|list`: style cards, made of pictures, looked at, and which there are."""

import json
from pathlib import Path
from typing import Annotated, Any, cast

import typer

style = typer.Typer(
    name="style",
    help="Style cards: a style by name, to be given wherever a reference goes.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@style.command()
def make(
    pictures: Annotated[
        list[str],
        typer.Argument(help="Pictures of one style, or one style card to be looked at anew.", show_default=False),
    ],
    name: Annotated[
        str | None, typer.Option(help="What the card is called.", show_default="the first picture's file name")
    ] = None,
    content: Annotated[
        list[str] | None, typer.Option(help="What the pictures show, to be subtracted; may be given several times.")
    ] = None,
    plan: Annotated[str | None, typer.Option(help="The plan it is meant for.", show_default="the model's")] = None,
    licence: Annotated[str, typer.Option(help="The licence of the pictures, as CC0-1.0.")] = "",
    credit: Annotated[str, typer.Option(help="Who made them.")] = "",
    out: Annotated[
        Path | None, typer.Option(help="A .style.safetensors file to write.", show_default="among your own cards")
    ] = None,
    model: Annotated[str, typer.Option(help="The model whose image encoder looks at them.")] = "emoji",
    adapter: Annotated[str | None, typer.Option(help="IP-Adapter weights.", show_default="the model's")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
) -> None:
    """Write a style card: what the model's image encoder sees of pictures."""
    from instantstyle.cli.progress import hush
    from instantstyle.errors import InputError
    from instantstyle.request import StyleReference
    from instantstyle.request.style_card import SUFFIX, StyleCard, is_card_name, user_style_dir
    from instantstyle.utils.atomic_files import check_writable

    shown = [StyleReference(each).image for each in pictures]
    cards = [each for each in shown if isinstance(each, StyleCard)]
    if cards and len(shown) > 1:
        raise InputError("a style card is made of pictures, or of one card that is looked at anew: not of both")
    called = name or (cards[0].name if cards else Path(pictures[0]).stem)
    if not is_card_name(called):
        raise InputError(f"a style card cannot be called {called!r}: give --name, letters, digits, spaces and + - _")
    path = out
    if path is None:
        path = user_style_dir() / f"{called}{SUFFIX}"
        path.parent.mkdir(parents=True, exist_ok=True)
    if not path.name.endswith(SUFFIX):
        raise InputError(f"style cards are {SUFFIX} files, so --out {str(path)!r} must end so")
    check_writable(path)

    hush()
    from instantstyle.loading import load
    from instantstyle.methods.reference_embedding import make_card, reembed
    from instantstyle.request import StoredImage

    loaded = load(model, adapter=adapter, device=device, dtype=dtype)
    if cards:
        given: dict[str, Any] = {"name": called, "content": content, "plan": plan, "licence": licence, "credit": credit}
        card = reembed(loaded, cards[0])
        changed = {field: value for field, value in given.items() if value}
        held = {field: getattr(card, field) for field in StyleCard.model_fields}
        card = StyleCard(**{**held, **changed})
    else:
        seen = [each for each in shown if isinstance(each, StoredImage)]
        said = content[0] if content and len(content) == 1 else content
        card = make_card(loaded, called, seen, content=said, plan=plan, licence=licence, credit=credit)
    typer.echo(str(card.save(path)))


@style.command()
def show(
    card: Annotated[str, typer.Argument(help="A card's name or file.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Also write its pictures side by side, as PNG.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON, numbers and pictures left out.")] = False,
) -> None:
    """Say what a style card holds."""
    from instantstyle.errors import InputError
    from instantstyle.request.style_card import SUFFIX, find_style_card, read_card, unknown_card_hint
    from instantstyle.utils import images

    found = read_card(card) if card.endswith(SUFFIX) else find_style_card(card)
    if found is None:
        raise InputError(f"there is no style card file {card!r}{unknown_card_hint(card)}")
    if out is not None:
        images.write_png(images.image_grid([found.pictures()]), out)
    said = found.model_dump(mode="json", exclude={"sights", "thumbnails"})
    said |= {"encoders": [sight.encoder for sight in found.sights], "pictures": len(found.thumbnails)}
    if as_json:
        typer.echo(json.dumps(said, ensure_ascii=False))
        return
    for field, value in said.items():
        shown = ", ".join(map(str, cast("list[object]", value))) if isinstance(value, list) else value
        if shown not in (None, ""):
            typer.echo(f"{field:<10} {shown}")


@style.command("list")
def list_cards(
    as_json: Annotated[bool, typer.Option("--json", help="Print name, file, licence and encoders as JSON.")] = False,
) -> None:
    """Say which style cards there are: those that come with the package, and your own."""
    from instantstyle.errors import WeightsError
    from instantstyle.request.style_card import SHIPPED, list_style_cards, read_card

    rows: list[dict[str, Any]] = []
    for name, path in list_style_cards().items():
        row: dict[str, Any] = {"name": name, "file": str(path), "shipped": path.parent == SHIPPED}
        try:
            card = read_card(path)
            row |= {"licence": card.licence, "encoders": [sight.encoder for sight in card.sights]}
        except WeightsError as damaged:
            row["error"] = str(damaged)
        rows.append(row)
    if as_json:
        typer.echo(json.dumps(rows, ensure_ascii=False))
        return
    for row in rows:
        said = row.get("error") or f"{row['licence'] or 'no licence said':<10} {'; '.join(row['encoders'])}"
        typer.echo(f"{row['name']:<14} {'' if row['shipped'] else 'yours, '}{said}")
