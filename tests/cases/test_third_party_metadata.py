"""Requests read from other programs' pictures: recognised or refused, and what is dropped is named."""

import json
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner

from instantstyle.cli import app
from instantstyle.errors import PictureError
from instantstyle.request import Request, Result
from instantstyle.request.third_party_metadata import read_third_party_request

A1111 = """a cat, (masterpiece:1.2),
sitting in a house
Negative prompt: blurry, text
Steps: 25, Sampler: DPM++ 2M Karras, CFG scale: 6.5, Seed: 1234567890, Size: 512x768, Model hash: 31e35c80fc, \
Model: sd_xl_base_1.0, Denoising strength: 0.7, Lora hashes: "one: aa11, two: bb22", Version: v1.9.3"""

COMFY: dict[str, Any] = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 8566257,
            "steps": 20,
            "cfg": 8,
            "sampler_name": "euler",
            "scheduler": "karras",
            "denoise": 1,
            "model": ["10", 0],
            "positive": ["6", 0],
            "negative": ["7", 0],
            "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "dreamshaper_8.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 640, "batch_size": 2}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a glass bottle", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "watermark", "clip": ["4", 1]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "ComfyUI", "images": ["8", 0]}},
    "10": {"class_type": "LoraLoader", "inputs": {"lora_name": "x.safetensors", "model": ["4", 0], "clip": ["4", 1]}},
}
INVOKE: dict[str, Any] = {
    "app_version": "4.2.8",
    "generation_mode": "sdxl_txt2img",
    "positive_prompt": "a red house",
    "negative_prompt": "people",
    "width": 1024,
    "height": 832,
    "seed": 42,
    "rand_device": "cpu",
    "cfg_scale": 7.5,
    "steps": 30,
    "scheduler": "euler_a",
    "model": {"key": "k", "hash": "h", "name": "stable-diffusion-xl-base-1-0", "base": "sdxl", "type": "main"},
    "loras": [{"model": {"name": "ink"}, "weight": 0.75}],
}


def picture(path: Path, **texts: str) -> Path:
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def test_a1111(tmp_path: Path) -> None:
    read = read_third_party_request(picture(tmp_path / "a.png", parameters=A1111))
    request = read.request
    assert (read.program, read.model) == ("A1111", "sd_xl_base_1.0")
    assert request.prompt == "a cat, (masterpiece:1.2),\nsitting in a house"
    assert (request.negative, request.steps, request.guidance) == ("blurry, text", 25, 6.5)
    assert (request.seed, request.size, request.sampler) == (1234567890, (512, 768), "dpm++")
    assert read.unsupported == (
        "Denoising strength 0.7",
        "Lora hashes one: aa11, two: bb22",
        "scheduler karras",
    )


def test_a1111_without_negative_or_values(tmp_path: Path) -> None:
    assert read_third_party_request(picture(tmp_path / "a.png", parameters="a cat: a dog")).request == Request(
        "a cat: a dog"
    )


def test_comfyui(tmp_path: Path) -> None:
    read = read_third_party_request(picture(tmp_path / "a.png", prompt=json.dumps(COMFY), workflow="{}"))
    request = read.request
    assert (read.program, read.model) == ("ComfyUI", "dreamshaper_8.safetensors")
    assert (request.prompt, request.negative) == ("a glass bottle", "watermark")
    assert (request.steps, request.guidance, request.seed, request.sampler) == (20, 8.0, 8566257, "euler")
    assert (request.size, request.count) == ((512, 640), 2)
    assert read.unsupported == ("node LoraLoader", "scheduler karras")


def test_invokeai(tmp_path: Path) -> None:
    read = read_third_party_request(picture(tmp_path / "a.png", invokeai_metadata=json.dumps(INVOKE)))
    request = read.request
    assert (read.program, read.model) == ("InvokeAI", "stable-diffusion-xl-base-1-0")
    assert (request.prompt, request.negative, request.seed) == ("a red house", "people", 42)
    assert (request.steps, request.guidance, request.size, request.sampler) == (30, 7.5, (1024, 832), None)
    assert read.unsupported == ("sampler euler_a", "LoRA")


def test_ours(tmp_path: Path) -> None:
    asked = Request("a cat", seed=3, plan="layout")
    Result([Image.new("RGB", (8, 8))], asked, model="emoji").save(tmp_path / "a.png")
    assert read_third_party_request(tmp_path / "a.png").request == asked


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        ({}, "does not say how it was made"),
        ({"prompt": "{"}, "cannot be read as a request"),
        ({"prompt": "[]"}, "cannot be read as a request"),
        ({"prompt": json.dumps({"1": {"class_type": "SaveImage", "inputs": {}}})}, "no KSampler"),
        ({"invokeai_metadata": '{"positive_prompt": "a", "steps": -1}'}, "steps must be at least 1"),
        ({"invokeai_metadata": "[1]"}, "cannot be read as a request"),
    ],
)
def test_what_cannot_be_read_is_a_sentence(texts: dict[str, str], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=sentence):
        read_third_party_request(picture(tmp_path / "a.png", **texts))


def test_a_graph_that_bites_its_tail_ends(tmp_path: Path) -> None:
    ring = {**COMFY, "6": {"class_type": "X", "inputs": {"a": ["6", 0], "b": ["6", 0]}}}
    assert read_third_party_request(picture(tmp_path / "a.png", prompt=json.dumps(ring))).request.prompt == ""


def test_the_command_prints_a_request(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", parameters=A1111)
    outcome = CliRunner().invoke(app, ["again", str(path), "--as-request"])
    assert outcome.exit_code == 0
    assert Request.from_json(outcome.stdout).steps == 25
    assert "left out" in outcome.stderr
    assert "with the model sd_xl_base_1.0" in outcome.stderr


LINE = "Steps: 20, Sampler: Euler, CFG scale: 7, Seed: 5, Size: 512x512"
FLUX: dict[str, Any] = {
    "1": {
        "class_type": "SamplerCustomAdvanced",
        "inputs": {
            "noise": ["2", 0],
            "guider": ["3", 0],
            "sampler": ["4", 0],
            "sigmas": ["5", 0],
            "latent_image": ["6", 0],
        },
    },
    "2": {"class_type": "RandomNoise", "inputs": {"noise_seed": 77}},
    "3": {"class_type": "BasicGuider", "inputs": {"model": ["7", 0], "conditioning": ["8", 0]}},
    "4": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
    "5": {
        "class_type": "BasicScheduler",
        "inputs": {"scheduler": "simple", "steps": 4, "denoise": 1, "model": ["7", 0]},
    },
    "6": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 1024, "height": 768, "batch_size": 1}},
    "7": {"class_type": "UNETLoader", "inputs": {"unet_name": "flux1-schnell.safetensors"}},
    "8": {"class_type": "CLIPTextEncodeFlux", "inputs": {"t5xxl": "a fox in snow", "clip_l": "fox", "guidance": 3.5}},
}


def with_sampler(**inputs: Any) -> dict[str, Any]:
    """COMFY with other inputs of its sampler."""
    return {**COMFY, "3": {"class_type": "KSampler", "inputs": {**COMFY["3"]["inputs"], **inputs}}}


PROGRAMS: dict[str, tuple[dict[str, str], str, dict[str, Any], tuple[str, ...]]] = {
    # program and kind: the texts, the program that is found, fields of the request, what is named
    "Fooocus": (
        {"parameters": json.dumps({"prompt": "a fox", "steps": 30, "seed": "9"})},
        "Fooocus",
        {"prompt": "a fox", "steps": 30, "seed": 9},
        (),
    ),
    "Fooocus, all of it": (
        {
            "fooocus_scheme": "fooocus",
            "parameters": json.dumps(
                {
                    "prompt": "a fox",
                    "negative_prompt": "blurry",
                    "styles": "['Fooocus V2']",
                    "performance": "Speed",
                    "resolution": "(1152, 896)",
                    "guidance_scale": 4,
                    "sharpness": 2,
                    "sampler": "dpmpp_2m_sde_gpu",
                    "scheduler": "karras",
                    "base_model": "juggernautXL",
                    "refiner_model": "None",
                    "loras": [["ink.safetensors", 0.5, "aa11"]],
                    "version": "Fooocus v2.5.0",
                }
            ),
        },
        "Fooocus",
        {"negative": "blurry", "guidance": 4, "size": (1152, 896), "sampler": None},
        (
            "sampler dpmpp_2m_sde_gpu",
            "styles ['Fooocus V2']",
            "performance Speed",
            "sharpness 2",
            'loras [["ink.safetensors", 0.5, "aa11"]]',
            "scheduler karras",
        ),
    ),
    "SwarmUI": (
        {
            "parameters": json.dumps(
                {
                    "sui_image_params": {
                        "prompt": "a fox <lora:ink:0.7>",
                        "negativeprompt": "text",
                        "model": "sdxl",
                        "seed": 5,
                        "steps": 20,
                        "cfgscale": 6.5,
                        "width": 832,
                        "height": 1216,
                        "sampler": "euler",
                        "refinerupscale": 1.5,
                    },
                    "sui_extra_data": {"date": "2025-01-01"},
                }
            )
        },
        "SwarmUI",
        {"prompt": "a fox", "negative": "text", "seed": 5, "guidance": 6.5, "size": (832, 1216), "sampler": "euler"},
        ("LoRA ink 0.7", "refinerupscale 1.5"),
    ),
    "NovelAI": (
        {
            "Software": "NovelAI",
            "Description": "{fox}, ink",
            "Comment": json.dumps(
                {
                    "steps": 28,
                    "sampler": "k_euler",
                    "seed": 9,
                    "scale": 5.0,
                    "uc": "lowres",
                    "width": 832,
                    "height": 1216,
                }
            ),
        },
        "NovelAI",
        {"prompt": "{fox}, ink", "negative": "lowres", "steps": 28, "sampler": "euler", "reading": "plain"},
        ("emphasis {fox}",),
    ),
    "Draw Things": (
        {
            "xmp:UserComment": json.dumps(
                {"c": "a fox", "uc": "text", "seed": 3, "steps": 8, "scale": 4, "size": "512x768"}
            )
        },
        "Draw Things",
        {"prompt": "a fox", "negative": "text", "seed": 3, "size": (512, 768)},
        (),
    ),
    "Easy Diffusion": (
        {
            "prompt": "a fox",
            "negative_prompt": "text",
            "seed": "4",
            "num_inference_steps": "25",
            "guidance_scale": "7.5",
            "width": "512",
            "height": "640",
            "sampler_name": "euler_a",
            "use_face_correction": "GFPGANv1.4",
        },
        "Easy Diffusion",
        {"prompt": "a fox", "steps": 25, "guidance": 7.5, "size": (512, 640)},
        ("sampler euler_a", "use_face_correction GFPGANv1.4"),
    ),
    "InvokeAI 2": (
        {
            "sd-metadata": json.dumps(
                {
                    "model_weights": "sd-1.5",
                    "image": {
                        "prompt": [{"prompt": "a fox [text]", "weight": 1}],
                        "steps": 50,
                        "cfg_scale": 7.5,
                        "seed": 11,
                        "width": 512,
                        "height": 512,
                        "sampler": "ddim",
                        "threshold": 2,
                    },
                }
            )
        },
        "InvokeAI",
        {"prompt": "a fox", "negative": "text", "seed": 11, "sampler": "ddim"},
        ("threshold 2",),
    ),
    "InvokeAI's rescaling": (
        {"invokeai_metadata": json.dumps({**INVOKE, "cfg_rescale_multiplier": 0.5, "strength": 0.4, "loras": []})},
        "InvokeAI",
        {"guidance_rescale": 0.5},
        ("sampler euler_a", "strength 0.4"),
    ),
    "Dynamic Prompts": (
        {"parameters": f"a fox\nNegative prompt: blurry\n{LINE}\nTemplate: a __animal__\nNegative Template: blurry"},
        "A1111",
        {"prompt": "a fox", "negative": "blurry", "seed": 5, "steps": 20, "size": (512, 512)},
        ("Template a __animal__", "Negative Template blurry"),
    ),
    "LoRA and weights": (
        {"parameters": f"a (fox:1.3) <lora:ink:0.8>\n{LINE}"},
        "A1111",
        {"prompt": "a (fox:1.3)", "reading": "weighted"},
        ("LoRA ink 0.8",),
    ),
    "escapes, editing and composition": (
        {"parameters": f"fox \\(ink\\) AND a [cat:dog:0.5] __colour__\nNegative prompt: (text:1.2)\n{LINE}"},
        "A1111",
        {"prompt": "fox \\(ink\\) AND a [cat:dog:0.5] __colour__", "negative": "(text:1.2)", "reading": "weighted"},
        ("prompt editing [cat:dog:0.5]", "keyword AND", "wildcard __colour__"),
    ),
    "Karras in a name": (
        {"parameters": "a fox\nSteps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 5, Size: 512x512"},
        "A1111",
        {"sampler": "dpm++"},
        ("scheduler karras",),
    ),
    "Karras of its own": (
        {"parameters": "a fox\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, Seed: 5"},
        "A1111",
        {"sampler": "dpm++", "seed": 5},
        ("scheduler Karras",),
    ),
    "a sampler of theirs": (
        {"parameters": "a fox\nSteps: 20, Sampler: DPM++ 2M SDE Karras, Seed: 5"},
        "A1111",
        {"sampler": None},
        ("sampler DPM++ 2M SDE Karras", "scheduler karras"),
    ),
    "clip skip": (
        {"parameters": "a fox\nSteps: 20, Seed: 5, Clip skip: 2"},
        "A1111",
        {"clip_skip": 2, "seed": 5},
        (),
    ),
    "a seed that is none of ours": (
        {"parameters": "a fox\nSteps: 20, Seed: -1"},
        "A1111",
        {"seed": None},
        ("seed -1",),
    ),
    "a seed of 64 bits": (
        {"prompt": json.dumps(with_sampler(seed=2**64 - 1))},
        "ComfyUI",
        {"seed": None, "steps": 20},
        (f"seed {2**64 - 1}",),
    ),
    "ComfyUI's SDXL node": (
        {
            "prompt": json.dumps(
                {**COMFY, "6": {"class_type": "CLIPTextEncodeSDXL", "inputs": {"text_g": "ink", "text_l": "a fox"}}}
            )
        },
        "ComfyUI",
        {"prompt": "ink", "negative": "watermark"},
        ("text_l a fox",),
    ),
    "ComfyUI, linked numbers and texts": (
        {
            "prompt": json.dumps(
                {
                    **with_sampler(steps=["20", 0], seed=["21", 0], cfg=["22", 0]),
                    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ["23", 0], "clip": ["4", 1]}},
                    "20": {"class_type": "PrimitiveInt", "inputs": {"value": 12}},
                    "21": {"class_type": "Seed (rgthree)", "inputs": {"seed": 99}},
                    "22": {"class_type": "MathExpression", "inputs": {"a": 3, "b": 4}},
                    "23": {"class_type": "PrimitiveString", "inputs": {"value": "a fox"}},
                }
            )
        },
        "ComfyUI",
        {"prompt": "a fox", "steps": 12, "seed": 99, "guidance": None},
        ("node MathExpression", "cfg of node MathExpression 22"),
    ),
    "ComfyUI, a second pass": (
        {
            "prompt": json.dumps(
                {
                    "1": {
                        "class_type": "KSampler",
                        "inputs": {"seed": 1, "steps": 5, "denoise": 0.5, "latent_image": ["3", 0]},
                    },
                    **COMFY,
                }
            )
        },
        "ComfyUI",
        {"seed": 8566257, "steps": 20},
        ("node KSampler 1",),
    ),
    "ComfyUI from a picture": (
        {"prompt": json.dumps(with_sampler(denoise=0.6))},
        "ComfyUI",
        {"steps": 20},
        ("denoise 0.6",),
    ),
    "ComfyUI with Flux": (
        {"prompt": json.dumps(FLUX)},
        "ComfyUI",
        {"prompt": "a fox in snow", "seed": 77, "steps": 4, "size": (1024, 768), "sampler": "euler"},
        ("clip_l fox", "scheduler simple"),
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_are_recognised_and_what_is_dropped_is_named(name: str, tmp_path: Path) -> None:
    texts, program, fields, named = PROGRAMS[name]
    path = tmp_path / "a.png"
    if "xmp:UserComment" in texts:
        Image.new("RGB", (8, 8)).save(path, "JPEG", xmp=xmp(texts["xmp:UserComment"]))
    else:
        picture(path, **texts)
    read = read_third_party_request(path)
    assert read.program == program
    assert {field: getattr(read.request, field) for field in fields} == fields
    assert set(named) <= set(read.unsupported), read.unsupported


def xmp(text: str) -> bytes:
    """An XMP packet with an EXIF comment in it."""
    return (
        '<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
        'xmlns:exif="http://ns.adobe.com/exif/1.0/"><exif:UserComment><rdf:Alt><rdf:li xml:lang="x-default">'
        f"{escape(text)}</rdf:li></rdf:Alt></exif:UserComment></rdf:Description></rdf:RDF></x:xmpmeta>"
        '<?xpacket end="w"?>'
    ).encode()


def exif(comment: bytes, *, inside: bool = True) -> bytes:
    """EXIF data with a UserComment, in the EXIF folder where it belongs, or in the first."""
    data = Image.Exif()
    if inside:
        data.get_ifd(0x8769)[0x9286] = comment
    else:
        data[0x9286] = comment
    return data.tobytes()


TEXT = f"a fox, 狐\nNegative prompt: blurry\n{LINE}"
PLACES: dict[str, tuple[str, dict[str, Any]]] = {
    "UTF-16 as the standard has it": ("JPEG", {"exif": exif(b"UNICODE\0" + TEXT.encode("utf-16-be"))}),
    "UTF-16 as Windows writes it": ("JPEG", {"exif": exif(b"UNICODE\0" + TEXT.encode("utf-16-le"))}),
    "ASCII that is UTF-8": ("JPEG", {"exif": exif(b"ASCII\0\0\0" + TEXT.encode())}),
    "no character code": ("WEBP", {"exif": exif(bytes(8) + TEXT.encode())}),
    "WebP": ("WEBP", {"exif": exif(b"UNICODE\0" + TEXT.encode("utf-16-be"))}),
    "AVIF": ("AVIF", {"exif": exif(b"UNICODE\0" + TEXT.encode("utf-16-be"))}),
    "PNG's EXIF": ("PNG", {"exif": exif(b"UNICODE\0" + TEXT.encode("utf-16-be"))}),
    "the first folder": ("JPEG", {"exif": exif(TEXT.encode(), inside=False)}),
    "XMP in JPEG": ("JPEG", {"xmp": xmp(TEXT)}),
    "XMP in WebP": ("WEBP", {"xmp": xmp(TEXT)}),
    "JPEG's comment": ("JPEG", {"comment": TEXT.encode()}),
    "GIF's comment": ("GIF", {"comment": TEXT.encode()}),
}


@pytest.mark.parametrize("name", PLACES)
def test_every_place_is_read(name: str, tmp_path: Path) -> None:
    kind, where = PLACES[name]
    path = tmp_path / "a.picture"
    Image.new("RGB", (8, 8)).save(path, kind, **where)
    read = read_third_party_request(path)
    assert (read.program, read.request.prompt, read.request.negative) == ("A1111", "a fox, 狐", "blurry")
    assert (read.request.seed, read.unsupported) == (5, ())


@pytest.mark.parametrize("how", ["tEXt", "zTXt", "iTXt", "compressed iTXt"])
def test_every_chunk_of_png_is_read(how: str, tmp_path: Path) -> None:
    info = PngInfo()
    if how.endswith("iTXt"):
        info.add_itxt("parameters", TEXT, zip=how != "iTXt")
    else:
        info.add_text("parameters", TEXT.replace("狐", "é"), zip=how == "zTXt")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    assert read_third_party_request(tmp_path / "a.png").request.seed == 5


def test_comfyui_in_webps_exif(tmp_path: Path) -> None:
    data = Image.Exif()
    data[0x010F], data[0x0110] = "workflow:{}", "prompt:" + json.dumps(COMFY)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.webp", exif=data)
    read = read_third_party_request(tmp_path / "a.webp")
    assert (read.program, read.request.prompt) == ("ComfyUI", "a glass bottle")


@pytest.mark.parametrize(
    "texts",
    [
        {"parameters": json.dumps({"text": "a fox", "engine": "x"})},
        {"parameters": json.dumps({"prompt": "a fox", "engine": "x"})},
        {"parameters": "[1, 2]"},
        {"prompt": json.dumps({"nodes": [], "links": []})},
        {"Description": "a fox --ar 16:9 --v 6 Job ID: 1"},
        {"Title": "holiday", "Comment": "{not json"},
        {"workflow": json.dumps({"nodes": []})},
        {"Comment": json.dumps({"camera": "X100", "iso": 200})},
    ],
)
def test_what_no_program_wrote_is_refused(texts: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"cannot be read as a request|does not say how it was made"):
        read_third_party_request(picture(tmp_path / "a.png", **texts))


def test_a_prompt_alone_says_that_the_rest_is_missing(tmp_path: Path) -> None:
    read = read_third_party_request(picture(tmp_path / "a.png", parameters="a fox"))
    assert read.unsupported == ("all but the prompt, for there is no line of values",)


def test_damaged_exif_and_swelling_xmp_are_left_out(tmp_path: Path) -> None:
    bomb = b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><x:xmpmeta xmlns:x="adobe:ns:meta/">&b;</x:xmpmeta>'
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", xmp=bomb, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\xff\x92\x86")
    with pytest.raises(PictureError, match="does not say how it was made"):
        read_third_party_request(tmp_path / "a.jpg")
