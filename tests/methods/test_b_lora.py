"""B-LoRA: fitted where it should be, added once, kept, resumed to the bit, and read back by diffusers."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny_models
from instantstyle.blocks import BlockPlan
from instantstyle.errors import InputError
from instantstyle.families import LoRATraining
from instantstyle.methods import lora_training
from instantstyle.methods.b_lora import attention_weight_sites, b_lora, cached_or_train
from instantstyle.methods.injection import Injection, run_to_end
from instantstyle.methods.lora_training import TrainProgress, attach_lora, on_progress, train_lora
from instantstyle.request import Request, StyleReference
from instantstyle.sampling import Engine, resolve
from instantstyle.train.b_lora import train_b_lora
from instantstyle.weights.lora import LoRADeltas, LoRAFactors

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, with this numpy

FIT = LoRATraining(rank=2, steps=3, learning_rate=1e-2, batch=2)
OPTIONS = {"fit-steps": 3, "fit-rank": 2, "fit-rate": 0.01}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INSTANTSTYLE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "b-lora"


def request(weight: float = 1.0, **fields: Any) -> Request:
    reference = StyleReference(tiny_models.picture(1), weight=weight)
    given: dict[str, Any] = {"method": "b-lora", "references": [reference], "options": OPTIONS, "steps": 2, "seed": 1}
    return Request("a cat", **(given | fields))


def injected(name: str, asked: Request) -> Injection:
    model = tiny_models.model(name)
    return run_to_end(b_lora(model, resolve(model, asked)))


def pixels(name: str, asked: Request) -> Any:
    run = Engine(tiny_models.model(name)).submit(asked)
    for _ in run:
        pass
    return np.asarray(run.result().images[0], np.int16)


@pytest.mark.parametrize("name", ["sdxl", "emoji", "sd15"])
def test_every_family_fits_two_blocks_and_speaks_at_the_style_blocks(name: str) -> None:
    model = tiny_models.model(name)
    before, seen = model.weights_hash(), list[TrainProgress]()
    with on_progress(seen.append):
        injection = injected(name, request())
    assert [each.step for each in seen] == [1, 2, 3]
    assert injection.unet is not None
    site = attention_weight_sites(model)
    changed = {n for n, p in model.unet.named_parameters() if not torch.equal(p, injection.unet.get_parameter(n).data)}
    style = model.family.presets["style"]
    assert changed == {n for n in site if style.scale(site[n])}
    assert model.weights_hash() == before


def test_steps_lower_the_loss_of_what_they_see() -> None:
    model = tiny_models.model("sdxl")
    plan, fitting_ = model.family.b_lora_blocks, LoRATraining(rank=4, steps=4, learning_rate=1e-2, batch=2)
    net, layers = attach_lora(model.unet, plan, 4, 0)
    optimiser = torch.optim.AdamW([p for layer in layers.values() for p in (layer.down, layer.up)], lr=1e-2)
    loss = lora_training._loss(model, net, [tiny_models.picture(1)], plan, fitting_, 0)  # pyright: ignore[reportPrivateUsage]
    seen: list[float] = []
    for _ in range(4):
        value = loss(0)
        value.backward()  # pyright: ignore[reportUnknownMemberType]
        seen.append(float(value.detach()))
        optimiser.step()  # pyright: ignore[reportUnknownMemberType]
        optimiser.zero_grad()
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] < seen[0] - 1e-3


def test_weight_0_is_the_bare_model_and_the_strength_acts_once() -> None:
    model = tiny_models.model("sdxl")
    assert np.array_equal(pixels("sdxl", request(0.0)), pixels("sdxl", Request("a cat", steps=2, seed=1)))
    one, half = (injected("sdxl", request(weight)).unet for weight in (1.0, 0.5))
    assert one is not None
    assert half is not None
    name = next(n for n, site in attention_weight_sites(model).items() if site.module == "up.0.1")
    base, full, part = (net.get_parameter(name).double() for net in (model.unet, one, half))
    torch.testing.assert_close(part - base, 0.5 * (full - base), atol=1e-7, rtol=1e-3)
    assert (full - base).abs().max() > 1e-5


def test_a_fit_is_kept_by_pictures_and_settings(cache: Path) -> None:
    model, seen = tiny_models.model("emoji"), list[TrainProgress]()
    with on_progress(seen.append):
        for _ in range(2):
            run_to_end(cached_or_train(model, [tiny_models.picture(1)], FIT))
        assert len(seen) == 3
        run_to_end(cached_or_train(model, [tiny_models.picture(2)], FIT))
        run_to_end(cached_or_train(model, [tiny_models.picture(1), tiny_models.picture(2)], FIT))
    assert len(seen) == 9
    assert sorted(path.suffix for path in cache.iterdir()) == [".safetensors"] * 3


def test_an_interrupted_fit_goes_on_as_if_it_had_not_been(cache: Path) -> None:
    model, plan = tiny_models.model("emoji"), tiny_models.model("emoji").family.b_lora_blocks
    whole = run_to_end(train_lora(model, [tiny_models.picture(1)], plan, FIT))

    def stop(at: TrainProgress) -> None:
        if at.step == 2:
            raise KeyboardInterrupt

    keep = cache / "one.state"
    with pytest.raises(KeyboardInterrupt), on_progress(stop):
        run_to_end(train_lora(model, [tiny_models.picture(1)], plan, FIT, keep=keep))
    assert keep.is_file()
    seen: list[TrainProgress] = []
    with on_progress(seen.append):
        resumed = run_to_end(train_lora(model, [tiny_models.picture(1)], plan, FIT, keep=keep))
    assert [each.step for each in seen] == [3]
    assert not list(cache.iterdir())
    assert all(torch.equal(one.up, resumed[name].up) for name, one in whole.items())
    assert all(torch.equal(one.down, resumed[name].down) for name, one in whole.items())


def test_thin_matrices_beside_a_weight_are_its_change() -> None:
    model = tiny_models.model("sdxl")
    net, layers = attach_lora(model.unet, BlockPlan({"up.0.1": 1.0}), 3, seed=4)
    assert {id(p) for p in model.unet.parameters()} < {id(p) for p in net.parameters()}
    name, layer = next(iter(layers.items()))
    with torch.no_grad():
        layer.up.normal_()
    x = torch.randn(2, 5, layer.base.in_features)
    weight = layer.base.weight
    delta = LoRADeltas({name: LoRAFactors(layer.up.detach(), layer.down.detach())}, {name: weight.shape}, 1.0)[name]
    torch.testing.assert_close(layer(x), layer.base(x) + x @ delta.T, atol=1e-5, rtol=1e-4)


def test_plans_name_the_fitted_blocks() -> None:
    with pytest.raises(InputError, match=r"trained at .*up\.0\.0.*names mid"):
        injected("sdxl", request(plan="mid=1"))
    with pytest.raises(InputError, match="pushes away"):
        injected("sdxl", request(plan="precise"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", ["style", "both"])
def test_diffusers_reads_what_is_exported(part: Any, tmp_path: Path) -> None:
    model = tiny_models.model("sdxl")
    file = train_b_lora(model, [tiny_models.picture(1)], tmp_path / "style.safetensors", fitting=FIT, part=part)
    diffusers: Any = importlib.import_module("diffusers")
    theirs = diffusers.UNet2DConditionModel.from_pretrained(tiny_models.folder("sdxl") / "unet")
    theirs.load_lora_adapter(str(file.parent), weight_name=file.name, prefix="unet")
    theirs.fuse_lora(lora_scale=1.0)
    theirs.unload_lora()
    factors, site = run_to_end(cached_or_train(model, [tiny_models.picture(1)], FIT)), attention_weight_sites(model)
    for name, weight in theirs.named_parameters():
        expected = model.unet.get_parameter(name)
        if name in factors and (part == "both" or model.family.presets["style"].scale(site[name])):
            expected = expected + LoRADeltas(factors, {name: expected.shape}, 1.0)[name]
        torch.testing.assert_close(weight, expected, atol=1e-6, rtol=1e-5)
