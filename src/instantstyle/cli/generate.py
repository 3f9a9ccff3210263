"""`instantstyle generate`: pictures of a prompt, in the style of pictures.

Flags are the fields of `Request`, read here and nowhere else; a flag that is not given leaves the field's own default.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from instantstyle.cli.flags import (
    controls_of,
    init_of,
    parse_adapters,
    parse_memory,
    parse_options,
    parse_size,
    references_of,
    with_own,
)
from instantstyle.families import FAMILIES
from instantstyle.request.few_step_presets import few_step_preset as find_preset


def generate(
    prompt: Annotated[str, typer.Argument(help="What the picture is to show.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The PNG file to write; several are numbered.", show_default=False)],
    style: Annotated[
        list[str] | None,
        typer.Option(help="A reference picture, or a style card's name or file; may be given several times."),
    ] = None,
    re_embed: Annotated[
        bool, typer.Option("--re-embed", help="Look at the style cards' own pictures instead of their numbers.")
    ] = False,
    style_mask: Annotated[
        list[str] | None,
        typer.Option(help="Where a reference speaks, white on black: one for each --style, in the same order."),
    ] = None,
    content: Annotated[
        list[str] | None,
        typer.Option(help="What the reference shows, to be subtracted: one for each --style, in the same order."),
    ] = None,
    content_weight: Annotated[
        float | None, typer.Option(help="How much of the content is subtracted.", show_default="0.5")
    ] = None,
    weight: Annotated[
        list[float] | None,
        typer.Option(help="How loudly the references speak: one for all, or one for each.", show_default="1"),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="instantstyle, ip-adapter, style-aligned, swapped, stylekeeper, cleanstyle, stylestudio, b-lora "
            "or none.",
            show_default="instantstyle",
        ),
    ] = None,
    plan: Annotated[
        str | None,
        typer.Option(
            help="Where the style enters: style, layout, style+layout, all, precise, or terms as up.0.1=1.2,mid=0.5.",
            show_default="style",
        ),
    ] = None,
    window: Annotated[
        tuple[float, float] | None,
        typer.Option(help="The part of the run in which the style holds, from 0 to 1.", show_default="0 1"),
    ] = None,
    subtraction: Annotated[
        str | None, typer.Option(help="paper, normalised, projected or masked.", show_default="paper")
    ] = None,
    combine: Annotated[
        str | None, typer.Option(help="Several references: concat or average.", show_default="concat")
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(help="References that are not square: crop, pad or squash.", show_default="squash"),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--option", help="A knob of the method, as name=value; may be given several times."),
    ] = None,
    init: Annotated[str | None, typer.Option(help="A picture to begin from instead of noise.")] = None,
    strength: Annotated[
        float | None,
        typer.Option(help="How much of --init is drawn anew: 0 is nothing, 1 is all of it.", show_default="0.6"),
    ] = None,
    mask: Annotated[
        str | None, typer.Option(help="Where --init is painted anew, white on black; the rest stays.")
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(help="A picture whose edges, lines or depth to follow; may be given several times."),
    ] = None,
    control_kind: Annotated[
        list[str] | None,
        typer.Option(
            help="What of it: canny, soft-edge, lineart, depth, or image for a picture of edges or the like as it is; "
            "one for all, or one for each.",
            show_default="canny",
        ),
    ] = None,
    control_weight: Annotated[
        list[float] | None,
        typer.Option(help="How closely it is followed: one for all, or one for each.", show_default="0.6"),
    ] = None,
    control_window: Annotated[
        tuple[float, float] | None,
        typer.Option(help="The part of the run in which the controls hold, from 0 to 1.", show_default="0 1"),
    ] = None,
    control_model: Annotated[
        list[str] | None,
        typer.Option(
            help="A ControlNet: a folder, a file, a name in a model tree or a hub id; one for all, or one for each.",
            show_default="the model's",
        ),
    ] = None,
    depth_model: Annotated[
        str | None, typer.Option(help="What makes depth pictures: a folder or a hub id of a transformers model.")
    ] = None,
    save_control: Annotated[
        Path | None, typer.Option(help="Also write what is followed, as the ControlNet sees it, as PNG.")
    ] = None,
    reading: Annotated[
        str | None,
        typer.Option(
            help="How prompts are read: plain, long (in chunks) or weighted (`(word)1.3`, `word++`; long too).",
            show_default="plain",
        ),
    ] = None,
    negative: Annotated[str | None, typer.Option(help="What the picture is not to show.")] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Steps, guidance and sampler of a few-step model: lightning-2, -4, -8, hyper-2, -4, -8, hyper-tcd, "
            "hyper-8-cfg, -12-cfg, lcm or dmd2-4; its LoRA goes beside it, as --lora."
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of denoising.", show_default="30")] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="How strongly the prompt is followed; at 1 nothing is added.",
            show_default=", ".join(f"{family.name} {family.guidance:g}" for family in FAMILIES.values()),
        ),
    ] = None,
    guidance_rescale: Annotated[
        float | None,
        typer.Option(
            help="How far guidance is brought back to the model's own contrast, 0 to 1: against glaring colours.",
            show_default=", ".join(f"{family.name} {family.guidance_rescale:g}" for family in FAMILIES.values()),
        ),
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="The scheduler.", show_default="the model's")] = None,
    seed: Annotated[int | None, typer.Option(help="The number chance begins from.", show_default="by chance")] = None,
    count: Annotated[int | None, typer.Option(help="How many pictures.", show_default="1")] = None,
    size: Annotated[
        str | None, typer.Option(help="Width and height in pixels, as 1024x768.", show_default="the model's")
    ] = None,
    model: Annotated[str, typer.Option(help="emoji, sdxl, sd15, a folder in diffusers' layout or a hub id.")] = "emoji",
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="IP-Adapter weights: a file, a path on the hub, a name in a model tree; several as NAME=FILE.",
            show_default="the model's",
        ),
    ] = None,
    through: Annotated[
        list[str] | None,
        typer.Option(help="Of several adapters, the name of the one that each --style speaks through."),
    ] = None,
    style_plan: Annotated[
        list[str] | None,
        typer.Option(help="Where each --style speaks, one for each; --plan is for all.", show_default="--plan"),
    ] = None,
    image_encoder: Annotated[
        str | None,
        typer.Option(help="The adapter's image encoder: a folder, a file, a path on the hub.", show_default="found"),
    ] = None,
    content_encoder: Annotated[
        str | None,
        typer.Option(help="The text encoder of the adapter's CLIP, to subtract --content in: a folder or a hub id."),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            help="A LoRA: FILE or FILE:WEIGHT, also a name in a model tree or a path on the hub; may be given often."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    metadata: Annotated[
        bool, typer.Option("--metadata/--no-metadata", help="Whether the file remembers how it was made.")
    ] = True,
    memory: Annotated[
        str,
        typer.Option(help="keep all; free: read encoders anew for each use; offload: only the layer at work."),
    ] = "keep",
    tile: Annotated[bool, typer.Option("--tile", help="Decode large pictures in parts.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the request and the paths as JSON.")] = False,
) -> None:
    """Draw a prompt in the style of reference pictures."""
    from instantstyle.cli.progress import bar, hush
    from instantstyle.request import Request, output_paths
    from instantstyle.utils.atomic_files import check_writable

    saved = {"--control-window": control_window, "--save-control": save_control, "--depth-model": depth_model}
    followed = control or [], control_kind or [], control_weight or [], control_window
    controls, nets = controls_of(*followed, control_model or [], saved)
    idle = {"--content-weight": content_weight, "--window": window, "--fit": fit}
    idle |= {"--subtraction": subtraction, "--combine": combine}
    if preset is not None:
        few = find_preset(preset)
        steps, sampler = steps or few.steps, sampler or few.sampler
        guidance = few.guidance if guidance is None else guidance
    own = {"plan": ("--style-plan", style_plan or []), "adapter": ("--through", through or [])}
    fields: dict[str, Any] = {
        "prompt": prompt,
        "references": with_own(
            own, references_of(style or [], content or [], content_weight, weight or [], style_mask or [], idle)
        ),
        "init": init_of(init, strength, mask),
        "size": None if size is None else parse_size(size),
        "negative": negative,
        "method": method,
        "plan": plan,
        "window": window,
        "subtraction": subtraction,
        "combine": combine,
        "fit": fit,
        "options": parse_options(options) if options else None,
        "controls": controls,
        "reading": reading,
        "steps": steps,
        "guidance": guidance,
        "guidance_rescale": guidance_rescale,
        "sampler": sampler,
        "seed": seed,
        "count": count,
    }
    request = Request(**{name: value for name, value in fields.items() if value is not None})
    for path in output_paths(out, request.count):
        check_writable(path)
    drawn = output_paths(save_control, len(controls)) if save_control is not None else ()
    for path in drawn:
        check_writable(path)

    hush()
    from instantstyle.loading import load
    from instantstyle.methods.lora_training import on_progress
    from instantstyle.pipeline import generate as make
    from instantstyle.weights.lora import parse_lora

    loras = [parse_lora(text) for text in lora or []]
    loaded = load(
        model,
        adapter=parse_adapters(adapter or []),
        image_encoder=image_encoder,
        content_encoder=content_encoder,
        controls=nets,
        depth=depth_model,
        loras=loras,
        device=device,
        dtype=dtype,
        memory=parse_memory(memory),
        tile=tile,
    )
    if re_embed:
        from instantstyle.methods.reference_embedding import reembed_cards

        request = reembed_cards(loaded, request)
    with bar(out.name) as tick, on_progress(lambda at: tick(at.step, at.steps)):
        result = make(loaded, request, progress=lambda at: tick(at.step, at.steps))
    unfit = () if preset is None else find_preset(preset).compatibility_warnings(preset, loaded.family.name)
    for warning in (*unfit, *result.warnings):
        typer.echo(f"warning: {warning}", err=True)
    paths = [str(path) for path in result.save(out, metadata=metadata)]
    if drawn:
        from instantstyle.controlnet import make_control_image
        from instantstyle.utils.images import write_png

        for path, each in zip(drawn, result.request.controls, strict=True):
            write_png(make_control_image(loaded, result.request, each), path)
    if as_json:
        said = {"paths": paths, **result.model_dump(mode="json", exclude={"images"})}
        typer.echo(json.dumps(said))
    else:
        typer.echo("\n".join(paths))
