"""Loading, strictly, and what a loaded model says, sees, encodes and decodes: against transformers and diffusers."""

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tiny_models
from instantstyle.blocks import UNetConfig
from instantstyle.errors import InputError, InstantStyleError, WeightsError
from instantstyle.families import EMOJI, SD15, SDXL
from instantstyle.loading import load
from instantstyle.weights.adapter import load_adapter, save_adapter
from instantstyle.weights.resolve import resolve_model
from instantstyle.weights.unet_config import family_of, unet_config

diffusers: Any = importlib.import_module("diffusers")
transformers: Any = importlib.import_module("transformers")
safetensors: Any = importlib.import_module("safetensors.torch")


def copy(name: str, to: Path) -> Path:
    return Path(shutil.copytree(tiny_models.folder(name), to / name))


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a JSON or weight file in place."""
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
    else:
        tensors = safetensors.load_file(path)
        change(tensors)
        safetensors.save_file(tensors, path)


class TestFamilies:
    @pytest.mark.parametrize("name", ["emoji", "sdxl", "sd15"])
    def test_are_told_by_layout(self, name: str) -> None:
        model = tiny_models.model(name)
        assert model.family.name == name
        assert model.family.size == (64, 64)
        assert model.family.unet == model.unet.config

    def test_sdxl_s_own_file_is_our_sdxl(self) -> None:
        """The numbers of stable-diffusion-xl-base-1.0's unet/config.json."""
        config = {
            "act_fn": "silu",
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "attention_head_dim": [5, 10, 20],
            "block_out_channels": [320, 640, 1280],
            "cross_attention_dim": 2048,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "in_channels": 4,
            "layers_per_block": 2,
            "norm_num_groups": 32,
            "out_channels": 4,
            "projection_class_embeddings_input_dim": 2816,
            "transformer_layers_per_block": [1, 2, 10],
            "use_linear_projection": True,
        }
        assert unet_config(config) == UNetConfig()
        assert family_of(config) == SDXL

    def test_sd15_s_own_file_is_our_sd15(self) -> None:
        config = {
            "attention_head_dim": 8,
            "block_out_channels": [320, 640, 1280, 1280],
            "cross_attention_dim": 768,
            "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
            "in_channels": 4,
            "layers_per_block": 2,
            "norm_num_groups": 32,
            "out_channels": 4,
        }
        assert family_of(config) == SD15

    def test_the_built_in_layout_is_told_by_its_latents_and_pooled_text(self) -> None:
        config: dict[str, Any] = json.loads((tiny_models.folder("emoji") / "unet/config.json").read_text())
        assert family_of(config).presets == EMOJI.presets
        assert family_of(config | {"in_channels": 4, "out_channels": 4}).presets == SDXL.presets

    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({"class_embed_type": "timestep"}, "class_embed_type = 'timestep', which is not supported"),
            ({"down_block_types": ["AttnDownBlock2D"] * 3}, "AttnDownBlock2D"),
            ({"block_out_channels": [16, 32]}, "incomplete or not understood"),
            ({"block_out_channels": None}, "incomplete or not understood"),
        ],
    )
    def test_others_are_refused(self, changes: dict[str, Any], sentence: str) -> None:
        config: dict[str, Any] = json.loads((tiny_models.folder("sdxl") / "unet/config.json").read_text())
        with pytest.raises(WeightsError, match=sentence):
            family_of(config | changes)


Change = Callable[[dict[str, Any]], Any]
CHANGES: list[tuple[Change, str]] = [
    (lambda t: t.pop("conv_out.bias"), r"unet.*1 missing \(conv_out.bias\)"),
    (lambda t: t.update(lora=torch.zeros(1)), r"1 not known \(lora\)"),
    (lambda t: t.update({"conv_out.bias": torch.zeros(7)}), r"conv_out.bias \[7\] instead of \[4\]"),
    (lambda t: t["conv_out.bias"].fill_(float("nan")), r"conv_out.bias.*NaN"),
]


class TestStrictness:
    """A missing, extra or mis-shaped key is an error that names it."""

    @pytest.mark.parametrize(("change", "sentence"), CHANGES)
    def test_of_the_unet(self, tmp_path: Path, change: Change, sentence: str) -> None:
        folder = copy("sdxl", tmp_path)
        rewrite(folder / "unet/diffusion_pytorch_model.safetensors", change)
        with pytest.raises(WeightsError, match=sentence):
            load(folder)

    @pytest.mark.parametrize(
        ("part", "key"),
        [
            ("vae", "decoder.conv_in.bias"),
            ("text_encoder_2", "text_projection.weight"),
            ("image_encoder", "visual_projection.weight"),
        ],
    )
    @pytest.mark.parametrize("how", ["missing", "extra"])
    def test_of_what_is_borrowed(self, tmp_path: Path, part: str, key: str, how: str) -> None:
        folder = copy("sdxl", tmp_path)
        (file,) = (folder / part).glob("*.safetensors")
        name = key if how == "missing" else "stray.weight"
        rewrite(file, lambda t: t.pop(key) if how == "missing" else t.update({name: torch.zeros(2)}))
        with pytest.raises(WeightsError, match=f"{part}.*{name}"):
            load(folder)

    @pytest.mark.parametrize(
        ("part", "key", "bad"),
        [
            ("vae", "decoder.conv_out.weight", float("nan")),
            ("text_encoder", "final_layer_norm.bias", float("inf")),
            ("image_encoder", "visual_projection.weight", float("nan")),
        ],
    )
    def test_of_numbers_that_are_none(self, tmp_path: Path, part: str, key: str, bad: float) -> None:
        """Such weights would end in a black picture, much later."""
        folder = copy("sdxl", tmp_path)
        (file,) = (folder / part).glob("*.safetensors")
        rewrite(file, lambda t: next(t[name] for name in t if name.endswith(key))[:1].fill_(bad))
        with pytest.raises(WeightsError, match=f"{key} in .*{part} holds NaN or infinity"):
            load(folder)

    def test_of_text_encoders_of_another_model(self, tmp_path: Path) -> None:
        folder = copy("sdxl", tmp_path)
        shutil.rmtree(folder / "text_encoder_2")
        with pytest.raises(WeightsError, match="16 numbers a token, and the UNet reads 32"):
            load(folder)

    def test_of_an_image_encoder_of_another_adapter(self, tmp_path: Path) -> None:
        folder = copy("sdxl", tmp_path)
        shutil.rmtree(folder / "image_encoder")
        shutil.copytree(tiny_models.folder("emoji") / "image_encoder", folder / "image_encoder")
        with pytest.raises(WeightsError, match=r"24 wide.*gives 192 wide"):
            load(folder)

    @pytest.mark.parametrize("missing", ["unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"])
    def test_of_files(self, tmp_path: Path, missing: str) -> None:
        folder = copy("sdxl", tmp_path)
        (folder / missing).unlink()
        with pytest.raises(WeightsError, match=missing):
            load(folder)

    def test_a_broken_configuration_is_a_sentence(self, tmp_path: Path) -> None:
        folder = copy("sdxl", tmp_path)
        (folder / "unet/config.json").write_text("{")
        with pytest.raises(WeightsError, match="cannot read"):
            load(folder)


class TestFinding:
    @pytest.mark.parametrize("name", ["no-such-model", "./nowhere", "/nowhere/at/all", "sdxxl"])
    def test_what_is_not_there_is_a_sentence(self, name: str) -> None:
        with pytest.raises(WeightsError, match="there is no model"):
            resolve_model(name)

    def test_a_folder_that_is_no_model(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match=r"no unet/config\.json"):
            resolve_model(tmp_path)

    def test_a_file_that_is_none_is_a_sentence(self, tmp_path: Path) -> None:
        (tmp_path / "x.safetensors").write_bytes(b"0")
        with pytest.raises(WeightsError, match="no weight file at all"):
            resolve_model(tmp_path / "x.safetensors")

    def test_an_adapter_that_is_not_there(self) -> None:
        with pytest.raises(WeightsError, match="no adapter file"):
            resolve_model(tiny_models.folder("sdxl"), "nowhere.safetensors")

    def test_an_adapter_of_one_s_own(self, tmp_path: Path) -> None:
        other = tmp_path / "mine.safetensors"
        shutil.copy(tiny_models.folder("sdxl") / "ip_adapter.safetensors", other)
        found = resolve_model(tiny_models.folder("sdxl"), other)
        assert (found.adapter, found.adapter_spec) == (other, str(other))
        assert resolve_model(tiny_models.folder("sdxl")).adapter_spec is None


def test_a_model_without_adapter_still_draws_but_takes_no_style(tmp_path: Path) -> None:
    folder = copy("emoji", tmp_path)
    (folder / "ip_adapter.safetensors").unlink()
    model = load(folder)
    with pytest.raises(InputError, match="no IP-Adapter"):
        model.get_adapter()


@pytest.mark.parametrize("name", ["cpu:9", "tpu", "cuda"] if not torch.cuda.is_available() else ["tpu"])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(InputError, match="device"):
        load(tiny_models.folder("emoji"), device=name)


def test_a_dtype_that_is_not_there() -> None:
    with pytest.raises(InputError, match="did you mean 'float32'"):
        load(tiny_models.folder("emoji"), dtype="flot32")


def test_half_precision_is_half_throughout() -> None:
    model = load(tiny_models.folder("emoji"), dtype="bfloat16")
    assert {t.dtype for net in model.networks.values() for t in net.parameters()} == {torch.bfloat16}
    assert load(tiny_models.folder("emoji"), dtype="float16").vae.dtype == torch.float32  # SDXL's overflows


def test_it_says_what_diffusers_says() -> None:
    model = tiny_models.model("sdxl")
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(tiny_models.folder("sdxl"))
    with torch.no_grad():
        context, empty, pooled, _ = pipe.encode_prompt("a red house", negative_prompt="a dog")
    said = model.encode_prompt(["a dog", "a red house"])
    torch.testing.assert_close(said.prompt_embeds, torch.cat([empty, context]))
    assert said.pooled_prompt_embeds is not None
    torch.testing.assert_close(said.pooled_prompt_embeds[1:], pooled)
    torch.testing.assert_close(
        model.encode_prompt(["word"] * 70).prompt_embeds[69], model.encode_prompt(["word"]).prompt_embeds[0]
    )


def test_it_sees_what_transformers_sees() -> None:
    model = tiny_models.model("sdxl")
    processor = transformers.CLIPImageProcessorPil.from_pretrained(tiny_models.folder("sdxl") / "feature_extractor")
    net = transformers.CLIPVisionModelWithProjection.from_pretrained(tiny_models.folder("sdxl") / "image_encoder")
    square, wide = tiny_models.picture(3), tiny_models.picture(4).resize((96, 48))
    with torch.no_grad():
        expected = net(processor([square, wide], return_tensors="pt").pixel_values)
    torch.testing.assert_close(model.encode_image([square]), expected.image_embeds[:1], atol=1e-4, rtol=1e-4)
    # Cropped, a wide picture is what CLIP's own preprocessing makes of it, but for the rounding of its resize.
    close = torch.nn.functional.cosine_similarity(model.encode_image([wide], "crop"), expected.image_embeds[1:])
    assert float(close) > 0.99


def test_the_ways_of_making_square_differ() -> None:
    model, wide = tiny_models.model("sdxl"), tiny_models.picture(4).resize((96, 48))
    crop, pad, squash = (model.encode_image([wide], how) for how in ("crop", "pad", "squash"))
    assert not torch.allclose(crop, pad)
    assert not torch.allclose(pad, squash)


@pytest.mark.parametrize("name", ["emoji", "sdxl"])
def test_it_encodes_and_decodes_as_diffusers(name: str) -> None:
    model = tiny_models.model(name)
    vae = diffusers.AutoencoderKL.from_pretrained(tiny_models.folder(name) / "vae")
    processor = diffusers.image_processor.VaeImageProcessor(vae_scale_factor=8)
    picture = tiny_models.picture(5, side=64)
    with torch.no_grad():
        latents = vae.encode(processor.preprocess(picture)).latent_dist.mean * vae.config.scaling_factor
        decoded = processor.postprocess(vae.decode(latents / vae.config.scaling_factor).sample)[0]
    torch.testing.assert_close(model.encode_latents(picture), latents)
    assert np.abs(np.asarray(model.decode_latents(latents)[0], int) - np.asarray(decoded, int)).max() <= 1


def test_one_identity_for_the_same_weights() -> None:
    assert load(tiny_models.folder("sd15")).weights_fingerprint == tiny_models.model("sd15").weights_fingerprint
    assert tiny_models.model("sdxl").weights_fingerprint != tiny_models.model("emoji").weights_fingerprint


def test_errors_are_of_one_tree() -> None:
    assert issubclass(WeightsError, InstantStyleError)


def test_importing_the_package_imports_no_torch_and_generate_stays_a_function() -> None:
    program = (
        "import sys, instantstyle as ist\n"
        "ist.Request('a cat')\n"
        "assert 'torch' not in sys.modules and 'diffusers' not in sys.modules\n"
        "import instantstyle.pipeline\n"
        "from instantstyle.pipeline import generate\n"
        "assert ist.generate is generate\n"
        "assert ist.__all__ == sorted(ist.__all__, key=str) and all(hasattr(ist, name) for name in ist.__all__)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_pictures_need_not_be_rgb() -> None:
    grey = Image.new("L", (64, 64), 128)
    assert tiny_models.model("emoji").encode_latents(grey).shape == (1, 32, 8, 8)


def test_a_narrow_adapter_speaks_where_it_can_and_only_there(tmp_path: Path) -> None:
    """A folder may bring a second adapter for the style blocks; plans beyond them go through the full one."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_models.folder("emoji"), folder)
    full = load(folder)
    style = full.family.presets["style"]
    narrow = load_adapter(folder / "ip_adapter.safetensors", full.family.unet, plan=style)
    save_adapter(folder / "ip_adapter_style.safetensors", narrow, full.family.unet)
    both = load(folder)
    assert both.style_adapter is not None
    assert both.get_adapter(style) is both.style_adapter
    assert both.get_adapter(style.scaled(0.5)) is both.style_adapter
    for plan in ("all", "layout", "style+layout", "precise"):
        assert both.get_adapter(both.family.presets[plan]) is both.adapter, plan
    assert both.weights_fingerprint != full.weights_fingerprint, "what can draw is part of who the model is"
    asked = load(folder, adapter=folder / "ip_adapter.safetensors")
    assert asked.style_adapter is None, "an adapter that was asked for is the only one"
