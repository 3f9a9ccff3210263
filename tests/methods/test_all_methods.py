"""What is true of every method on every family: no strength is no style, any number of steps, and the full size.

Full-size networks are on the meta device: shapes alone, no numbers.  Their encoders are stood in for by the shapes of
what they say; all else is the way from request to prediction that pictures take.
"""

import dataclasses
import importlib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny_models
from instantstyle.families import FAMILIES
from instantstyle.methods import METHODS
from instantstyle.methods.injection import Preparation, StepContext, make_injection, run_to_end
from instantstyle.methods.lora_training import attach_lora
from instantstyle.model import Model, TextEmbeddings
from instantstyle.networks.denoiser import UNetDenoiser
from instantstyle.networks.image_projection import ImageProjection
from instantstyle.networks.unet import UNet
from instantstyle.request import Request, StyleReference
from instantstyle.sampling import Engine, Run, resolve
from instantstyle.sampling.conditioning import encode_conditioning
from instantstyle.weights.adapter import Adapter
from instantstyle.weights.lora import LoRAFactors

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, with this numpy

STYLED = tuple(name for name in METHODS if name != "none")
BESIDE = ("style-aligned", "swapped", "stylekeeper")
NAMES = tuple(FAMILIES)
OPTIONS: dict[str, dict[str, Any]] = {
    "b-lora": {"fit-steps": 1, "fit-rank": 1, "fit-rate": 0.01},
    "style-aligned": {"rows": "renoised"},
    "swapped": {"calibrate": True},
}
"""What makes a method quick, and what it does not do unless told."""


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSTANTSTYLE_CACHE", str(tmp_path))


def styled(method: str, weight: float = 1.0, **fields: Any) -> Request:
    given: dict[str, Any] = {"seed": 5, "steps": 1, "options": OPTIONS.get(method, {})} | fields
    return Request("a cat", method=method, references=[StyleReference(tiny_models.picture(1), weight=weight)], **given)


def latents(name: str, request: Request) -> Tensor:
    run: Run = Engine(tiny_models.model(name)).submit(request)
    for _ in run:
        pass
    return run.latents


@cache
def bare(name: str, steps: int) -> Tensor:
    return latents(name, Request("a cat", seed=5, steps=steps))


@pytest.mark.parametrize("name", ["sdxl", "sd15"])
@pytest.mark.parametrize("method", STYLED)
def test_1_no_strength_is_no_style(method: str, name: str) -> None:
    """Weight 0 is the bare model to the bit, and a weight that goes to 0 comes as near as one likes.

    The first holds on the built-in layout too, by the engine's laws.
    """
    assert torch.equal(latents(name, styled(method, 0.0)), bare(name, 1))
    torch.testing.assert_close(latents(name, styled(method, 1e-6)), bare(name, 1), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("name", "steps"), [("sdxl", 3), ("sd15", 3), ("emoji", 1)])
@pytest.mark.parametrize("method", [name for name in STYLED if name not in BESIDE])
def test_any_number_of_steps(method: str, name: str, steps: int) -> None:
    """Three do not divide 1000, and one is all a run may have; those with reference rows have a test of their own."""
    out = latents(name, styled(method, steps=steps))
    assert out.isfinite().all()
    assert not torch.allclose(out, bare(name, steps), atol=1e-4)


class Shapes(Model):
    """A model at full size without numbers, its encoders the shapes of what they say."""

    def encode_prompt(self, texts: Any, reading: Any = "plain") -> TextEmbeddings:
        c = self.family.unet
        pooled = (
            None if c.pooled_projection_dim is None else torch.empty(len(texts), c.pooled_projection_dim, device="meta")
        )
        return TextEmbeddings(
            torch.empty(len(texts), self.family.max_text_tokens, c.cross_attention_dim, device="meta"), pooled, pooled
        )

    def encode_image(self, pictures: Any, fit: Any = "squash", adapter: Any = None) -> Tensor:
        return torch.empty(len(pictures), 1280, device="meta")

    def encode_latents(self, picture: Any) -> Tensor:
        width, height = picture.size
        return torch.empty(
            1,
            self.family.unet.in_channels,
            height // self.vae_scale_factor,
            width // self.vae_scale_factor,
            device="meta",
        )


@cache
def full_size(name: str) -> Model:
    family, small = FAMILIES[name], tiny_models.model(name)
    context = family.unet.cross_attention_dim
    with torch.device("meta"):
        unet, projection = UNet(family.unet), ImageProjection(1280, context, 4)
        crossed = [site for site in family.unet.sites if site.kind == "cross"]
        widths = {site: unet.attention(site).to_q.out_features for site in crossed}
        keys, values = ({site: torch.empty(widths[site], context) for site in crossed} for _ in range(2))
    given: dict[str, Any] = {field.name: getattr(small, field.name) for field in dataclasses.fields(Model)}
    given |= {"family": family, "network": unet, "adapter": Adapter(projection, keys, values, 1280, 4)}
    given |= {"style_adapter": None, "adapters": {}, "device": torch.device("meta")}
    return Shapes(**given)


def thin(model: Model, pictures: Any, fitting: Any) -> Preparation[dict[str, LoRAFactors]]:
    """What a fit gives, as it is before its first step."""
    _, layers = attach_lora(model.unet, model.family.b_lora_blocks, fitting.rank, 0)
    yield from ()
    return {name: LoRAFactors(layer.up.detach(), layer.down.detach()) for name, layer in layers.items()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", STYLED)
def test_full_size_networks_take_every_method(method: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("instantstyle.methods.b_lora"), "cached_or_train", thin)
    model, moment = full_size(name), StepContext(0, 2, 999.0, 0.1, 0.99)
    width, height = model.family.size
    request = styled(method, size=model.family.size, guidance=5.0)
    resolved = resolve(model, request)
    asked = run_to_end(make_injection(model, resolved))
    denoiser = UNetDenoiser(asked.unet or model.unet)
    told = encode_conditioning(model, resolved, asked, denoiser)
    own = 2 + len(asked.extra_guidance)
    seen = torch.empty(own, model.family.unet.in_channels, height // 8, width // 8, device="meta")
    if asked.reference_batch is not None:
        seen = torch.cat([seen, asked.reference_batch.latents(moment)])
    time = torch.empty(len(seen), device="meta")
    out = denoiser(seen, time, told, attend=asked.attend_for(moment))
    assert out.shape == (len(seen), model.family.unet.out_channels, height // 8, width // 8)
    assert len(seen) == {"style-aligned": 4, "swapped": 4, "stylekeeper": 5}.get(method, 2)
    if asked.x0_hook is not None:
        assert asked.x0_hook(dataclasses.replace(moment, timestep=120.0), seen[:1]).shape == seen[:1].shape
