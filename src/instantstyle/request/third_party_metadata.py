"""What pictures of A1111, ComfyUI and InvokeAI say of how they were made, as a request of ours, as far as it goes.

Prompts, seeds, steps, guidance, sizes and samplers have a counterpart here; the rest is named and left out.  The same
numbers do not give the same picture: other programs draw their noise elsewhere and weight their prompts otherwise.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from instantstyle.errors import InputError, PictureError
from instantstyle.request import Request, recall
from instantstyle.utils.images import METADATA_KEY, read_text_chunks

SAMPLER_NAMES: Mapping[str, str] = {
    "euler": "euler",
    "ddim": "ddim",
    "dpm++ 2m": "dpm++",
    "dpm++ 2m karras": "dpm++",
    "dpmpp_2m": "dpm++",
    "dpmpp_2m_k": "dpm++",
    "unipc": "unipc",
    "uni_pc": "unipc",
}
"""Names that other programs have for samplers of ours."""


@dataclass(frozen=True)
class ThirdPartyMetadata:
    """A picture's own account of itself."""

    request: Request
    program: str
    model: str | None
    """What the program called its model: a file's name, which a model tree may know."""
    unsupported: tuple[str, ...]
    """What was said and has no counterpart here."""


def read_third_party_request(path: str | Path) -> ThirdPartyMetadata:
    """The request in a picture's metadata, ours or another program's.  Raises PictureError when there is none."""
    texts = read_text_chunks(path)
    if METADATA_KEY in texts:
        memory = recall(path)
        return ThirdPartyMetadata(memory.request, "instantstyle", memory.model or None, ())
    readers = {"prompt": _comfy, "invokeai_metadata": _invoke, "parameters": _a1111}
    for chunk, reader in readers.items():
        if chunk in texts:
            try:
                return reader(texts[chunk])
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError, InputError) as e:
                raise PictureError(f"the {chunk!r} text in {str(path)!r} cannot be read as a request: {e}") from None
    raise PictureError(
        f"{str(path)!r} does not say how it was made: it has no text of instantstyle, A1111, ComfyUI or InvokeAI"
    )


def _made(
    program: str, fields: Mapping[str, Any], model: object, sampler: object, left_out: list[str]
) -> ThirdPartyMetadata:
    known = SAMPLER_NAMES.get(str(sampler).lower()) if sampler else None
    if sampler and known is None:
        left_out = [f"sampler {sampler}", *left_out]
    given: dict[str, Any] = {name: value for name, value in {**fields, "sampler": known}.items() if value is not None}
    return ThirdPartyMetadata(Request(**given), program, str(model) if model else None, tuple(left_out))


_PAIR = re.compile(r'\s*(?P<name>[\w ()/+.-]+?):\s*(?P<value>"(?:\\.|[^"\\])*"|[^,]*)(?:,|$)')


def _a1111(text: str) -> ThirdPartyMetadata:
    """`prompt`, then `Negative prompt: ...`, each of any number of lines, then a line of names and values."""
    lines = text.strip().split("\n")
    has_values = bool(re.search(r"(^|, )Steps: \d+", lines[-1]))
    values = {m["name"].strip(): m["value"].strip('"') for m in _PAIR.finditer(lines[-1])} if has_values else {}
    words = "\n".join(lines[:-1] if has_values else lines)
    prompt, _, negative = ("\n" + words).partition("\nNegative prompt:")
    width, _, height = values.pop("Size", "").partition("x")
    fields: dict[str, Any] = {
        "prompt": prompt.strip(),
        "negative": negative.strip(),
        "steps": int(values.pop("Steps")) if "Steps" in values else None,
        "guidance": float(values.pop("CFG scale")) if "CFG scale" in values else None,
        "seed": int(values.pop("Seed")) if "Seed" in values else None,
        "size": (int(width), int(height)) if height else None,
    }
    model, sampler = values.pop("Model", None), values.pop("Sampler", None)
    kept = [f"{name} {value}" for name, value in values.items() if name not in ("Version", "Model hash")]
    return _made("A1111", fields, model, sampler, kept)


def _comfy(text: str) -> ThirdPartyMetadata:
    """The graph that was run: the sampler node, and what it is wired to."""
    nodes = cast("Mapping[str, Mapping[str, Any]]", json.loads(text, parse_constant=lambda _: None))
    kinds = {key: str(node["class_type"]) for key, node in nodes.items()}
    key = next((key for key, kind in kinds.items() if kind in ("KSampler", "KSamplerAdvanced")), None)
    if key is None:
        raise PictureError("its graph has no KSampler")
    inputs = cast("Mapping[str, Any]", nodes[key]["inputs"])

    def wired(value: object, wanted: str) -> Mapping[str, Any]:
        """The inputs of the nearest node upstream that has an input of a name; each node is looked at once."""
        ahead, seen = [value], set[str]()
        while ahead:
            link = ahead.pop(0)
            at = str(cast("list[Any]", link)[0]) if isinstance(link, list) and link else ""
            if at in seen or at not in nodes:
                continue
            seen.add(at)
            given = cast("Mapping[str, Any]", nodes[at].get("inputs", {}))
            if wanted in given:
                return given
            ahead += given.values()
        return {}

    def words(value: object) -> str:
        text: object = wired(value, "text").get("text", "")
        return text if isinstance(text, str) else ""

    latent = wired(inputs.get("latent_image"), "width")
    seed = inputs.get("seed", inputs.get("noise_seed"))
    fields: dict[str, Any] = {
        "prompt": words(inputs.get("positive")),
        "negative": words(inputs.get("negative")),
        "steps": inputs.get("steps"),
        "guidance": inputs.get("cfg"),
        "seed": seed if isinstance(seed, int) and seed < 2**63 else None,
        "size": (latent["width"], latent["height"]) if latent else None,
        "count": latent.get("batch_size"),
    }
    model = wired(inputs.get("model"), "ckpt_name").get("ckpt_name")
    plain = ("KSampler", "KSamplerAdvanced", "CLIPTextEncode", "EmptyLatentImage", "CheckpointLoaderSimple")
    plain += ("VAEDecode", "SaveImage", "PreviewImage")
    left_out = [f"node {kind}" for kind in dict.fromkeys(kinds.values()) if kind not in plain]
    if inputs.get("scheduler") not in (None, "normal"):
        left_out.append(f"scheduler {inputs['scheduler']}")
    return _made("ComfyUI", fields, model, inputs.get("sampler_name"), left_out)


def _invoke(text: str) -> ThirdPartyMetadata:
    said = cast("dict[str, Any]", json.loads(text, parse_constant=lambda _: None))
    model: Mapping[str, Any] = said.get("model") or {}
    fields: dict[str, Any] = {
        "prompt": said.get("positive_prompt", ""),
        "negative": said.get("negative_prompt") or "",
        "steps": said.get("steps"),
        "guidance": said.get("cfg_scale"),
        "seed": said.get("seed"),
        "size": (said["width"], said["height"]) if "width" in said and "height" in said else None,
    }
    kinds = {"loras": "LoRA", "controlnets": "ControlNet", "ipAdapters": "IP-Adapter", "vae": "VAE"}
    left_out = [what for name, what in kinds.items() if said.get(name)]
    return _made("InvokeAI", fields, model.get("name") or model.get("model_name"), said.get("scheduler"), left_out)
