"""`instantstyle again`: a picture made again from its own metadata, and whether it is the same to the pixel."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer


def again(
    picture: Annotated[Path, typer.Argument(help="A picture that instantstyle made.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Where to write the new one; nowhere unless given.")] = None,
    model: Annotated[str | None, typer.Option(help="The model.", show_default="the one remembered")] = None,
    adapter: Annotated[str | None, typer.Option(help="IP-Adapter weights.", show_default="those remembered")] = None,
    device: Annotated[str | None, typer.Option(help="Where to run.", show_default="the one remembered")] = None,
    dtype: Annotated[str | None, typer.Option(help="Numbers to run in.", show_default="the one remembered")] = None,
    as_request: Annotated[
        bool,
        typer.Option(
            "--as-request", help="Only print the request, as JSON; pictures of A1111, ComfyUI and InvokeAI too."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Make a picture again from its own metadata and compare: exit code 0 if the pixels are identical, 1 if not."""
    from instantstyle.cli.progress import bar, hush
    from instantstyle.errors import InputError
    from instantstyle.request import output_paths, recall
    from instantstyle.utils import atomic_files, images

    if as_request:
        _print_request(picture)
        return
    memory = recall(picture)
    before = images.load_image(picture)
    if memory.index >= memory.request.count:
        raise InputError(f"{str(picture)!r} says it is picture {memory.index + 1} of {memory.request.count}")
    if out is not None:
        atomic_files.check_writable(output_paths(out, 1)[0])

    hush()
    from instantstyle.loading import load, with_presets
    from instantstyle.pipeline import generate as make

    loaded = load(
        model or memory.model or "emoji",
        adapter=adapter or (memory.adapter if model is None else None),
        image_encoder=memory.image_encoder if model is None else None,
        content_encoder=memory.content_encoder if model is None else None,
        controls=memory.controls if model is None else None,
        loras=memory.loras if model is None else (),
        depth=memory.depth,
        device=device or memory.device,
        dtype=dtype or memory.dtype,
    )
    notes = _notes(memory.identity, loaded.weights_fingerprint, memory.version)
    if model is None and memory.presets is not None:
        family = with_presets(loaded.family, memory.presets, f"what {picture} remembers of its plans")
        loaded = dataclasses.replace(loaded, family=family)
    with bar(picture.name) as tick:
        result = make(loaded, memory.request, progress=lambda at: tick(at.step, at.steps))
    after = result.images[memory.index]
    if out is not None:
        new = result.metadata(memory.index)
        images.write_png(after, out, new.to_json(), new.parameters())
    found = {"identical": False, **_compared(before, after), "notes": notes, "written": str(out) if out else None}
    found["identical"] = found["differing"] == 0
    if as_json:
        typer.echo(json.dumps(found))
    else:
        for note in notes:
            typer.echo(f"note: {note}", err=True)
        typer.echo(f"{picture}: {_verdict(found)}")
        if out is not None:
            typer.echo(str(out))
    raise typer.Exit(0 if found["identical"] else 1)


def _print_request(picture: Path) -> None:
    """The request on stdout; whose it is, and what of it was left out, on stderr."""
    from instantstyle.request.third_party_metadata import read_third_party_request

    read = read_third_party_request(picture)
    typer.echo(read.request.to_json())
    typer.echo(f"note: made by {read.program}" + (f" with the model {read.model}" if read.model else ""), err=True)
    if read.unsupported:
        typer.echo(f"note: left out, for it has no counterpart here: {', '.join(read.unsupported)}", err=True)


def _notes(then: str, now: str, version: str) -> list[str]:
    """Why the pixels might differ."""
    from instantstyle.request import package_version as ours

    notes: list[str] = []
    if then and then != now:
        notes.append(f"the picture was made with weights {then[:12]}, and these are {now[:12]}")
    if version != ours():
        notes.append(f"the picture was made by version {version}, and this is {ours()}")
    return notes


def _compared(before: Any, after: Any) -> dict[str, Any]:
    """How many pixels differ, of how many, and the largest difference of a channel."""
    import numpy as np

    if before.size != after.size:
        pixels = before.width * before.height
        return {"differing": pixels, "pixels": pixels, "largest": 255}
    apart = np.abs(np.asarray(before, np.int16) - np.asarray(after.convert("RGB"), np.int16)).max(axis=-1)
    return {"differing": int((apart > 0).sum()), "pixels": int(apart.size), "largest": int(apart.max())}


def _verdict(found: dict[str, Any]) -> str:
    if found["identical"]:
        return f"identical, all {found['pixels']:,} pixels"
    return f"differs in {found['differing']:,} of {found['pixels']:,} pixels, by at most {found['largest']} of 255"
