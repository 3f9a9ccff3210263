"""`instantstyle style make|show|list`: style cards, made of pictures, described, and which there are."""

from pathlib import Path
from typing import Annotated, Any, cast

import typer

style = typer.Typer(
    name="style",
    help="Style cards: a style by name, to be given wherever a reference goes.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@style.command("make")
def make_style_card(
    pictures: Annotated[
        list[str],
        typer.Argument(help="Pictures of one style, or one style card to be encoded anew.", show_default=False),
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
    model: Annotated[str, typer.Option(help="The model whose image encoder reads them.")] = "emoji",
    adapter: Annotated[str | None, typer.Option(help="IP-Adapter weights.", show_default="the model's")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
) -> None:
    """Write a style card: the model's image embeddings of pictures.

    \b
    instantstyle style make one.png two.png --name ink --content dog --licence CC0-1.0
    instantstyle style make neon --model sdxl --adapter ip-adapter_sdxl.safetensors --out neon.style.safetensors
    """
    from instantstyle.cli.output import print_done
    from instantstyle.cli.progress import hush
    from instantstyle.errors import InputError
    from instantstyle.request import StyleReference
    from instantstyle.request.style_card import SUFFIX, StyleCard, is_card_name, user_style_dir
    from instantstyle.utils.atomic_files import check_writable

    images = [StyleReference(each).image for each in pictures]
    cards = [each for each in images if isinstance(each, StyleCard)]
    if cards and len(images) > 1:
        raise InputError("a style card is made of pictures, or of one card that is encoded anew: not of both")
    card_name = name or (cards[0].name if cards else Path(pictures[0]).stem)
    if not is_card_name(card_name):
        raise InputError(f"a style card cannot be called {card_name!r}: give --name, letters, digits, spaces and + - _")
    path = out
    if path is None:
        path = user_style_dir() / f"{card_name}{SUFFIX}"
        path.parent.mkdir(parents=True, exist_ok=True)
    if not path.name.endswith(SUFFIX):
        raise InputError(f"style cards are {SUFFIX} files, so --out {str(path)!r} must end so")
    check_writable(path)

    hush()
    from instantstyle.loading import load
    from instantstyle.methods.reference_embedding import make_card, reembed
    from instantstyle.request import StoredImage

    loaded = load(model, adapter=adapter, device=device, dtype=dtype)
    content_phrases = content[0] if content and len(content) == 1 else content
    if cards:
        card = reembed(loaded, cards[0])
        fields: dict[str, Any] = {
            "name": card_name,
            "content": content_phrases,
            "plan": plan,
            "licence": licence,
            "credit": credit,
        }
        changed = {field: value for field, value in fields.items() if value}
        card = StyleCard(**{**{field: getattr(card, field) for field in StyleCard.model_fields}, **changed})
    else:
        stored = [each for each in images if isinstance(each, StoredImage)]
        card = make_card(loaded, card_name, stored, content=content_phrases, plan=plan, licence=licence, credit=credit)
    print_done(str(card.save(path)))


@style.command("show")
def show_style_card(
    card: Annotated[str, typer.Argument(help="A card's name or file.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Also write its pictures side by side, as PNG.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON, numbers and pictures left out.")] = False,
) -> None:
    """Say what a style card holds."""
    from instantstyle.cli.output import print_result, to_json
    from instantstyle.errors import InputError
    from instantstyle.request.style_card import SUFFIX, find_style_card, read_card, unknown_card_hint
    from instantstyle.utils import images

    style_card = read_card(card) if card.endswith(SUFFIX) else find_style_card(card)
    if style_card is None:
        raise InputError(f"there is no style card file {card!r}{unknown_card_hint(card)}")
    if out is not None:
        images.write_png(images.image_grid([style_card.pictures()]), out)
    fields = style_card.model_dump(mode="json", exclude={"sights", "thumbnails"})
    fields |= {"encoders": [each.encoder for each in style_card.sights], "pictures": len(style_card.thumbnails)}
    if as_json:
        print_result(to_json(fields))
        return
    texts = {
        field: ", ".join(map(str, cast("list[object]", value))) if isinstance(value, list) else value
        for field, value in fields.items()
    }
    print_result("\n".join(f"{field:<10} {text}" for field, text in texts.items() if text not in (None, "")))


@style.command("list")
def list_cards(
    as_json: Annotated[bool, typer.Option("--json", help="Print name, file, licence and encoders as JSON.")] = False,
) -> None:
    """Say which style cards there are: those that come with the package, and your own."""
    from instantstyle.cli.output import print_result, to_json
    from instantstyle.errors import WeightsError
    from instantstyle.request.style_card import SHIPPED_STYLES, list_style_cards, read_card

    cards: list[dict[str, Any]] = []
    for name, path in list_style_cards().items():
        entry: dict[str, Any] = {"name": name, "file": str(path), "shipped": path.parent == SHIPPED_STYLES}
        try:
            card = read_card(path)
            entry |= {"licence": card.licence, "encoders": [each.encoder for each in card.sights]}
        except WeightsError as damaged:
            entry["error"] = str(damaged)
        cards.append(entry)
    if as_json:
        print_result(to_json(cards))
        return
    lines: list[str] = []
    for entry in cards:
        text = entry.get("error") or f"{entry['licence'] or 'no licence said':<10} {'; '.join(entry['encoders'])}"
        lines.append(f"{entry['name']:<14} {'' if entry['shipped'] else 'yours, '}{text}")
    print_result("\n".join(lines))
