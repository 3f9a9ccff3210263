"""`instantstyle train b-lora`: a style learnt from one picture, or from several that share it, as a LoRA file."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer


def train_b_lora_command(
    pictures: Annotated[list[Path], typer.Argument(help="One picture, or several of one style.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.", show_default=False)],
    part: Annotated[
        Literal["style", "content", "both"], typer.Option(help="Which of the two trained blocks is written.")
    ] = "style",
    prompt: Annotated[
        str | None, typer.Option(help="What the picture is called in training.", show_default="A [v]")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps.", show_default="the model's")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Rank of the LoRA.", show_default="the model's")] = None,
    rate: Annotated[float | None, typer.Option(help="Learning rate.", show_default="the model's")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Pictures a step.", show_default="the model's")] = None,
    model: Annotated[str, typer.Option(help="emoji, sdxl, sd15, a folder in diffusers' layout or a hub id.")] = "emoji",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
) -> None:
    """Train a B-LoRA on pictures and write it; use it by `generate --lora OUT`. Run again, it goes on.

    \b
    instantstyle train b-lora ink.png --out ink.safetensors
    instantstyle train b-lora one.png two.png --out ink.safetensors --steps 500 --part both
    """
    from instantstyle.cli.flags import given
    from instantstyle.cli.output import print_done
    from instantstyle.cli.progress import bar, hush
    from instantstyle.errors import InputError
    from instantstyle.request import MAX_IMAGE_SIZE, store_image

    if out.suffix != ".safetensors":
        raise InputError(f"LoRAs are .safetensors files, so {str(out)!r} must end so")
    images = [store_image(picture, MAX_IMAGE_SIZE) for picture in pictures]

    hush()
    from instantstyle.loading import load
    from instantstyle.methods.lora_training import on_progress
    from instantstyle.train.b_lora import train_b_lora

    loaded = load(model, device=device, dtype=dtype)
    fields = given(prompt=prompt, steps=steps, rank=rank, learning_rate=rate, batch=batch)
    fitting = replace(loaded.family.b_lora_defaults, **fields)
    with bar(out.name) as on_step, on_progress(lambda at: on_step(at.step, at.steps)):
        path = train_b_lora(loaded, images, out, fitting=fitting, part=part)
    print_done(str(path))
