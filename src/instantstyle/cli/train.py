"""`instantstyle train`: one's own style adapter, from a folder of pictures or from shards of them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from instantstyle.cli.b_lora import train_b_lora_command
from instantstyle.cli.flags import ModelOption

if TYPE_CHECKING:
    from collections.abc import Mapping

    from PIL.Image import Image

    from instantstyle.model import Model
    from instantstyle.train.tracking import EvalFn

app = typer.Typer(
    name="train",
    help="Train one's own; every command run again goes on where it was.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Data = Annotated[
    str,
    typer.Option(
        help="A folder of pictures with captions, a JSON list, tars such as data-{000..099}.tar (also http and pipe:), "
        "hf:NAME, or a folder of features.",
        show_default=False,
    ),
]
StylesOption = Annotated[
    Literal["field", "folder", "none"],
    typer.Option(help="How it is known which pictures share a style: a field `style`, or their folder."),
]
Side = Annotated[
    int | None, typer.Option(help="Pictures have about side x side pixels.", show_default="the model's size")
]
Square = Annotated[bool, typer.Option("--square", help="Cut all pictures square instead of to aspect buckets.")]
Smallest = Annotated[
    int | None, typer.Option(help="The shortest side a picture may have.", show_default="a quarter of --side")
]
TextOption = Annotated[
    Literal["stored", "later"],
    typer.Option(help="Whether captions are encoded with the features, or whenever they are met."),
]
Ray = Annotated[
    str | None, typer.Option(help="Spread the work over a Ray cluster: its address, or local.", show_default="no")
]
Device = Annotated[str, typer.Option(help="auto or cpu; a launcher gives each process its own GPU.")]


@app.command("adapter")
def train_adapter_command(
    data: Data,
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.", show_default=False)],
    model: ModelOption = "emoji",
    blocks: Annotated[
        str, typer.Option(help="What is to learn: style, layout, style+layout, all, or terms as up.0.1=1.")
    ] = "style",
    reference: Annotated[
        Literal["same", "paired", "mixed"],
        typer.Option(
            help="A picture's reference: itself (as published), another of its style, or another where there is one."
        ),
    ] = "same",
    styles: StylesOption = "field",
    begin: Annotated[Path | None, typer.Option(help="An adapter to train on.", show_default="a new one")] = None,
    work: Annotated[
        Path | None, typer.Option(help="Where features, checkpoints and logs lie.", show_default="OUT.work")
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 2000,
    batch: Annotated[int, typer.Option(help="Pictures a process takes at a time.")] = 8,
    accumulate: Annotated[int, typer.Option(help="How many times it does so before a step.")] = 1,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 1e-4,
    warmup: Annotated[int, typer.Option(help="Steps over which it rises.")] = 0,
    decay: Annotated[Literal["constant", "cosine"], typer.Option(help="What it does afterwards.")] = "constant",
    weight_decay: Annotated[float, typer.Option(help="AdamW's.")] = 0.01,
    clip: Annotated[float, typer.Option(help="Gradients are brought down to this norm; 0 leaves them.")] = 1.0,
    average: Annotated[float, typer.Option(help="How slowly the average of the weights moves, which is kept.")] = 0.999,
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        typer.Option(help="Of the network; what learns stays in float32. auto: bfloat16 on a GPU."),
    ] = "auto",
    drop_text: Annotated[float, typer.Option(help="Share of pictures shown without their caption.")] = 0.05,
    drop_image: Annotated[float, typer.Option(help="Share without their reference.")] = 0.05,
    drop_both: Annotated[float, typer.Option(help="Share without either.")] = 0.05,
    min_snr: Annotated[float, typer.Option(help="Gamma of min-SNR weighting, such as 5; 0 for none.")] = 0.0,
    noise_offset: Annotated[float, typer.Option(help="Noise that is even over a channel, such as 0.05.")] = 0.0,
    early: Annotated[float, typer.Option(help="Below 1 more of the times are noisy ones, for broad colours.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The number chance begins from.")] = 0,
    side: Side = None,
    square: Square = False,
    smallest: Smallest = None,
    text: TextOption = "stored",
    ray: Ray = None,
    sheet_every: Annotated[int, typer.Option(help="Steps between two sheets of samples; 0 for none.")] = 500,
    sheet_prompt: Annotated[
        list[str] | None, typer.Option(help="A row of the sheets.", show_default="captions")
    ] = None,
    sheet_style: Annotated[
        list[Path] | None, typer.Option(help="A column of the sheets.", show_default="pictures of the data")
    ] = None,
    score_every: Annotated[
        int, typer.Option(help="Steps between two small scores in the emoji world, which is to be there; 0 for none.")
    ] = 0,
    save_seconds: Annotated[float, typer.Option(help="Seconds between two checkpoints.")] = 300.0,
    log_every: Annotated[int, typer.Option(help="Steps between two looks at losses and signals.")] = 10,
    pad: Annotated[
        bool, typer.Option("--pad", help="Add the other blocks, silent: for loaders that want a full file.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Train a style adapter: an IP-Adapter that learns at chosen blocks and nowhere else."""
    from instantstyle.cli.output import print_done
    from instantstyle.cli.progress import hush

    hush()
    from instantstyle.train.adapter_run import AdapterTrainingJob, train_adapter_job
    from instantstyle.train.data.feature_cache import FeatureConfig
    from instantstyle.train.objective import LossConfig
    from instantstyle.train.trainer import TrainingConfig
    from instantstyle.utils.device import bf16_is_fast, pick_device

    on_gpu = pick_device(device).type != "cpu"
    training = TrainingConfig(
        steps=steps,
        batch=batch,
        gradient_accumulation_steps=accumulate,
        lr=lr,
        warmup=warmup,
        lr_schedule=decay,
        weight_decay=weight_decay,
        clip=clip,
        ema_decay=average,
        bf16=on_gpu and bf16_is_fast(device) if precision == "auto" else precision == "bfloat16",
        save_seconds=save_seconds,
        log_every=log_every,
    )
    loss = LossConfig(
        drop_text=drop_text,
        drop_image=drop_image,
        drop_both=drop_both,
        min_snr=min_snr,
        noise_offset=noise_offset,
        timestep_power=early,
        seed=seed,
    )
    job = AdapterTrainingJob(
        data=data,
        out=out,
        training_config=training,
        model=model,
        blocks=blocks,
        work=work,
        reference=reference,
        styles=styles,
        init_from=begin,
        feature_config=FeatureConfig(side=side, square=square, smallest=smallest, text=text == "stored"),
        loss_config=loss,
        ray=ray,
        device=device,
        pad=pad,
        sheet_every=sheet_every,
        sheet_prompts=sheet_prompt or (),
        sheet_styles=sheet_style or (),
        eval_fn=_style_score(blocks) if score_every else None,
        eval_every=score_every,
    )
    path = train_adapter_job(job)
    if path is None:
        raise typer.Exit(130)
    print_done(str(path))


@app.command("features")
def compute_features_command(
    data: Data,
    out: Annotated[Path, typer.Option(help="The folder to write to.", show_default=False)],
    model: ModelOption = "emoji",
    styles: StylesOption = "field",
    side: Side = None,
    square: Square = False,
    smallest: Smallest = None,
    text: TextOption = "stored",
    ray: Ray = None,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    check: Annotated[
        bool, typer.Option("--check", help="Read all that is there and compare it with its hashes.")
    ] = False,
) -> None:
    """Compute what training reads of pictures, once: latents and embeddings, as webdataset shards."""
    from instantstyle.cli.output import print_done
    from instantstyle.cli.progress import hush

    hush()
    from instantstyle.train.adapter_run import prepare_features
    from instantstyle.train.data.feature_cache import FeatureConfig

    options = FeatureConfig(side=side, square=square, smallest=smallest, text=text == "stored")
    prepare_features(data, out, options, model=model, styles=styles, ray=ray, device=device, dtype=dtype, check=check)
    print_done(str(out))


app.command("b-lora")(train_b_lora_command)


def _style_score(blocks: str) -> "EvalFn":
    """A small score of held-out cells of the emoji world, drawn with the adapter as it is."""
    from dataclasses import asdict

    from instantstyle.evaluate.block_probe import ProbeCase, draw_cases, probe_cases, score_plan

    baseline: list[tuple[list[ProbeCase], list[Image]]] = []

    def evaluate_model(model: "Model") -> "Mapping[str, float]":
        if not baseline:
            cases = probe_cases(24, model.family.size[0])
            baseline.append((cases, draw_cases(model, cases, None, steps=20)))
        cases, plain = baseline[0]
        scores = asdict(score_plan(model, blocks, cases, draw_cases(model, cases, blocks, steps=20), plain))
        return {name: value for name, value in scores.items() if name != "plan"}

    return evaluate_model
