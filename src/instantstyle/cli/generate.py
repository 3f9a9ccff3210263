"""`instantstyle generate`: pictures of a prompt, in the style of pictures.

The parameters of `generate_command` are the table of flags, named as the fields of `Request`; a flag that is not given
leaves the field's own default, which the help page reads from there.
"""

from pathlib import Path
from typing import Annotated

import typer

from instantstyle.cli.flags import (
    DEFAULT_CONTROL_KIND,
    DEFAULT_INIT_STRENGTH,
    control_fields,
    given,
    init_fields,
    parse_adapters,
    parse_memory,
    parse_options,
    parse_size,
    reference_fields,
    refuse_unused,
    refuse_unused_by,
)
from instantstyle.errors import InputError
from instantstyle.families import FAMILIES


def generate_command(
    prompt: Annotated[str, typer.Argument(help="What the picture is to show.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The PNG file to write; several are numbered.", show_default=False)],
    style: Annotated[
        list[str] | None,
        typer.Option(help="A reference picture, or a style card's name or file; may be given several times."),
    ] = None,
    re_embed: Annotated[
        bool,
        typer.Option(
            "--re-embed", help="Encode the style cards' own pictures anew instead of reading their embeddings."
        ),
    ] = False,
    style_mask: Annotated[
        list[str] | None,
        typer.Option(help="Where a reference acts, white on black: one for each --style, in the same order."),
    ] = None,
    content: Annotated[
        list[str] | None,
        typer.Option(help="What the reference shows, to be subtracted: one for each --style, in the same order."),
    ] = None,
    content_weight: Annotated[float | None, typer.Option(help="How much of the content is subtracted.")] = None,
    weight: Annotated[
        list[float] | None,
        typer.Option(help="How strongly the references act: one for all, or one for each."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="How the style enters.",
        ),
    ] = None,
    plan: Annotated[
        str | None,
        typer.Option(
            help="Where the style enters: style, layout, style+layout, all, precise, or terms as up.0.1=1.2,mid=0.5.",
            show_default="the method's",
        ),
    ] = None,
    window: Annotated[
        tuple[float, float] | None,
        typer.Option(help="The part of the run in which the style holds, from 0 to 1."),
    ] = None,
    subtraction: Annotated[str | None, typer.Option(help="paper, normalised, projected or masked.")] = None,
    combine: Annotated[str | None, typer.Option(help="Several references: concat or average.")] = None,
    fit: Annotated[
        str | None,
        typer.Option(help="References that are not square: crop, pad or squash."),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--option", help="An option of the method, as name=value; may be given several times."),
    ] = None,
    init: Annotated[str | None, typer.Option(help="A picture to begin from instead of noise.")] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            help="How much of --init is drawn anew: 0 is nothing, 1 is all of it.",
            show_default=str(DEFAULT_INIT_STRENGTH),
        ),
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
            show_default=DEFAULT_CONTROL_KIND,
        ),
    ] = None,
    control_weight: Annotated[
        list[float] | None,
        typer.Option(help="How closely it is followed: one for all, or one for each."),
    ] = None,
    control_window: Annotated[
        tuple[float, float] | None,
        typer.Option(help="The part of the run in which the controls hold, from 0 to 1."),
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
            help="How prompts are read: plain, long (in chunks) or weighted (words with weights; long too).",
        ),
    ] = None,
    clip_skip: Annotated[
        int | None,
        typer.Option(
            help="Which hidden state of the text encoders is read, from the end: 1 the last, 2 the last but one.",
            show_default="the model's",
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
    steps: Annotated[int | None, typer.Option(help="Steps of denoising.")] = None,
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
    true_guidance: Annotated[
        float | None,
        typer.Option(
            help="Of models that read guidance as a number (Flux dev): guidance away from the negative prompt."
        ),
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="The scheduler.", show_default="the model's")] = None,
    seed: Annotated[int | None, typer.Option(help="The seed of the noise.", show_default="by chance")] = None,
    count: Annotated[int | None, typer.Option(help="How many pictures.")] = None,
    best_of: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=64,
            help="Draw so many seeds, from --seed upwards, rank them by the meter and keep the best; --count keeps "
            "more of them, the best first.",
            show_default="off",
        ),
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Width and height in pixels, as 1024x768.", show_default="the model's")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="emoji, sdxl, sd15, a folder in diffusers' layout or a hub id.", show_default="emoji"),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="IP-Adapter weights: a file, a path on the hub, a name in a model tree; several as NAME=FILE.",
            show_default="the model's",
        ),
    ] = None,
    through: Annotated[
        list[str] | None,
        typer.Option(help="Of several adapters, the name of the one that each --style goes through."),
    ] = None,
    style_plan: Annotated[
        list[str] | None,
        typer.Option(help="Where each --style acts, one for each; --plan is for all.", show_default="--plan"),
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
            help="A LoRA: FILE, FILE:WEIGHT, or FILE:WEIGHT:style (or content) for a part of a B-LoRA; also a name in "
            "a model tree or a path on the hub; may be given often."
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps.", show_default="auto")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16.", show_default="auto")] = None,
    metadata: Annotated[
        bool, typer.Option("--metadata/--no-metadata", help="Whether the file remembers how it was made.")
    ] = True,
    memory: Annotated[
        str | None,
        typer.Option(
            help="keep all; free: read encoders anew for each use; offload: only the layer at work.",
            show_default="keep",
        ),
    ] = None,
    tile: Annotated[bool, typer.Option("--tile", help="Decode large pictures in parts.")] = False,
    server: Annotated[
        str | None,
        typer.Option(
            envvar="INSTANTSTYLE_SERVER",
            help="The address of a running studio (instantstyle serve), which draws by the model it has loaded.",
        ),
    ] = None,
    token: Annotated[
        str | None, typer.Option(envvar="INSTANTSTYLE_TOKEN", help="The studio's token, where it was given one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the request and the paths as JSON.")] = False,
) -> None:
    """Draw a prompt in the style of reference pictures.

    \b
    instantstyle generate "a cat" --style reference.png --out cat.png
    instantstyle generate "a cat" --style reference.png --content dog --seed 7 --out cat.png
    instantstyle generate "a cat" --style neon --style ink.png --weight 0.7 --weight 0.4 --out cat.png
    instantstyle generate "a cat" --style neon --best-of 8 --seed 7 --out cat.png
    instantstyle generate "a house" --init photo.png --mask roof.png --strength 0.8 --out house.png
    instantstyle generate "a fox" --model sdxl --adapter ip-adapter_sdxl.safetensors --style ink.png --out fox.png
    instantstyle generate "a fox" --style ink.png --server http://127.0.0.1:7860 --out fox.png
    """
    flags = dict(locals())
    if server:
        from instantstyle.cli.server_client import refuse_model_flags

        refuse_model_flags(flags, server)
    from instantstyle.cli.output import print_done, print_note, to_json
    from instantstyle.cli.progress import bar, hush
    from instantstyle.cli.ranking import ranking_line, ranking_report, save_ranked
    from instantstyle.request import Request, output_paths
    from instantstyle.request.few_step_presets import few_step_preset
    from instantstyle.utils.atomic_files import check_writable

    refuse_unused(flags)
    controls, control_models = control_fields(
        control or [], control_kind or [], control_weight or [], control_window, control_model or [], depth_model
    )
    references = reference_fields(
        style or [],
        content or [],
        content_weight,
        weight or [],
        mask=("--style-mask", style_mask or []),
        plan=("--style-plan", style_plan or []),
        adapter=("--through", through or []),
    )
    few_step = None if preset is None else few_step_preset(preset)
    if few_step is not None:
        steps = few_step.steps if steps is None else steps
        sampler = few_step.sampler if sampler is None else sampler
        guidance = few_step.guidance if guidance is None else guidance
    request = Request(
        prompt,
        **given(
            references=references,
            init=init_fields(init, strength, mask),
            size=None if size is None else parse_size(size),
            negative=negative,
            method=method,
            plan=plan,
            window=window,
            subtraction=subtraction,
            combine=combine,
            fit=fit,
            options=parse_options(options) if options else None,
            controls=controls,
            reading=reading,
            clip_skip=clip_skip,
            steps=steps,
            guidance=guidance,
            guidance_rescale=guidance_rescale,
            true_guidance=true_guidance,
            sampler=sampler,
            seed=seed,
            count=None if best_of else count,
        ),
    )
    refuse_unused_by(flags, request.references)
    kept = request.count if best_of is None else count or 1
    if best_of is not None and kept > best_of:
        raise InputError(f"--count {kept} is more than the {best_of} that --best-of draws: it says how many are kept")
    control_paths = output_paths(save_control, len(controls)) if save_control is not None else ()
    for path in (*output_paths(out, kept), *control_paths):
        check_writable(path)

    if server:
        if best_of is not None:
            raise InputError("--best-of ranks what is drawn here: leave --server (INSTANTSTYLE_SERVER) out")
        from instantstyle.cli.server_client import StudioClient, draw_on_server

        client = StudioClient(server, token)
        notes = () if few_step is None else few_step.compatibility_warnings(str(preset), client.family())
        draw_on_server(client, request, out, metadata=metadata, as_json=as_json, notes=notes)
        return

    hush()
    from instantstyle.loading import load
    from instantstyle.meter import best_of as rank_seeds
    from instantstyle.methods.lora_training import on_progress
    from instantstyle.pipeline import generate
    from instantstyle.weights.lora import parse_lora

    loaded = load(
        model or "emoji",
        **given(
            adapter=parse_adapters(adapter or []),
            image_encoder=image_encoder,
            content_encoder=content_encoder,
            controls=control_models,
            depth=depth_model,
            loras=[parse_lora(text) for text in lora or []],
            device=device,
            dtype=dtype,
            memory=None if memory is None else parse_memory(memory),
            tile=tile,
        ),
    )
    if re_embed:
        from instantstyle.methods.reference_embedding import reembed_cards

        request = reembed_cards(loaded, request)
    with bar(out.name) as on_step, on_progress(lambda at: on_step(at.step, at.steps)):
        ranked = (
            []
            if best_of is None
            else rank_seeds(loaded, request, best_of, progress=lambda at: on_step(at.step, at.steps))
        )
        result = (
            ranked[0].result if ranked else generate(loaded, request, progress=lambda at: on_step(at.step, at.steps))
        )
    unfit = () if few_step is None else few_step.compatibility_warnings(str(preset), loaded.family.name)
    for warning in (*unfit, *result.warnings):
        print_note(f"warning: {warning}")
    if ranked:
        print_note(f"note: best of {best_of} by the meter, the best first: {ranking_line(ranked)}")
        saved = save_ranked(ranked[:kept], out, metadata=metadata)
    else:
        saved = result.save(out, metadata=metadata)
    paths = list(map(str, saved))
    if control_paths:
        from instantstyle.controlnet import make_control_image
        from instantstyle.utils.images import write_png

        for path, each in zip(control_paths, result.request.controls, strict=True):
            write_png(make_control_image(loaded, result.request, each), path)
    if as_json:
        report = {"paths": paths, **result.model_dump(mode="json", exclude={"images"})}
        if ranked:
            report["best_of"] = ranking_report(ranked)
        print_done(to_json(report))
    else:
        print_done("\n".join(paths))
