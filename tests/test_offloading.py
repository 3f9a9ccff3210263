"""Sparing memory changes no picture: weights mapped from their files, encoders let go, layers offloaded, tiles."""

import gc
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tiny_models
from instantstyle.loading import load
from instantstyle.model import Model
from instantstyle.request import Request, StyleReference
from instantstyle.sampling import Engine

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, with this numpy


def drawn(model: Model) -> torch.Tensor:
    request = Request("a cat", references=[StyleReference(tiny_models.picture(1))], steps=2, seed=3)
    run = Engine(model).submit(request)
    for _ in run:
        pass
    return run.latents


@pytest.mark.skipif(sys.platform != "linux", reason="asks the system what is mapped")
def test_weights_are_mapped_from_their_file() -> None:
    model = load(tiny_models.folder("sdxl"))
    file = str(tiny_models.folder("sdxl") / "unet/diffusion_pytorch_model.safetensors")
    places = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(file)]
    held = [tuple(int(end, 16) for end in place[0].split("-")) for place in places]
    pointers = [tensor.data_ptr() for tensor in model.unet.parameters()]
    assert all(any(start <= pointer < end for start, end in held) for pointer in pointers)


def test_encoders_are_let_go_after_use(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[nn.Module]] = []
    made = tiny_models.transformers.CLIPPreTrainedModel.from_pretrained.__func__

    def seen(kind: Any, *args: Any, **kwargs: Any) -> Any:
        answer = made(kind, *args, **kwargs)
        alive.append(weakref.ref(answer[0]))
        return answer

    monkeypatch.setattr(tiny_models.transformers.CLIPPreTrainedModel, "from_pretrained", classmethod(seen))
    sparing = load(tiny_models.folder("sdxl"), memory="free")
    spared = drawn(sparing)
    gc.collect()
    assert len(alive) >= 6, "two towers and the image encoder, once to see that they fit and again for use"
    assert not [each for each in alive if each() is not None]
    assert torch.equal(spared, drawn(tiny_models.model("sdxl")))


def test_layers_wait_outside_of_the_device() -> None:
    """accelerate's sequential offload: between calls nothing of a network is on the device."""
    model = load(tiny_models.folder("sdxl"), memory="offload")
    identity = tiny_models.model("sdxl").weights_fingerprint
    for net in (model.unet, model.vae, *(tower.net for tower in model.text_encoders)):
        assert {tensor.device.type for tensor in net.parameters()} == {"meta"}
    assert torch.equal(drawn(model), drawn(tiny_models.model("sdxl")))
    assert {tensor.device.type for tensor in model.unet.parameters()} == {"meta"}
    assert model.weights_fingerprint == identity


def test_large_pictures_are_decoded_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    model, whole = load(tiny_models.folder("sdxl"), tile=True), tiny_models.model("sdxl")
    sides: list[int] = []
    forward = model.vae.decoder.forward

    def seen(latents: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        sides.append(max(latents.shape[-2:]))
        return forward(latents, *args, **kwargs)

    monkeypatch.setattr(model.vae.decoder, "forward", seen)
    latents = torch.randn(1, 4, 20, 12, generator=torch.Generator().manual_seed(0))
    (tiled,), (expected,) = model.decode_latents(latents), whole.decode_latents(latents)
    assert tiled.size == expected.size == (96, 160)
    assert len(sides) > 4
    assert max(sides) <= model.vae.tile_latent_min_size == 8
    small = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert model.decode_latents(small)[0].tobytes() == whole.decode_latents(small)[0].tobytes(), (
        "what is small is decoded at once"
    )
