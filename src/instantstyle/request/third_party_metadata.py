"""Requests from the pictures of other programs: A1111 and its kin, ComfyUI, InvokeAI, Fooocus, SwarmUI, NovelAI...

A text is recognised by what it holds, wherever it stands in the file (PNG, EXIF, XMP, comments), or is refused.
Prompts, seeds, steps, guidance, sizes and samplers have a counterpart here; whatever else was said is named in
`unsupported`.  The same numbers do not give the same picture: other programs draw their noise elsewhere.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from instantstyle.errors import InputError, PictureError
from instantstyle.request.comfyui_graph import is_graph, parse_graph
from instantstyle.request.prompt_syntax import parse_prompt
from instantstyle.request.request import Request
from instantstyle.request.result import read_metadata
from instantstyle.utils.images import METADATA_KEY, read_texts

SAMPLER_NAMES: Mapping[str, str] = {
    "euler": "euler",
    "k_euler": "euler",
    "ddim": "ddim",
    "dpm++ 2m": "dpm++",
    "dpmpp_2m": "dpm++",
    "k_dpmpp_2m": "dpm++",
    "unipc": "unipc",
    "uni_pc": "unipc",
}
"""Samplers of this package by other programs' names, without their noise schedules."""
PLAIN_SCHEDULES = ("normal", "uniform")
"""Noise schedules that are ours."""
_SCHEDULE_SUFFIX = re.compile(r"[ _](karras|exponential|k|polyexponential|sgm uniform|simple|beta)$")


@dataclass(frozen=True)
class ThirdPartyMetadata:
    """What a picture says of how it was made, as a request."""

    request: Request
    program: str
    model: str | None
    """What the program called its model: a file's name, which a model tree may know."""
    unsupported: tuple[str, ...]
    """What was said and has no counterpart here."""


@dataclass(frozen=True, kw_only=True)
class JsonFormat:
    """Where a program keeps what a request holds, in one flat JSON object; the keys are lower case, `_` for spaces."""

    program: str
    prompt: str
    negative: str
    steps: str = "steps"
    guidance: str
    seed: str = "seed"
    size: str = ""
    """One text such as 512x768 or (512, 768); where it is empty, the keys `width` and `height`."""
    sampler: str = "sampler"
    schedule: str = "scheduler"
    model: str = "model"
    others: Mapping[str, str] = field(default_factory=dict[str, str])
    """Further fields of `Request` by key."""
    ignored: frozenset[str] = frozenset()
    """Keys that do not change a picture: versions, dates, the program's own bookkeeping."""


_BOOKKEEPING = frozenset({"version", "metadata_scheme", "created_by", "date", "app_version"})
FOOOCUS = JsonFormat(
    program="Fooocus",
    prompt="prompt",
    negative="negative_prompt",
    guidance="guidance_scale",
    size="resolution",
    model="base_model",
    others={"clip_skip": "clip_skip"},
    ignored=_BOOKKEEPING | {"full_prompt", "full_negative_prompt", "base_model_hash", "prompt_expansion_hash"},
)
SWARMUI = JsonFormat(
    program="SwarmUI",
    prompt="prompt",
    negative="negativeprompt",
    guidance="cfgscale",
    others={"images": "count"},
    ignored=_BOOKKEEPING | {"swarm_version", "aspectratio"},
)
INVOKEAI = JsonFormat(
    program="InvokeAI",
    prompt="positive_prompt",
    negative="negative_prompt",
    guidance="cfg_scale",
    sampler="scheduler",
    schedule="",
    others={"cfg_rescale_multiplier": "guidance_rescale"},
    ignored=_BOOKKEEPING | {"rand_device"},
)
NOVELAI = JsonFormat(
    program="NovelAI",
    prompt="prompt",
    negative="uc",
    guidance="scale",
    schedule="noise_schedule",
    others={"n_samples": "count", "cfg_rescale": "guidance_rescale"},
    ignored=_BOOKKEEPING | {"signed_hash", "request_type"},
)
DRAW_THINGS = JsonFormat(
    program="Draw Things", prompt="c", negative="uc", guidance="scale", size="size", ignored=_BOOKKEEPING | {"v2"}
)
EASY_DIFFUSION = JsonFormat(
    program="Easy Diffusion",
    prompt="prompt",
    negative="negative_prompt",
    steps="num_inference_steps",
    guidance="guidance_scale",
    sampler="sampler_name",
    model="use_stable_diffusion_model",
    others={"num_outputs": "count"},
    ignored=_BOOKKEEPING | {"original_prompt", "output_format", "output_quality", "metadata_output_format"},
)
_FOOOCUS_KEYS = {
    *(FOOOCUS.prompt, FOOOCUS.negative, "steps", "seed", "guidance_scale", "resolution", "sampler", "scheduler"),
    *("styles", "performance", "sharpness", "adm_guidance", "base_model", "refiner_model", "refiner_switch", "vae"),
    *("loras", "prompt_expansion", "fooocus_v2_expansion", "clip_skip", "metadata_scheme", "version", "user"),
}


class NoMetadataError(PictureError):
    """A picture that does not say how it was made."""


def read_third_party_request(picture: str | Path | bytes) -> ThirdPartyMetadata:
    """The request in the metadata of a picture file, ours or another program's.

    Raises NoMetadataError when there is none, PictureError when it cannot be read.
    """
    name = "the picture" if isinstance(picture, bytes) else repr(str(picture))
    texts = read_texts(picture)
    if METADATA_KEY in texts:
        own = read_metadata(picture)
        return ThirdPartyMetadata(own.request, "instantstyle", own.model or None, ())
    refusal: PictureError | None = None
    for place in sorted(texts, key=lambda place: place != "prompt"):  # ComfyUI's graph says the most
        try:
            found = _parse(place, texts)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, InputError) as invalid:
            reason = f"it has no {invalid}" if isinstance(invalid, KeyError) else invalid
            refusal = refusal or PictureError(f"the {place!r} text in {name} cannot be read as a request: {reason}")
            continue
        if found is not None:
            return found
    if refusal is not None:
        raise refusal
    present = f"of its texts ({', '.join(sorted(texts)[:8])}) none is" if texts else "it has no text"
    raise NoMetadataError(
        f"{name} does not say how it was made: {present} of instantstyle, A1111, ComfyUI, InvokeAI, Fooocus, "
        "SwarmUI, NovelAI, Draw Things or Easy Diffusion"
    )


def _parse(place: str, texts: Mapping[str, str]) -> ThirdPartyMetadata | None:
    """The request in the text of one place, None where it is no program's.  Raises what parsing raises."""
    text = texts[place].strip()
    text = re.sub(r"^(prompt|workflow):(?=\s*\{)", "", text)  # ComfyUI's WebP: the keyword stands in the EXIF tag
    if place in ("prompt", "parameters", "invokeai_metadata", "sd-metadata") and text[:1] in ("{", "["):
        content: object = json.loads(text, parse_constant=lambda _: None)
        if not isinstance(content, dict):
            raise ValueError("it is a JSON list, and no program writes one")
    elif text[:1] == "{":
        content = None
        with suppress(ValueError, RecursionError):
            content = json.loads(text, parse_constant=lambda _: None)
    else:
        content = None
    if isinstance(content, dict):
        return _parse_json(place, cast("dict[str, Any]", content), texts)
    if _VALUES.search(text):
        return _parse_a1111(text)
    if place == "prompt" and "num_inference_steps" in texts:
        known = {key: value for key, value in texts.items() if ":" not in key}
        return _parse_flat(EASY_DIFFUSION, known)
    if place == "parameters" and text:
        return _parse_a1111(text)
    return None


def _parse_json(place: str, content: dict[str, Any], texts: Mapping[str, str]) -> ThirdPartyMetadata | None:
    flat = {re.sub(r"\W+", "_", key.strip().lower()): value for key, value in content.items()}
    if is_graph(content):
        graph = parse_graph(content)
        return _request("ComfyUI", graph.fields, graph.sampler, graph.schedule, graph.model, graph.unsupported)
    if isinstance(content.get("sui_image_params"), dict):
        return _parse_flat(SWARMUI, content["sui_image_params"])
    if place == "invokeai_metadata" or "positive_prompt" in flat:
        return _parse_invokeai(content)
    if place == "sd-metadata":
        return _parse_old_invokeai(content)
    if "c" in flat and "uc" in flat:
        return _parse_flat(DRAW_THINGS, flat)
    if "uc" in flat and ("prompt" in flat or "Description" in texts):
        return _parse_flat(NOVELAI, {"prompt": texts.get("Description", ""), **flat})
    if "prompt" in flat and "num_inference_steps" in flat:
        return _parse_flat(EASY_DIFFUSION, flat)
    fooocus = flat.keys() <= _FOOOCUS_KEYS or "fooocus" in str(flat.get("version", flat.get("metadata_scheme"))).lower()
    if isinstance(flat.get("prompt"), str) and (fooocus or "fooocus_scheme" in texts):
        return _parse_flat(FOOOCUS, flat)
    if place in ("prompt", "parameters"):
        raise ValueError(f"its JSON ({', '.join(list(content)[:6])}...) is of no program that is known here")
    return None


def _request(
    program: str, fields: Mapping[str, Any], sampler: object, schedule: object, model: object, unsupported: list[str]
) -> ThirdPartyMetadata:
    """The request of the fields that hold something; samplers, schedules and seeds that are not ours are named."""
    fields, left = dict(fields), list[str]()
    name = str(sampler).strip().lower() if sampler else ""
    if name and (suffix := _SCHEDULE_SUFFIX.search(name)):
        name = name[: suffix.start()]
        unsupported = [*unsupported, f"scheduler {'karras' if suffix[1] == 'k' else suffix[1]}"]
    if name and name not in SAMPLER_NAMES:
        left = [f"sampler {sampler}"]
    if schedule and str(schedule).lower() not in PLAIN_SCHEDULES:
        unsupported = [*unsupported, f"scheduler {schedule}"]
    seed: Any = fields.get("seed")
    if seed is not None and not 0 <= int(seed) < 2**63:
        left.append(f"seed {fields.pop('seed')}")
    prompts = [parse_prompt(str(fields.get(name) or ""), program) for name in ("prompt", "negative")]
    fields |= {"prompt": prompts[0].text, "negative": prompts[1].text, "sampler": SAMPLER_NAMES.get(name)}
    if any(each.weighted for each in prompts):
        fields["reading"] = "weighted"
    for each in prompts:
        left += each.unsupported
    given = {field: value for field, value in fields.items() if value is not None}
    return ThirdPartyMetadata(Request(**given), program, str(model) if model else None, (*left, *unsupported))


def _parse_flat(layout: JsonFormat, content: Mapping[str, Any]) -> ThirdPartyMetadata:
    """A request from one flat object; every key that is not read and holds something is named."""
    rest = {key: value for key, value in content.items() if key not in layout.ignored}
    unsupported: list[str] = []

    def number(key: str, kind: type[int] | type[float]) -> int | float | None:
        value = rest.pop(key, None)
        if value in (None, ""):
            return None
        if isinstance(value, bool) or not isinstance(value, int | float | str) or kind(value) != float(value):
            unsupported.append(f"{key} {_short(value)}")
            return None
        return kind(value)

    def text(key: str) -> str | None:
        value = rest.pop(key, None)
        if value is None or isinstance(value, str):
            return value
        if not isinstance(value, Mapping):
            raise ValueError(f"its {key} is no text but {_short(value)}")
        named = cast("Mapping[str, Any]", value)
        return str(named.get("name") or named.get("model_name") or "") or None

    fields: dict[str, Any] = {"prompt": text(layout.prompt) or "", "negative": text(layout.negative) or ""}
    fields |= {"steps": number(layout.steps, int), "guidance": number(layout.guidance, float)}
    fields["seed"] = number(layout.seed, int)
    fields |= {
        field: number(key, float if field == "guidance_rescale" else int) for key, field in layout.others.items()
    }
    if layout.size:
        sides = re.findall(r"\d+", str(rest.pop(layout.size, "")))
        fields["size"] = (int(sides[0]), int(sides[1])) if len(sides) == 2 else None
    elif "width" in rest and "height" in rest:
        fields["size"] = (number("width", int), number("height", int))
    sampler, model = text(layout.sampler), text(layout.model)
    schedule = text(layout.schedule) if layout.schedule else None
    empty = (None, "", "None", "none", "[]", "{}", "False", "false", "0", "0.0")
    for key, value in rest.items():
        if str(value) not in empty and key not in fields:
            unsupported.append(f"{key} {_short(value)}")
    return _request(layout.program, fields, sampler, schedule, model, unsupported)


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _parse_invokeai(content: dict[str, Any]) -> ThirdPartyMetadata:
    kinds = {"loras": "LoRA", "controlnets": "ControlNet", "ipAdapters": "IP-Adapter", "vae": "VAE"}
    named = [kind for key, kind in kinds.items() if content.get(key)]
    rest = {key: value for key, value in content.items() if key not in kinds}
    if str(rest.get("generation_mode", "")).endswith("txt2img"):
        del rest["generation_mode"]
    for style, prompt in (("positive_style_prompt", "positive_prompt"), ("negative_style_prompt", "negative_prompt")):
        if rest.get(style) == rest.get(prompt):
            rest.pop(style, None)
    read = _parse_flat(INVOKEAI, rest)
    return ThirdPartyMetadata(read.request, read.program, read.model, (*read.unsupported, *named))


def _parse_old_invokeai(content: dict[str, Any]) -> ThirdPartyMetadata:
    """InvokeAI 2's `sd-metadata`: the picture's settings in an object of their own, its prompt a list."""
    image = dict(cast("Mapping[str, Any]", content["image"]))
    prompts: Any = image.pop("prompt")
    parts = [prompts] if isinstance(prompts, str) else [str(part["prompt"]) for part in prompts]
    prompt, _, negative = " ".join(parts).partition("[")
    image |= {"positive_prompt": prompt.strip(), "negative_prompt": negative.rstrip("] ")}
    image |= {"scheduler": image.pop("sampler", None), "model": content.get("model_weights")}
    image = {key: value for key, value in image.items() if key not in ("type", "postprocessing") or value != "txt2img"}
    return _parse_flat(INVOKEAI, image)


_VALUES = re.compile(r"(?m)^Steps: *\d+ *(?:,|$)")
"""How A1111's line of values begins."""
_PAIR = re.compile(r'\s*(?P<name>\w[\w ()/+.-]{0,60}?)\s*:\s*(?P<value>"(?:\\.|[^"\\])*"|[^,]*)\s*(?:,|$)')


def _parse_a1111(text: str) -> ThirdPartyMetadata:
    """`prompt`, `Negative prompt: ...`, each of any number of lines, a line of values, then what extensions add."""
    text = text.replace("\r\n", "\n").strip()
    starts = [match.start() for match in _VALUES.finditer(text)]
    words, line = (text[: starts[-1]], text[starts[-1] :]) if starts else (text, "")
    line, _, added = line.partition("\n")
    values, unsupported = dict[str, str](), list[str]()
    for pair in _a1111_pairs(line):
        if isinstance(pair, str) or pair[0] in values:
            unsupported.append(pair if isinstance(pair, str) else f"{pair[0]} {pair[1]}")
        else:
            values[pair[0]] = pair[1]
    prompt, _, negative = ("\n" + words).partition("\nNegative prompt:")
    fields: dict[str, Any] = {"prompt": prompt.strip(), "negative": negative.strip()}
    numbers = (("steps", "Steps", int), ("guidance", "CFG scale", float), ("seed", "Seed", int))
    for key, name, kind in (*numbers, ("clip_skip", "Clip skip", int)):
        fields[key] = kind(values.pop(name)) if values.get(name) else None
    if size := re.fullmatch(r"(\d+)x(\d+)", values.get("Size", "")):
        fields["size"] = (int(size[1]), int(size[2]))
        del values["Size"]
    model, sampler = values.pop("Model", None), values.pop("Sampler", None)
    schedule = values.pop("Schedule type", None)
    unsupported += [f"{name} {value}" for name, value in values.items() if name not in ("Version", "Model hash")]
    unsupported += [re.sub(r"^([\w ]+): ", r"\1 ", each) for each in re.split(r"\n(?=[\w ]+: )", added) if each.strip()]
    if not line:
        unsupported.append("all but the prompt, for there is no line of values")
    return _request("A1111", fields, sampler, schedule, model, unsupported)


def _a1111_pairs(line: str) -> Iterator[tuple[str, str] | str]:
    """Names with their values, quoted ones unquoted; what stands between is given as it is."""
    at = 0
    while at < len(line):
        pair = _PAIR.match(line, at)
        if pair is None:
            rest, _, _ = line[at:].partition(",")
            if rest.strip():
                yield rest.strip()
            at += len(rest) + 1
            continue
        at, value = pair.end(), pair["value"]
        if value.startswith('"'):
            with suppress(ValueError):
                value = str(json.loads(value))
        yield pair["name"].strip(), value.strip().strip('"')
