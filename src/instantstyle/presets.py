"""Few-step models: the numbers that each distilled LoRA was made for, as data with its sources.  No torch.

A preset sets steps, guidance and sampler; the LoRA itself is loaded beside it, from a file or from where it lies on the
hub.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from instantstyle.errors import InputError, nearest


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How a distilled model is to be run."""

    steps: int
    guidance: float
    """At 1 and below nothing is added, which most distilled models ask for."""
    sampler: str
    lora: Mapping[str, str]
    """Where its LoRA lies on the hub, by family."""
    source: str
    """Who says so."""


def _lightning(steps: int) -> Preset:
    file = f"ByteDance/SDXL-Lightning/sdxl_lightning_{steps}step_lora.safetensors"
    source = "huggingface.co/ByteDance/SDXL-Lightning: Euler, trailing timesteps, guidance 0"
    return Preset(steps=steps, guidance=0.0, sampler="euler-trailing", lora={"sdxl": file}, source=source)


def _hyper(steps: int) -> Preset:
    name = f"{steps}step{'s' if steps > 1 else ''}"
    lora = {kind.lower(): f"ByteDance/Hyper-SD/Hyper-{kind}-{name}-lora.safetensors" for kind in ("SDXL", "SD15")}
    source = "huggingface.co/ByteDance/Hyper-SD: DDIM, trailing timesteps, guidance 0"
    return Preset(steps=steps, guidance=0.0, sampler="ddim-trailing", lora=lora, source=source)


PRESETS: Mapping[str, Preset] = {
    **{f"lightning-{steps}": _lightning(steps) for steps in (2, 4, 8)},
    **{f"hyper-{steps}": _hyper(steps) for steps in (2, 4, 8)},
    "hyper-tcd": Preset(
        steps=4,
        guidance=0.0,
        sampler="tcd",
        lora={
            "sdxl": "ByteDance/Hyper-SD/Hyper-SDXL-1step-lora.safetensors",
            "sd15": "ByteDance/Hyper-SD/Hyper-SD15-1step-lora.safetensors",
        },
        source="huggingface.co/ByteDance/Hyper-SD: the unified LoRA, TCD, 1 to 8 steps, guidance 0",
    ),
    "lcm": Preset(
        steps=4,
        guidance=1.0,
        sampler="lcm",
        lora={
            "sdxl": "latent-consistency/lcm-lora-sdxl/pytorch_lora_weights.safetensors",
            "sd15": "latent-consistency/lcm-lora-sdv1-5/pytorch_lora_weights.safetensors",
        },
        source="LCM-LoRA, arXiv 2311.05556; huggingface.co/latent-consistency/lcm-lora-sdxl: 4 steps, guidance 1 to 2",
    ),
    "dmd2-4": Preset(
        steps=4,
        guidance=0.0,
        sampler="dmd2",
        lora={"sdxl": "tianweiy/DMD2/dmd2_sdxl_4step_lora_fp16.safetensors"},
        source="github.com/tianweiy/DMD2: LCM sampler at timesteps 999, 749, 499, 249, guidance 0",
    ),
}


def preset(name: str) -> Preset:
    """The preset of a name.  Raises InputError."""
    if name not in PRESETS:
        raise InputError(f"there is no preset {name!r}: give one of {', '.join(PRESETS)}{nearest(name, PRESETS)}")
    return PRESETS[name]
