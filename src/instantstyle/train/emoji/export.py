# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false, reportArgumentType=false

"""Export of the trained model as a folder in diffusers' layout, float16: what is shipped in `assets/emoji`.

Every part is written by the library that reads it, so the built-in model is loaded like any other checkpoint.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTokenizer

from instantstyle.emoji import build_vocabulary
from instantstyle.emoji.sources import attributions, bundled_names
from instantstyle.emoji.splits import TRAINED_CONCEPTS, splits
from instantstyle.families import EMOJI
from instantstyle.train.emoji.clip import Clip
from instantstyle.train.emoji.image_bank import SIDE
from instantstyle.train.emoji.unet import SCHEDULE

_INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "force_zeros_for_empty_prompt": EMOJI.force_zeros_for_empty_prompt,
}


def export(
    folder: Path,
    vae: AutoencoderKL,
    clip: Clip,
    tokenizer: CLIPTokenizer,
    unet: Mapping[str, Tensor],
    adapters: Mapping[str, Path],
    vocabulary: tuple[str, ...],
    card: str,
    embedding_scale: float = 1.0,
    control: ControlNetModel | None = None,
    side: int = SIDE,
) -> None:
    """Write the model beside `folder`, then replace `folder` with it.

    `unet` is our state dict, loaded strictly by diffusers here; `adapters` are file names and source files;
    `control` reads Canny edges; `side` is the pictures' native one.
    Image embeddings are multiplied by `embedding_scale`, a power of two, and the adapters' projections divided by it,
    which changes no output.  The paper subtracts unnormalised text from unnormalised image embeddings, so both need
    about the same norm for its content weight to apply.
    """
    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    net = diffusers_unet(side)
    net.load_state_dict(dict(unet), strict=True)
    with torch.no_grad():
        clip.image.visual_projection.weight *= embedding_scale
    for part, module in {
        "unet": net,
        "vae": vae,
        "text_encoder": clip.text_1,
        "text_encoder_2": clip.text_2,
        "image_encoder": clip.image,
        **({} if control is None else {"controlnet_canny": control}),
    }.items():
        cast("Any", module).half().save_pretrained(new / part)
        cast("Any", module).float()
    for part in ("tokenizer", "tokenizer_2"):
        tokenizer.save_pretrained(new / part)
    DDIMScheduler(**cast("Any", SCHEDULE)).save_pretrained(new / "scheduler")
    (new / "feature_extractor").mkdir()
    _write(new / "feature_extractor" / "preprocessor_config.json", _PREPROCESSING)
    _write(new / "model_index.json", _INDEX)
    _write(new / "vocabulary.json", list(vocabulary))
    if bundled_names():  # of what people type a pack knows nothing, and the table does not depend on what was trained
        shutil.copyfile(build_vocabulary.TARGET, new / build_vocabulary.VOCABULARY_FILE)
    else:
        build_vocabulary.write_vocabulary(new / build_vocabulary.VOCABULARY_FILE)
    for name, file in adapters.items():
        weights = load_file(file)
        weights["image_proj.proj.weight"] /= embedding_scale
        tensors = {key: value.half().contiguous() for key, value in weights.items()}
        save_file(tensors, new / name, metadata={"format": "pt"})
    files = sorted(f for f in new.rglob("*") if f.is_file())
    for file in files:
        file.chmod(0o644)  # safetensors writes for the owner alone
    lines = "".join(f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.relative_to(new)}\n" for f in files)
    (new / "SHA256SUMS").write_text(lines, "utf-8")
    (new / "README.md").write_text(card, "utf-8")
    with torch.no_grad():
        clip.image.visual_projection.weight /= embedding_scale
    shutil.rmtree(folder, ignore_errors=True)
    new.replace(folder)


def diffusers_unet(side: int = SIDE) -> UNet2DConditionModel:
    """diffusers' UNet of the built-in family, for its configuration file and its strict loading."""
    config = EMOJI.unet
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=side // 8,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_num_groups,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=[max(depth, 1) for depth in config.transformer_layers_per_block],
        attention_head_dim=config.num_attention_heads,
        cross_attention_dim=config.cross_attention_dim,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=config.addition_time_embed_dim,
        projection_class_embeddings_input_dim=(config.pooled_projection_dim or 0) + 6 * config.addition_time_embed_dim,
    )


def card(
    ran: Mapping[str, tuple[int, float]],
    things: Sequence[str] = TRAINED_CONCEPTS,
    side: int = SIDE,
    began: str = "nothing",
) -> str:
    """The model card: what it is, what it was trained on and for how long; `began` is what its weights began as."""
    stages = "\n".join(f"| {name} | {steps:,} | {seconds / 3600:.2f} |" for name, (steps, seconds) in ran.items())
    control = "\n\n`controlnet_canny` follows the Canny edges (50, 200) of a picture." if "control" in ran else ""
    sources = "\n".join(f"- {line}" for line in attributions() if "evaluation only" not in line)
    return f"""# The built-in model of InstantStyle

Draws {len(things)} things at {side} x {side} pixels in the style of a reference picture.  Its layout is SDXL's in
small, so files, code paths and block names are SDXL's; its weights were trained on openly licensed emoji drawn
again in random looks, beginning from {began}.  It knows these things and no others: {", ".join(things)}.

`ip_adapter.safetensors` was trained the published way: all blocks, the reference is the target picture.
`ip_adapter_style.safetensors` holds the blocks of the `style` preset alone.  It was trained for the split: in the
stage `joint` the UNet and this adapter learned together, from references of other things in the target's style, so that
style has a way in at these blocks.  A frozen UNet let lightness through them and hardly any colour.{control}

| stage | optimiser steps | hours |
|---|---|---|
{stages}

Trained by `python -m instantstyle.train.emoji bank vae text clip unet look joint adapter control export`.  Held out:
the concepts, cells, sets, looks and hues in `src/instantstyle/emoji/splits.json` ({splits().sha256[:16]}).

What it reaches on cells it never saw, each figure beside what real pictures score (`make floors` writes it here):

<!-- floors -->
<!-- /floors -->

Limits: it knows no other things, no scenes and no colour words; flat palettes and the hand of a drawing set
hardly follow a reference, pixels and hatching now and then.

Drawings:

{sources}

Weights are derived from these drawings; their attribution stands in NOTICE.  Every file's hash: `SHA256SUMS`.
"""


def _write(file: Path, data: object) -> None:
    file.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", "utf-8")


_PREPROCESSING = {
    "crop_size": {"height": SIDE, "width": SIDE},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "image_processor_type": "CLIPImageProcessor",
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": SIDE},
}
