"""The facts of each architecture as data: layout, presets, encoders, sizes, defaults.  No torch.

Among them which blocks carry style and which layout, InstantStyle's second idea (arXiv 2404.02733, section 3.2).  In

    Z = Attention(Q, K_text, V_text) + s * Attention(Q, K_image, V_image)

the preset `style` makes s = 1 at the style blocks and 0 elsewhere.  In SDXL that is one attention module of eleven:

    style   up.0.1      up_blocks.0.attentions.1    colour, material, atmosphere
    layout  down.2.1    down_blocks.2.attentions.1  spatial layout
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from instantstyle.blocks import BlockPlan, Layout, TransformerConfig, UNetConfig
from instantstyle.errors import InputError

_ALL, _NONE = BlockPlan({"all": 1.0}), BlockPlan({})


BASE_PRESETS = ("style", "layout")
"""The plans that are measured, in an architecture or in one checkpoint; the others follow from them."""


def make_presets(style: Mapping[str, float], layout: Mapping[str, float]) -> Mapping[str, BlockPlan]:
    """The named plans of an architecture, from the scales of its style and of its layout blocks."""
    return {
        "style": BlockPlan(style),
        "layout": BlockPlan(layout),
        "style+layout": BlockPlan({**style, **layout}),
        "all": _ALL,
        "precise": BlockPlan(style, negative=layout),
    }


@dataclass(frozen=True, kw_only=True)
class LoRATraining:
    """How a B-LoRA is trained on a picture; published numbers (arXiv 2403.14572 and its code) unless a family's own."""

    rank: int = 64
    steps: int = 1000
    learning_rate: float = 5e-5
    batch: int = 1
    prompt: str = "A [v]"
    """What the picture is called in training where its content is not given."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """The facts of one architecture, true of every checkpoint of it."""

    name: str
    layout: Layout
    presets: Mapping[str, BlockPlan]
    """Named plans: `style` where style lives in this architecture, `layout` where spatial layout does (InstantStyle's
    two blocks), both, `all`, and `precise`, which keeps the reference's layout out by guidance.  Where nothing is
    known of an architecture, `all` alone."""
    presets_source: str
    """Where `style` and `layout` are known from."""
    size: tuple[int, int]
    """Native (width, height) in pixels."""
    guidance: float = 5.0
    """Guidance scale where a request gives none; InstantStyle's own code has 5."""
    linear_sigmas: bool = False
    """Of flow matching: whether schedules are made of sigmas from 1 to 1/n (Flux), or by the scheduler itself."""
    guidance_rescale: float = 0.0
    """`guidance_rescale` where a request gives none."""
    size_multiple: int
    """Widths and heights must be multiples of this many pixels."""
    max_text_tokens: int
    """Text tokens a prompt is padded to."""
    clip_skip: int = 2
    """Which hidden state of the text encoders is the context: 1 the last with its norm, 2 the one before it."""
    clip_skip_final_norm: bool = False
    """Whether the encoders' final norm is applied to a hidden state before the last (SD1.5)."""
    num_image_tokens: int = 4
    content_blocks: BlockPlan = _NONE
    """The blocks that take a picture's content in a B-LoRA, whose style blocks are those of the preset `style`."""
    b_lora_defaults: LoRATraining = LoRATraining()
    force_zeros_for_empty_prompt: bool = False
    """Whether an empty negative prompt is all zeros (SDXL's `force_zeros_for_empty_prompt`)."""

    @property
    def unet(self) -> UNetConfig:
        """The layout of a UNet.  Raises InputError where the model is a transformer, and what asks is for UNets."""
        if isinstance(self.layout, TransformerConfig):
            raise InputError(f"this is for models with a UNet, and {self.name} is a transformer")
        return self.layout

    @property
    def is_transformer(self) -> bool:
        """Whether it is no UNet."""
        return isinstance(self.layout, TransformerConfig)

    @property
    def b_lora_blocks(self) -> BlockPlan:
        """The blocks that a B-LoRA trains together: content's and style's."""
        return BlockPlan({**self.content_blocks.weights, **self.presets["style"].weights})


SDXL = Family(
    name="sdxl",
    layout=UNetConfig(),
    presets=make_presets({"up.0.1": 1.0}, {"down.2.1": 1.0}),
    presets_source="InstantStyle, arXiv 2404.02733, section 3.2",
    content_blocks=BlockPlan({"up.0.0": 1.0}),  # B-LoRA, arXiv 2403.14572, section 4: its W4
    size=(1024, 1024),
    size_multiple=8,
    max_text_tokens=77,
    clip_skip=2,
    force_zeros_for_empty_prompt=True,
)

SD15 = Family(
    name="sd15",
    layout=UNetConfig(
        block_out_channels=(320, 640, 1280, 1280),
        transformer_layers_per_block=(1, 1, 1, 0),
        num_attention_heads=(8, 8, 8, 8),
        cross_attention_dim=768,
        pooled_projection_dim=None,
        use_linear_projection=False,
    ),
    presets=make_presets({"up.1": 1.0}, {"down.2": 1.0, "mid": 1.0}),
    presets_source="comments of the official SD1.5 script; its authors call them experimental",
    content_blocks=BlockPlan({"down.2": 1.0, "mid": 1.0}),  # its layout: B-LoRA has no SD1.5
    size=(512, 512),
    size_multiple=8,
    max_text_tokens=77,
    clip_skip=1,
    clip_skip_final_norm=True,
)

EMOJI = Family(
    name="emoji",
    layout=UNetConfig(
        in_channels=32,
        out_channels=32,
        block_out_channels=(96, 128, 128),
        transformer_layers_per_block=(0, 1, 1),
        num_attention_heads=(3, 4, 4),
        cross_attention_dim=192,
        pooled_projection_dim=192,
        addition_time_embed_dim=32,
    ),
    presets=make_presets({"up.1.1": 1.0, "up.1.2": 1.0}, {"down.2.1": 1.0}),
    presets_source="style: the probe in benchmarks/results/probe.md; layout: SDXL's, of no measured effect here",
    content_blocks=BlockPlan({"down.2.1": 1.0}),  # its layout
    b_lora_defaults=LoRATraining(rank=8, steps=40, learning_rate=1e-2, batch=8),
    size=(64, 64),
    guidance=3.0,  # 5 paints this small model's colours too loudly: benchmarks/LOG.md
    guidance_rescale=0.7,  # as published for models that begin from pure noise, arXiv 2305.08891, section 3.4
    size_multiple=32,
    max_text_tokens=24,
    clip_skip=2,
    force_zeros_for_empty_prompt=False,
)

FAMILIES: Mapping[str, Family] = {family.name: family for family in (SDXL, SD15, EMOJI)}


_FLUX = Family(
    name="flux-dev",
    layout=TransformerConfig(
        class_name="FluxTransformer2DModel",
        num_layers=19,
        num_single_layers=38,
        num_attention_heads=24,
        attention_head_dim=128,
        pooled_projection_dim=768,
        guidance_embeds=True,
    ),
    presets=make_presets(
        {f"single.{block}": 1.0 for block in range(10, 38)}, {f"single.{block}": 1.0 for block in range(10)}
    ),
    presets_source=(
        "reported, not verified here: SplitFlux (arXiv 2511.15258) found style in single blocks 10 to 37 and content "
        "in 0 to 9, by exchanging prompts and not by adapters"
    ),
    size=(1024, 1024),
    size_multiple=16,
    guidance=3.5,
    linear_sigmas=True,
    max_text_tokens=512,
)
_SD3 = Family(
    name="sd35-large",
    layout=TransformerConfig(
        class_name="SD3Transformer2DModel",
        num_layers=38,
        num_attention_heads=38,
        attention_head_dim=64,
        pooled_projection_dim=2048,
        max_patches=192,
    ),
    presets={"all": _ALL},
    presets_source="nothing is published of where style lives in Stable Diffusion 3: find it by instantstyle probe",
    size=(1024, 1024),
    size_multiple=16,
    guidance=3.5,
    max_text_tokens=256,
)


def _variant(family: Family, name: str, guidance: float, tokens: int, **layout: Any) -> Family:
    return replace(
        family, name=name, guidance=guidance, max_text_tokens=tokens, layout=replace(family.layout, **layout)
    )


TRANSFORMER_FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        _FLUX,
        _variant(_FLUX, "flux-schnell", 1.0, 256, guidance_embeds=False),
        _SD3,
        _variant(
            _SD3,
            "sd35-medium",
            4.5,
            256,
            num_layers=24,
            num_attention_heads=24,
            dual_attention_layers=tuple(range(13)),
            max_patches=384,
        ),
        _variant(_SD3, "sd3-medium", 7.0, 256, num_layers=24, num_attention_heads=24),
    )
}
"""Diffusion transformers; numbers are those of the published configurations.

Guidance: 3.5 and 7.0 are the defaults of diffusers' FluxPipeline and StableDiffusion3Pipeline, 4.5 is in the card of
Stable Diffusion 3.5 medium, and 3.5 for large is as published examples have it.
"""
