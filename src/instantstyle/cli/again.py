"""`instantstyle again`: a picture made again from its own metadata, and whether it is the same to the pixel."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from instantstyle.model import Model
    from instantstyle.request import GenerationMetadata

IDENTICAL, DIFFERENT, UNDECIDED = 0, 3, 4
"""Exit codes; 1 is failed and 2 is usage, as everywhere."""


def again(
    picture: Annotated[Path, typer.Argument(help="A picture that instantstyle made.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Where to write the new one; nowhere unless given.")] = None,
    model: Annotated[str | None, typer.Option(help="The model.", show_default="the one remembered")] = None,
    adapter: Annotated[str | None, typer.Option(help="IP-Adapter weights.", show_default="those remembered")] = None,
    device: Annotated[str | None, typer.Option(help="Where to run.", show_default="the one remembered")] = None,
    dtype: Annotated[str | None, typer.Option(help="Numbers to run in.", show_default="the one remembered")] = None,
    as_request: Annotated[
        bool,
        typer.Option("--as-request", help="Only print the request, as JSON; pictures of other programs too."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Make a picture again from its own metadata and compare the pixels.

    \b
    instantstyle again cat.png
    instantstyle again cat.png --out again.png --device cpu
    instantstyle again from-a1111.png --as-request

    \b
    Exit codes:
      0  made again, and all pixels are identical
      1  failed: nothing was made
      2  usage: no such picture, or it does not remember how it was made
      3  made again, and it is not identical
      4  made again, it differs, and whether it should cannot be told: other weights, another version, device or dtype
    """
    from instantstyle.cli.output import print_done, print_note, to_json
    from instantstyle.cli.progress import bar, hush
    from instantstyle.errors import InputError
    from instantstyle.request import output_paths, read_metadata
    from instantstyle.utils import atomic_files, images

    if as_request:
        ignored = {"--out": out, "--model": model, "--adapter": adapter, "--device": device, "--dtype": dtype}
        if unused := [flag for flag, value in ignored.items() if value is not None]:
            raise InputError(
                f"--as-request makes no picture, so {unused[0]} does not go with it: leave one of them out"
            )
        _print_request(picture)
        return
    held = read_metadata(picture)
    before = images.load_image(picture)
    if held.index >= held.request.count:
        raise InputError(f"{str(picture)!r} says it is picture {held.index + 1} of {held.request.count}")
    if out is not None:
        atomic_files.check_writable(output_paths(out, 1)[0])

    hush()
    from instantstyle.loading import load, with_presets
    from instantstyle.methods.specs import drop_unused_fields
    from instantstyle.pipeline import generate

    loaded = load(
        model or held.model or "emoji",
        adapter=adapter or (held.adapter if model is None else None),
        image_encoder=held.image_encoder if model is None else None,
        content_encoder=held.content_encoder if model is None else None,
        controls=held.controls if model is None else None,
        loras=held.loras if model is None else (),
        depth=held.depth,
        device=device or held.device,
        dtype=dtype or held.dtype,
    )
    request, dropped = drop_unused_fields(held.request)
    notes = _changes(held, loaded)
    if dropped:
        notes.append(
            f"the picture remembers {' and '.join(dropped)}, which method {request.method!r} does not use: left out"
        )
    if model is None and held.presets is not None:
        family = with_presets(loaded.family, held.presets, f"what {picture} remembers of its plans")
        loaded = dataclasses.replace(loaded, family=family)
    with bar(picture.name) as on_step:
        result = generate(loaded, request, progress=lambda at: on_step(at.step, at.steps))
    after = result.images[held.index]
    if out is not None:
        new = result.metadata(held.index)
        images.write_png(after, out, new.to_json(), new.parameters())
    comparison = images.compare_images(before, after)
    code = IDENTICAL if comparison["differing"] == 0 else UNDECIDED if notes else DIFFERENT
    if as_json:
        verdict = {IDENTICAL: "identical", DIFFERENT: "different", UNDECIDED: "cannot be told"}[code]
        report = {"identical": code == IDENTICAL, "verdict": verdict, **comparison, "notes": notes}
        print_done(to_json({**report, "written": str(out) if out else None}))
    else:
        for note in notes:
            print_note(f"note: {note}")
        print_done("\n".join([f"{picture}: {_sentence(code, comparison)}", *([str(out)] if out is not None else [])]))
    raise typer.Exit(code)


def _print_request(picture: Path) -> None:
    """The request on stdout; the program that made it, and what of it was left out, on stderr."""
    from instantstyle.cli.output import print_note, print_result, to_json
    from instantstyle.request.third_party_metadata import read_third_party_request

    metadata = read_third_party_request(picture)
    print_result(to_json(metadata.request.model_dump(mode="json")))
    print_note(f"note: made by {metadata.program}" + (f" with the model {metadata.model}" if metadata.model else ""))
    if metadata.unsupported:
        print_note(f"note: left out, for it has no counterpart here: {', '.join(metadata.unsupported)}")


def _changes(held: "GenerationMetadata", loaded: "Model") -> list[str]:
    """Reasons for which pixels may differ."""
    from instantstyle.request import package_version

    weights, device, dtype = loaded.weights_fingerprint, str(loaded.device), str(loaded.dtype).removeprefix("torch.")
    notes: list[str] = []
    if held.identity != weights:
        made = f"weights {held.identity[:12]}" if held.identity else "weights that it does not name"
        notes.append(f"the picture was made with {made}, and these are {weights[:12]}")
    if held.version != package_version():
        notes.append(f"the picture was made by version {held.version}, and this is {package_version()}")
    for name, then, now in (("on device", held.device, device), ("in dtype", held.dtype, dtype)):
        if then not in ("auto", now):
            notes.append(f"the picture was made {name} {then}, and this is {now}")
    return notes


def _sentence(code: int, comparison: dict[str, Any]) -> str:
    if code == IDENTICAL:
        return f"identical, all {comparison['pixels']:,} pixels"
    differing, pixels, largest = (comparison[name] for name in ("differing", "pixels", "largest"))
    text = f"differs in {differing:,} of {pixels:,} pixels, by at most {largest} of 255"
    return f"{text}; whether it should cannot be told" if code == UNDECIDED else text
