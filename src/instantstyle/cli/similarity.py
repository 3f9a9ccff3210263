"""`instantstyle similarity`: CLIP-T, CLIP-I, DINO and CSD of pictures, by weights that the user has."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from instantstyle.errors import InputError, PictureError


def similarity(
    pictures: Annotated[list[Path], typer.Argument(help="Pictures to measure.", show_default=False)],
    prompt: Annotated[
        str | None, typer.Option(help="What they were to show.", show_default="what each picture remembers")
    ] = None,
    reference: Annotated[
        list[Path] | None, typer.Option(help="The style reference: one for all, or one for each picture in order.")
    ] = None,
    truth: Annotated[
        list[Path] | None, typer.Option(help="The right picture, where there is one: for all, or one for each.")
    ] = None,
    clip: Annotated[Path | None, typer.Option(help="A folder of a CLIP: CLIP-T and CLIP-I.")] = None,
    dino: Annotated[Path | None, typer.Option(help="A folder of a DINO, DINOv2 or DINOv3.")] = None,
    csd: Annotated[Path | None, typer.Option(help="The file of CSD: a style and a content figure.")] = None,
    out: Annotated[Path | None, typer.Option(help="A .csv or .md file to write the table to as well.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
) -> None:
    """Measure pictures as papers do, by CLIP, DINO and CSD weights that you have; nothing is fetched.

    Folders are as transformers saves them. Figures are cosines. CLIP-I and DINO to a reference reward copied content:
    a copy of the reference scores 1. CSD does so less, and a method that copies can still top it. Pictures of
    instantstyle, A1111, ComfyUI and InvokeAI carry their prompt, so that --prompt may be left out.

    \b
    instantstyle similarity cat.png --reference ref.png --clip clip-vit-large-patch14
    instantstyle similarity out/*.png --reference ref.png --dino dino-vitb16 --csd csd.pth --out table.csv
    instantstyle similarity cat.png --prompt "a cat" --truth right.png --clip clip-vit-large-patch14
    """
    from instantstyle.cli.progress import bar, hush
    from instantstyle.utils.atomic_files import check_writable, write_atomic

    if clip is None and dino is None and csd is None:
        raise InputError("there is nothing to measure by: give --clip FOLDER, --dino FOLDER or --csd FILE")
    if out is not None:
        if out.suffix.lower() not in (".csv", ".md"):
            raise InputError(f"the table is a .csv or .md file, not {str(out)!r}")
        check_writable(out)
    references, truths = (
        _one_for_each("--reference", reference or [], pictures),
        _one_for_each("--truth", truth or [], pictures),
    )
    prompts = [prompt if clip is None or prompt is not None else _stored_prompt(path) for path in pictures]
    if not reference and not truth and (clip is None or not any(prompts)):
        raise InputError(
            "there is nothing to compare with, for CLIP reads a prompt or sees another picture, and DINO and CSD see "
            "another picture: give --prompt, --reference or --truth"
        )

    hush()
    from instantstyle.evaluate.csd import load_csd
    from instantstyle.evaluate.similarity_metrics import (
        CAUTION,
        HashedImage,
        SimilarityTask,
        encode_table,
        load_clip,
        load_dino,
        markdown_text,
        measure_similarity,
        similarity_table,
    )
    from instantstyle.utils.device import pick_device

    torch_device = pick_device(device)
    tasks = [
        SimilarityTask(HashedImage.of(path), text, style and HashedImage.of(style), right and HashedImage.of(right))
        for path, text, style, right in zip(pictures, prompts, references, truths, strict=True)
    ]
    kinds = ((clip, load_clip), (dino, load_dino), (csd, load_csd))
    extractors = [load(path, torch_device) for path, load in kinds if path is not None]
    with bar("similarity") as tick:
        columns = measure_similarity(extractors, tasks, tick)
    names = [str(path) for path in pictures]
    typer.echo(markdown_text(similarity_table(names, columns)), nl=False)
    if any("to reference" in name for name in columns):
        typer.echo(f"note: {CAUTION}", err=True)
    if out is not None:
        written = write_atomic(out, encode_table(names, columns, out.suffix.lower()))
        typer.echo(f"note: the table is in {written}", err=True)


def _one_for_each(flag: str, given: Sequence[Path], pictures: Sequence[Path]) -> list[Path | None]:
    """One for each picture.  Raises InputError."""
    if len(given) > 1 and len(given) != len(pictures):
        raise InputError(
            f"there are {len(pictures)} pictures and {len(given)} {flag}: give one for all, or one for each, in the "
            "same order"
        )
    return [*given] if len(given) > 1 else [given[0] if given else None] * len(pictures)


def _stored_prompt(path: Path) -> str | None:
    """The prompt in a picture's metadata, ours or another program's; where there is none, a note says so."""
    from instantstyle.request.third_party_metadata import read_third_party_request

    try:
        return read_third_party_request(path).request.prompt or None
    except PictureError as none:
        typer.echo(f"note: {none}; CLIP-T needs --prompt", err=True)
        return None
