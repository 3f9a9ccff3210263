"""ComfyUI's API graph (the PNG text `prompt`): the sampler that made the picture, and what it is wired to."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

SAMPLER_NODES = ("KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced")
READ_NODES = frozenset(
    (
        *("KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced", "KSamplerSelect", "BasicScheduler"),
        *("RandomNoise", "BasicGuider", "CFGGuider", "CLIPTextEncode", "CLIPTextEncodeSDXL", "CLIPTextEncodeSD3"),
        *("CLIPTextEncodeFlux", "EmptyLatentImage", "EmptySD3LatentImage", "CheckpointLoaderSimple", "VAEDecode"),
        *("SaveImage", "PreviewImage"),
    )
)
"""Kinds of node of which nothing is dropped but what is named one by one."""
CONSTANTS = ("value", "int", "float", "number", "seed", "text", "string", "Text", "String", "Number", "prompt")
"""Inputs in which nodes that are one constant keep it."""
TEXT_INPUTS = ("text", "text_g", "t5xxl")
"""Inputs in which nodes that encode text keep the prompt, the fullest first."""
OTHER_TEXTS = ("text_l", "clip_l", "text_g", "t5xxl")

Node = Mapping[str, Any]


@dataclass(frozen=True)
class ParsedGraph:
    """What of a graph a request can hold, and what it cannot."""

    fields: Mapping[str, Any]
    sampler: object
    schedule: object
    model: object
    unsupported: list[str]


def is_graph(content: Mapping[str, object]) -> bool:
    """Whether a JSON object is a graph as ComfyUI's API takes it: nodes by number, each with a class."""
    nodes = list(content.values())
    return bool(nodes) and all(isinstance(node, dict) and "class_type" in node for node in nodes)


def parse_graph(graph: Mapping[str, Node]) -> ParsedGraph:
    """Raises ValueError when no sampler is known, KeyError, TypeError or AttributeError for damaged graphs."""
    return _Graph(graph).parse()


class _Graph:
    def __init__(self, nodes: Mapping[str, Node]) -> None:
        self.nodes = nodes
        self.kinds = {key: str(node["class_type"]) for key, node in nodes.items()}
        self.unsupported: list[str] = []
        self.constants = set[str]()

    def parse(self) -> ParsedGraph:
        samplers = [key for key, kind in self.kinds.items() if kind in SAMPLER_NODES]
        if not samplers:
            raise ValueError(f"its graph has no KSampler and none of {', '.join(SAMPLER_NODES[1:])}")
        # The first pass makes the picture, later ones refine it: it is the one with no sampler upstream.
        key = next((key for key in samplers if not self._samples_before(key)), samplers[0])
        self.unsupported += [f"node {self.kinds[other]} {other}" for other in samplers if other != key]
        inputs = cast("Node", self.nodes[key]["inputs"])
        noise, guider, sigmas = (self._node(inputs.get(name)) for name in ("noise", "guider", "sigmas"))
        merged = {**self._node(inputs.get("sampler")), **sigmas, **noise, **guider, **inputs}
        latent = self._upstream(inputs.get("latent_image"), "width")
        fields: dict[str, Any] = {
            "prompt": self._prompt("prompt", merged.get("positive", merged.get("conditioning"))),
            "negative": self._prompt("negative prompt", merged.get("negative")),
            "steps": self._number("steps", merged, int),
            "guidance": self._number("cfg", merged, float),
            "seed": self._number("seed" if "seed" in merged else "noise_seed", merged, int),
            "count": self._number("batch_size", latent, int),
        }
        width, height = self._number("width", latent, int), self._number("height", latent, int)
        if width is not None and height is not None:
            fields["size"] = (width, height)
        denoise = self._number("denoise", merged, float)
        if denoise not in (None, 1.0):
            self.unsupported.append(f"denoise {denoise:g}")
        for name, default in (("start_at_step", (0,)), ("add_noise", ("enable", True))):
            if merged.get(name, default[0]) not in default:
                self.unsupported.append(f"{name} {self._shown(merged[name])}")
        end = merged.get("end_at_step")
        if end is not None and not (isinstance(end, int) and end >= (fields["steps"] or 0)):
            self.unsupported.append(f"end_at_step {self._shown(end)}")
        if fields["seed"] is not None and not 0 <= fields["seed"] < 2**63:
            self.unsupported.append(f"seed {fields.pop('seed')}")
        model = self._upstream(merged.get("model"), "ckpt_name").get("ckpt_name")
        others = dict.fromkeys(kind for kind in self.kinds.values() if kind not in READ_NODES)
        constants = {self.kinds[at] for at in self.constants}
        self.unsupported = [f"node {kind}" for kind in others if kind not in constants] + self.unsupported
        schedule = self._constant(merged.get("scheduler"))
        return ParsedGraph(fields, self._constant(merged.get("sampler_name")), schedule, model, self.unsupported)

    def _walk(self, link: object) -> Iterator[str]:
        """Nodes upstream of a link, the nearest first, each once."""
        pending, visited = [link], set[str]()
        while pending:
            key = self._key(pending.pop(0))
            if key is None or key in visited:
                continue
            visited.add(key)
            yield key
            pending += cast("Node", self.nodes[key].get("inputs", {})).values()

    def _key(self, link: object) -> str | None:
        key = str(cast("list[object]", link)[0]) if isinstance(link, list) and link else None
        return key if key in self.nodes else None

    def _node(self, link: object) -> Node:
        key = self._key(link)
        return {} if key is None else cast("Node", self.nodes[key].get("inputs", {}))

    def _upstream(self, link: object, wanted: str) -> Node:
        """The inputs of the nearest node upstream that has an input of a name."""
        for key in self._walk(link):
            inputs = cast("Node", self.nodes[key].get("inputs", {}))
            if wanted in inputs:
                return inputs
        return {}

    def _samples_before(self, key: str) -> bool:
        latent = cast("Node", self.nodes[key]["inputs"]).get("latent_image")
        return any(self.kinds[each] in SAMPLER_NODES for each in self._walk(latent))

    def _constant(self, value: object, depth: int = 8) -> object:
        """A value, or that of the node that it is linked to where this is one constant; None where it is computed."""
        key = self._key(value)
        if key is None:
            return None if isinstance(value, list) else value
        inputs = cast("Node", self.nodes[key].get("inputs", {}))
        held = [inputs[name] for name in CONSTANTS if name in inputs]
        if len(held) != 1 or depth == 0:
            return None
        found = self._constant(held[0], depth - 1)
        if found is not None:
            self.constants.add(key)
        return found

    def _shown(self, value: object) -> str:
        key = self._key(value)
        return str(value)[:80] if key is None else f"of node {self.kinds[key]} {key}"

    def _number(self, name: str, inputs: Node, kind: type[int] | type[float]) -> Any:
        value = inputs.get(name)
        constant = self._constant(value)
        if isinstance(constant, int | float) and not isinstance(constant, bool):
            return kind(constant)
        if value is not None:
            self.unsupported.append(f"{name} {self._shown(value)}")
        return None

    def _prompt(self, role: str, link: object) -> str:
        """The text of the nearest node that encodes one; a second text that says something else is named."""
        for key in self._walk(link):
            inputs = cast("Node", self.nodes[key].get("inputs", {}))
            name = next((name for name in TEXT_INPUTS if name in inputs), None)
            if name is None:
                continue
            text = self._constant(inputs[name])
            if not isinstance(text, str):
                self.unsupported.append(f"{name} {self._shown(inputs[name])}")
                text = ""
            for other in OTHER_TEXTS:
                second = self._constant(inputs.get(other))
                if other != name and second not in (None, "", text):
                    self.unsupported.append(f"{other} {self._shown(second)}")
            return text
        if link is not None:
            self.unsupported.append(f"{role} {self._shown(link)}, behind which no text was found")
        return ""
