"""Few-step models: the numbers that each distilled LoRA was made for, as data with its sources.  No torch.

A preset sets steps, guidance and sampler; the LoRA itself is loaded beside it, from a file or from where it lies on the
hub.  Each was checked against the card of its model, as `source` says.  All cards add the LoRA whole (weight 1); DMD2's
says that less may suit models that are not SDXL's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from instantstyle.errors import InputError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class FewStepPreset:
    """How a distilled model is to be run."""

    steps: int
    guidance: float
    """At 1 and below nothing is added, which most distilled models ask for."""
    sampler: str
    lora: Mapping[str, str]
    """Where its LoRA lies on the hub, by family."""
    source: str
    """Who says so."""

    def compatibility_warnings(self, name: str, family: str) -> tuple[str, ...]:
        """A sentence where the preset, called `name`, was made for other families than this."""
        if family in self.lora:
            return ()
        return (f"the preset {name!r} is for {', '.join(self.lora)}, and this model is of family {family}",)


def _lightning(steps: int) -> FewStepPreset:
    file = f"ByteDance/SDXL-Lightning/sdxl_lightning_{steps}step_lora.safetensors"
    source = (
        "huggingface.co/ByteDance/SDXL-Lightning, 'N-Step LoRA': EulerDiscreteScheduler, timestep_spacing trailing, "
        "guidance_scale 0, fuse_lora() whole, the LoRA of as many steps as are taken"
    )
    return FewStepPreset(steps=steps, guidance=0.0, sampler="euler-trailing", lora={"sdxl": file}, source=source)


def _hyper(steps: int, *, guided: bool = False) -> FewStepPreset:
    card = (
        "News of 2024-04-30 and 2024-05-13 and discussion 32: guidance from 5 to 8; the card shows no scheduler of "
        "their own for these, so the one of its other LoRAs"
        if guided
        else "'2-Steps, 4-Steps, 8-steps LoRA': DDIMScheduler, timestep_spacing trailing, guidance_scale 0, "
        "fuse_lora() whole"
    )
    return FewStepPreset(
        steps=steps,
        guidance=5.0 if guided else 0.0,
        sampler="ddim-trailing",
        lora=_hyper_files(f"{steps}steps-{'CFG-' * guided}lora"),
        source=f"huggingface.co/ByteDance/Hyper-SD, {card}",
    )


def _hyper_files(name: str) -> Mapping[str, str]:
    return {kind.lower(): f"ByteDance/Hyper-SD/Hyper-{kind}-{name}.safetensors" for kind in ("SDXL", "SD15")}


FEW_STEP_PRESETS: Mapping[str, FewStepPreset] = {
    **{f"lightning-{steps}": _lightning(steps) for steps in (2, 4, 8)},
    **{f"hyper-{steps}": _hyper(steps) for steps in (2, 4, 8)},
    **{f"hyper-{steps}-cfg": _hyper(steps, guided=True) for steps in (8, 12)},
    "hyper-tcd": FewStepPreset(
        steps=4,
        guidance=0.0,
        sampler="tcd",
        lora=_hyper_files("1step-lora"),
        source="huggingface.co/ByteDance/Hyper-SD, 'Unified LoRA': TCDScheduler, 1 to 8 steps, guidance_scale 0; eta 1 "
        "at one step and less for more detail in several: here TCDScheduler's own default, 0.3",
    ),
    "lcm": FewStepPreset(
        steps=4,
        guidance=1.0,
        sampler="lcm",
        lora={
            "sdxl": "latent-consistency/lcm-lora-sdxl/pytorch_lora_weights.safetensors",
            "sd15": "latent-consistency/lcm-lora-sdv1-5/pytorch_lora_weights.safetensors",
        },
        source="LCM-LoRA, arXiv 2311.05556; huggingface.co/latent-consistency/lcm-lora-sdxl: LCMScheduler, 2 to 8 "
        "steps, no guidance or 1 to 2",
    ),
    "dmd2-4": FewStepPreset(
        steps=4,
        guidance=0.0,
        sampler="dmd2",
        lora={"sdxl": "tianweiy/DMD2/dmd2_sdxl_4step_lora_fp16.safetensors"},
        source="huggingface.co/tianweiy/DMD2, '4-step LoRA generation', and README of github.com/tianweiy/DMD2: "
        "LCMScheduler at timesteps 999, 749, 499, 249, guidance_scale 0, lora_scale 1",
    ),
}


def few_step_preset(name: str) -> FewStepPreset:
    """The preset of a name.  Raises InputError."""
    if name not in FEW_STEP_PRESETS:
        raise InputError(
            f"there is no preset {name!r}: give one of {', '.join(FEW_STEP_PRESETS)}"
            f"{did_you_mean(name, FEW_STEP_PRESETS)}"
        )
    return FEW_STEP_PRESETS[name]
