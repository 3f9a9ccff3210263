"""`instantstyle train b-lora`: a style learnt from one picture, or from several that share it, as a LoRA file."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer


def b_lora(
    pictures: Annotated[list[Path], typer.Argument(help="One picture, or several of one style.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.", show_default=False)],
    part: Annotated[
        Literal["style", "content", "both"], typer.Option(help="Which of the two fitted blocks is written.")
    ] = "style",
    prompt: Annotated[
        str | None, typer.Option(help="What the picture is called in the fit.", show_default="A [v]")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the fit.", show_default="the model's")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Rank of the change.", show_default="the model's")] = None,
    rate: Annotated[float | None, typer.Option(help="Learning rate.", show_default="the model's")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Pictures a step.", show_default="the model's")] = None,
    model: Annotated[str, typer.Option(help="emoji, sdxl, sd15, a folder in diffusers' layout or a hub id.")] = "emoji",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
) -> None:
    """Fit a B-LoRA to pictures and write it; use it by `generate --lora OUT`. Run again, it goes on."""
    from instantstyle.cli.progress import bar, hush
    from instantstyle.errors import InputError
    from instantstyle.request import store_image

    if out.suffix != ".safetensors":
        raise InputError(f"LoRAs are .safetensors files, so {str(out)!r} must end so")
    shown = [store_image(picture, 2048) for picture in pictures]

    hush()
    from instantstyle.loading import load
    from instantstyle.methods.lora_training import on_progress
    from instantstyle.train.b_lora import train_b_lora

    loaded = load(model, device=device, dtype=dtype)
    own = loaded.family.b_lora_defaults
    fitting = replace(
        own,
        prompt=own.prompt if prompt is None else prompt,
        steps=steps or own.steps,
        rank=rank or own.rank,
        learning_rate=rate or own.learning_rate,
        batch=batch or own.batch,
    )
    with bar(out.name) as tick, on_progress(lambda at: tick(at.step, at.steps)):
        typer.echo(str(train_b_lora(loaded, shown, out, fitting=fitting, part=part)))
