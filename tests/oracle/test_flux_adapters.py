"""Adapters of Flux: XLabs' as diffusers loads it, InstantX' by its published arithmetic, and what each refuses."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.embeddings import apply_rotary_emb
from PIL import Image
from torch import Tensor

import tiny_models
from instantstyle.blocks import parse_block_plan
from instantstyle.errors import InputError, WeightsError
from instantstyle.loading import load
from instantstyle.networks.transformer_denoisers import unpack_latents
from instantstyle.request import Request, StyleReference
from instantstyle.sampling import Engine
from instantstyle.weights.adapter import adapter_modules, extract_blocks, family_of_adapter, load_adapter

diffusers: Any = importlib.import_module("diffusers")
transformers: Any = importlib.import_module("transformers")
safetensors: Any = importlib.import_module("safetensors.torch")
SIZE, STEPS = (64, 48), 3
TOLERANCE = 2e-5
PICTURE = tiny_models.picture(1)


def latents(kind: str, request: Request) -> Tensor:
    run = Engine(tiny_models.flux_with_adapter(kind)).submit(request)
    for _ in run:
        pass
    return run.latents


def request(**fields: Any) -> Request:
    given: dict[str, Any] = {"steps": STEPS, "seed": 7, "size": SIZE, "plan": "all"} | fields
    given = {"references": [StyleReference(PICTURE)]} | given
    return Request("a cat", **given)


def theirs(pipe: Any, **arguments: Any) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(7)
    more = {"prompt": "a cat", "num_inference_steps": STEPS, "width": SIZE[0], "height": SIZE[1], "guidance_scale": 3.5}
    return unpack_latents(pipe(**more, output_type="latent", generator=generator, **arguments).images, SIZE[1] // 8)


def clip_embeds(picture: Image.Image, content: str | None = None) -> Tensor:
    """The embedding by transformers' own preprocessing, less half of the content's, [1, 1, width]."""
    files = tiny_models.flux_adapter("xlabs")
    processor = transformers.CLIPImageProcessorPil.from_pretrained(files / "feature_extractor")
    net = transformers.CLIPVisionModelWithProjection.from_pretrained(files / "image_encoder")
    with torch.no_grad():
        embeds = net(processor(picture, return_tensors="pt").pixel_values).image_embeds
        if content is not None:
            tower = transformers.CLIPTextModelWithProjection.from_pretrained(files / "content_encoder")
            tokenizer = transformers.CLIPTokenizer.from_pretrained(files / "content_encoder" / "tokenizer")
            ids = tokenizer([content], padding="max_length", max_length=77, return_tensors="pt").input_ids
            embeds = embeds - 0.5 * tower(ids).text_embeds
    return embeds[:, None]


XLABS: dict[str, tuple[dict[str, Any], Any, str | None, list[int]]] = {
    "all": ({}, 1.0, None, [1]),
    "block by block": ({"plan": "double.0=0.3,double.1=0.9"}, [0.3, 0.9], None, [1]),
    "ip-adapter": ({"method": "ip-adapter", "plan": None}, 1.0, None, [1]),
    "content subtracted": ({"plan": "all=0.8"}, 0.8, "dog", [1]),
    "two references": ({}, 1.0, None, [1, 2]),
    "true guidance": ({"true_guidance": 2.5, "negative": "dog"}, 1.0, None, [1]),
}


@pytest.mark.parametrize("case", XLABS)
def test_xlabs_adapter_is_diffusers(case: str) -> None:
    fields, scale, content, seeds = XLABS[case]
    pipe = diffusers.FluxPipeline.from_pretrained(tiny_models.folder("flux"))
    files = tiny_models.flux_adapter("xlabs")
    pipe.load_ip_adapter(
        files, weight_name="adapter.safetensors", subfolder="", image_encoder_pretrained_model_name_or_path=None
    )
    pipe.set_ip_adapter_scale(scale)
    embeds = torch.cat([clip_embeds(tiny_models.picture(seed), content) for seed in seeds], dim=1)
    arguments: dict[str, Any] = {"ip_adapter_image_embeds": [embeds]}
    arguments["negative_ip_adapter_image_embeds"] = [clip_embeds(Image.new("RGB", (64, 64)))]
    if "true_guidance" in fields:
        arguments |= {"true_cfg_scale": 2.5, "negative_prompt": "dog"}
    references = [StyleReference(tiny_models.picture(seed), content=content) for seed in seeds]
    if "method" in fields:
        fields = {name: value for name, value in fields.items() if value is not None} | {"plan": "all"}
    ours, expected = latents("xlabs", request(references=references, **fields)), theirs(pipe, **arguments)
    torch.testing.assert_close(ours, expected, atol=TOLERANCE * float(expected.abs().max()), rtol=0)
    bare = latents(
        "xlabs", request(references=[], **{k: v for k, v in fields.items() if k in ("true_guidance", "negative")})
    )
    assert float((ours - bare).abs().max()) > 20 * TOLERANCE * float(expected.abs().max())


class PublishedInstantX:
    """The arithmetic of InstantX/FLUX.1-dev-IP-Adapter as a processor of diffusers, with the ways others differ.

    `values_normed`: Shakker-Labs' ComfyUI nodes normalise values too; InstantX' own code and DiffSynth do not.
    `single_rotated`: DiffSynth's single blocks ask with rotated queries; the other two never do.
    """

    def __init__(self, k: Any, v: Any, scale: float, *, single_rotated: bool) -> None:
        self.k, self.v, self.scale, self.single_rotated = k, v, scale, single_rotated

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        def split(x: Any) -> Any:
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        q, k = attn.norm_q(split(attn.to_q(hidden_states))), attn.norm_k(split(attn.to_k(hidden_states)))
        v, asking, text = split(attn.to_v(hidden_states)), q, 0
        if encoder_hidden_states is not None:
            e, text = encoder_hidden_states, encoder_hidden_states.shape[1]
            q = torch.cat([attn.norm_added_q(split(attn.add_q_proj(e))), q], dim=2)
            k = torch.cat([attn.norm_added_k(split(attn.add_k_proj(e))), k], dim=2)
            v = torch.cat([split(attn.add_v_proj(e)), v], dim=2)
        rotate: Any = apply_rotary_emb
        q, k = rotate(q, image_rotary_emb), rotate(k, image_rotary_emb)
        if encoder_hidden_states is None and self.single_rotated:
            asking = q
        image = F.scaled_dot_product_attention(asking, self.k, self.v).transpose(1, 2).flatten(2)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        if encoder_hidden_states is None:
            return out + self.scale * image
        return attn.to_out[0](out[:, text:] + self.scale * image), attn.to_add_out(out[:, :text])


def rms(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def published_instantx(scale: float, *, values_normed: bool = False, single_rotated: bool = False) -> Tensor:
    pipe = diffusers.FluxPipeline.from_pretrained(tiny_models.folder("flux"))
    files = tiny_models.flux_adapter("instantx")
    tensors = safetensors.load_file(files / "adapter.safetensors")
    net = transformers.SiglipVisionModel.from_pretrained(files / "image_encoder")
    pixels = transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32})(
        PICTURE, return_tensors="pt"
    ).pixel_values
    with torch.no_grad():
        x = net(pixels).pooler_output
        x = F.linear(x, tensors["image_proj.proj.0.weight"], tensors["image_proj.proj.0.bias"])
        x = F.linear(F.gelu(x), tensors["image_proj.proj.2.weight"], tensors["image_proj.proj.2.bias"])
        norm = tensors["image_proj.norm.weight"], tensors["image_proj.norm.bias"]
        tokens = F.layer_norm(x.reshape(1, -1, 24), (24,), *norm)
    modules = [module for module in pipe.transformer.modules() if hasattr(module, "set_processor")]
    for n, module in enumerate(modules):
        k, v = (F.linear(tokens, tensors[f"ip_adapter.{n}.to_{each}_ip.weight"]) for each in "kv")
        k, v = (x.reshape(1, -1, 2, 16).transpose(1, 2) for x in (k, v))
        k, v = rms(k), rms(v) if values_normed else v
        module.set_processor(PublishedInstantX(k, v, scale, single_rotated=single_rotated))
    return theirs(pipe)


@pytest.mark.parametrize("scale", [0.6, 1.0])
def test_instantx_adapter_is_its_published_arithmetic(scale: float) -> None:
    """InstantX' own reading, on which two of the three published codes agree at each point; the others are others."""
    ours, expected = latents("instantx", request(plan=f"all={scale}")), published_instantx(scale)
    close = TOLERANCE * float(expected.abs().max())
    torch.testing.assert_close(ours, expected, atol=close, rtol=0)
    for other in ({"values_normed": True}, {"single_rotated": True}):
        assert float((published_instantx(scale, **other) - expected).abs().max()) > 20 * close


@pytest.mark.parametrize("kind", ["xlabs", "instantx"])
def test_no_style_is_plain_and_a_mask_bounds_it(kind: str) -> None:
    bare = latents(kind, request(references=[]))
    for fields in ({"references": [StyleReference(PICTURE, weight=0)]}, {"plan": "all=0"}, {"window": (0.5, 0.5)}):
        assert torch.equal(latents(kind, request(**fields)), bare)
    white, left = (Image.new("L", SIZE, 255), Image.new("L", SIZE, 0))
    left.paste(255, (0, 0, SIZE[0] // 2, SIZE[1]))
    masked = [latents(kind, request(references=[StyleReference(PICTURE, mask=mask)])) for mask in (white, left)]
    assert float((masked[0] - masked[1]).abs().max()) > 1e-3
    if kind == "xlabs":
        torch.testing.assert_close(masked[0], latents(kind, request()), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("kind", ["xlabs", "instantx"])
def test_alone_or_together(kind: str) -> None:
    model = tiny_models.flux_with_adapter(kind)
    before, engine = model.weights_hash(), Engine(model)
    asked = [request(), request(references=[]), request(plan="double.1=0.5", true_guidance=2.0, steps=2, count=2)]
    asked += [request(method="swapped", plan=None, references=[StyleReference(tiny_models.picture(3))])]
    runs = [engine.submit(each) for each in asked]
    engine.run()
    for run, each in zip(runs, asked, strict=True):
        torch.testing.assert_close(run.latents, latents(kind, each), atol=5e-5, rtol=0)
    assert model.weights_hash() == before


@pytest.mark.parametrize(("kind", "plan"), [("xlabs", "double.1=1"), ("instantx", "single=1")])
def test_style_only_files(kind: str, plan: str, tmp_path: Path) -> None:
    """A file of some blocks draws what the whole file draws there, and says what it lacks."""
    whole, layout = tiny_models.flux_adapter(kind), tiny_models.model("flux").family.layout
    extract_blocks(
        whole / "adapter.safetensors", tmp_path / "slim.safetensors", parse_block_plan(plan, layout, {}), layout
    )
    assert (tmp_path / "slim.safetensors").stat().st_size < (whole / "adapter.safetensors").stat().st_size
    modules = {"xlabs": ("double.1",), "instantx": ("single.0", "single.1")}
    assert adapter_modules(tmp_path / "slim.safetensors", layout) == modules[kind]
    model = load(
        tiny_models.folder("flux"), adapter=tmp_path / "slim.safetensors", image_encoder=whole / "image_encoder"
    )
    run = Engine(model).submit(request(plan=plan))
    for _ in run:
        pass
    # Not to the bit: tensors that lie otherwise in their file are multiplied otherwise.
    torch.testing.assert_close(run.latents, latents(kind, request(plan=plan)), atol=TOLERANCE, rtol=0)
    with pytest.raises(WeightsError, match="which the adapter has no weights for"):
        Engine(model).submit(request(plan="all")).prepare()


def test_what_does_not_fit_is_a_sentence() -> None:
    flux, sdxl = tiny_models.model("flux").family, tiny_models.model("sdxl").family
    own, other = (
        tiny_models.flux_adapter("instantx") / "adapter.safetensors",
        tiny_models.folder("sdxl") / "ip_adapter.safetensors",
    )
    with pytest.raises(WeightsError, match="this model's are 24 wide"):
        load_adapter(other, flux.layout)
    with pytest.raises(WeightsError, match="this UNet's are 32 wide"):
        load_adapter(own, sdxl.layout)
    with pytest.raises(WeightsError, match="for none of the families"):
        family_of_adapter(own)
    with pytest.raises(WeightsError, match=r"the plan names single.0, and an adapter of this kind acts from double.0"):
        Engine(tiny_models.flux_with_adapter("xlabs")).submit(request(plan="single=1")).prepare()
    references = [StyleReference(PICTURE, content="dog")]
    with pytest.raises(InputError, match="content cannot be subtracted yet"):
        Engine(tiny_models.flux_with_adapter("instantx")).submit(request(references=references)).prepare()
