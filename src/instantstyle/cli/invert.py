"""`instantstyle invert`: how well DDIM inversion reconstructs a picture by steps and guidance, as a table and figure.

The paper (arXiv 2404.02733) names inversion's instability as a reason to do without it; this shows how much there is.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from instantstyle.errors import InputError


def invert(
    picture: Annotated[Path, typer.Argument(help="A picture.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The PNG file to draw the figure into.", show_default=False)],
    prompt: Annotated[str, typer.Option(help="What the picture shows.")] = "",
    steps: Annotated[str, typer.Option(help="Numbers of steps, with commas between.")] = "10,25,50",
    guidance: Annotated[str, typer.Option(help="Guidances, up and down alike, with commas between.")] = "1,2,5",
    refine: Annotated[int, typer.Option(help="More calls a step up, each nearer to its true inverse.", min=0)] = 0,
    model: Annotated[str, typer.Option(help="emoji, sdxl, sd15, a folder in diffusers' layout or a hub id.")] = "emoji",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
) -> None:
    """Invert a picture to noise and generate it again: what is left of it, for each number of steps and guidance."""
    from instantstyle.cli.progress import bar, hush
    from instantstyle.utils import images
    from instantstyle.utils.atomic_files import check_writable

    counts, scales = _numbers("--steps", steps, 1.0, 1000.0), _numbers("--guidance", guidance, 0.0, 50.0)
    step_counts = [int(count) for count in counts]
    if step_counts != counts:
        raise InputError(f"--steps are whole numbers, not {steps!r}")
    if max(scales) > 1 and not prompt.strip():
        raise InputError("guidance is towards what the picture shows: say it with --prompt, or give --guidance 1")
    image = images.load_image(picture)
    check_writable(out)

    hush()
    from instantstyle.loading import load
    from instantstyle.methods.ddim_inversion import ddim_round_trip

    loaded = load(model, device=device, dtype=dtype)
    resized = images.resize_to(image, "squash", loaded.family.size)
    latents = loaded.encode_latents(resized)
    ceiling = loaded.decode_latents(latents)[0]
    rows: list[dict[str, Any]] = []
    grid: list[list[Any]] = []
    done, total = 0, len(scales) * sum(step_counts) * (2 + refine)
    with bar(picture.name) as tick:
        for scale in scales:
            line: list[Any] = [resized, ceiling]
            for count in step_counts:
                reconstruction = loaded.decode_latents(
                    ddim_round_trip(loaded, latents, prompt, count, scale, refine=refine)
                )[0]
                done += count * (2 + refine)
                tick(done, total)
                rows.append({"guidance": scale, "steps": count, "psnr": _psnr(reconstruction, ceiling)})
                line.append(reconstruction)
            grid.append(line)
    columns = ["picture", "VAE alone", *(f"{count} steps" for count in step_counts)]
    sheet = images.image_grid(grid, rows=[f"guidance {scale:g}" for scale in scales], columns=columns)
    images.write_png(sheet, out)
    if as_json:
        typer.echo(json.dumps({"written": str(out), "vae_psnr": _psnr(ceiling, resized), "reconstructions": rows}))
        return
    typer.echo(f"PSNR in dB to what the VAE alone gives back, which is {_psnr(ceiling, resized):.1f} to the picture")
    typer.echo("guidance  " + "".join(f"{count:>6} steps" for count in step_counts))
    for i, scale in enumerate(scales):
        line_of = rows[i * len(step_counts) : (i + 1) * len(step_counts)]
        typer.echo(f"{scale:8g}  " + "".join(f"{row['psnr']:12.1f}" for row in line_of))
    typer.echo(str(out))


def _numbers(flag: str, text: str, low: float, high: float) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(low <= number <= high for number in numbers):
        raise InputError(f"{flag} takes numbers from {low:g} to {high:g} with commas between, not {text!r}")
    return numbers


def _psnr(one: Any, other: Any) -> float:
    """Decibels; 99 for pictures that are the same."""
    import numpy as np

    difference = np.asarray(one, np.float64) - np.asarray(other, np.float64)
    square = float((difference**2).mean())
    return 99.0 if square == 0 else min(99.0, 10 * float(np.log10(255**2 / square)))
