"""B-LoRA of one picture or of several that share a style, written in diffusers' LoRA keys."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from instantstyle.blocks import BlockPlan
from instantstyle.families import LoRATraining
from instantstyle.methods.b_lora import attention_weight_sites, cached_or_train
from instantstyle.methods.injection import run_to_end
from instantstyle.model import Model
from instantstyle.request import ImageInput
from instantstyle.weights.lora import save_lora

Part = Literal["style", "content", "both"]
"""Which of the two fitted blocks is written."""


def train_b_lora(
    model: Model,
    pictures: Sequence[ImageInput],
    out: str | Path,
    *,
    fitting: LoRATraining | None = None,
    part: Part = "style",
) -> Path:
    """Fit both blocks to the pictures, unless that was done before, and write one of them or both to `out`.

    The file is read by `load(..., loras=[(out, 1.0)])`, by diffusers' `load_lora_weights` and by whatever reads its
    keys.  An interrupted fit goes on where it stopped; `methods.fitting.watching` follows it.  Raises OutputError.
    """
    family, out = model.family, Path(out)
    fitting = fitting or family.b_lora_defaults
    plans = {
        "style": family.presets["style"],
        "content": BlockPlan(family.content_blocks.weights),
        "both": family.b_lora_blocks,
    }
    factors, site = run_to_end(cached_or_train(model, pictures, fitting)), attention_weight_sites(model)
    selected = {name: factor for name, factor in factors.items() if plans[part].scale(site[name])}
    metadata = {"part": part, "family": family.name, "pictures": len(pictures), **asdict(fitting)}
    save_lora(out, selected, {"b-lora": json.dumps(metadata)})
    return out
