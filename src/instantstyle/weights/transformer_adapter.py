"""IP-Adapters of transformers: where each published kind acts, told from the tensors' names.

XLabs (github.com/XLabs-AI/x-flux): keys and values with bias for every double block, added to the picture at the
block's end.  InstantX (FLUX.1-dev-IP-Adapter): keys and values without bias for every block, keys behind an RMS norm
without scale, added to attention before its output projection.  InstantX for Stable Diffusion 3.5: for every block, of
tokens that depend on the time and go through an adaptive norm; the picture attends to its own keys too, under norms of
queries and keys that are the adapter's.
"""

import re

from instantstyle.blocks import Site, TransformerConfig
from instantstyle.errors import WeightsError
from instantstyle.weights.tensor_files import RenamedTensors, TensorFile

KEY_NORM_EPS = 1e-5
"""Of InstantX' norm of keys."""
_XLABS = re.compile(r"double_blocks\.(?P<block>[0-9]{1,4})\.processor\.ip_adapter_double_stream_(?P<kind>[kv])_proj\.")
_PART = re.compile(r"(?P<layer>ip_adapter\.(?P<number>[0-9]{1,4}))\.(?P<part>\w+(?:\.\w+)+)")
_PLAIN = ("to_k_ip.weight", "to_v_ip.weight")
_BIASED = (*_PLAIN, "to_k_ip.bias", "to_v_ip.bias")
TIMED_NORMS = ("norm_ip.linear.weight", "norm_ip.linear.bias", "norm_q.weight", "norm_k.weight", "norm_ip_k.weight")
"""What an adapter whose tokens depend on the time has beside keys and values."""
_TIMED = (*_PLAIN, *TIMED_NORMS)


def with_published_names(file: TensorFile) -> TensorFile:
    """An adapter's file under the names that diffusers gives to XLabs' tensors; any other as it is."""
    if not any(_XLABS.match(name) for name in file.shapes):
        return file
    names: dict[str, str] = {}
    for name in file.shapes:
        if (match := _XLABS.match(name)) is not None:
            names[f"ip_adapter.{match['block']}.to_{match['kind']}_ip.{name[match.end() :]}"] = name
        else:
            names[name.replace("ip_adapter_proj_model.", "image_proj.")] = name
    return RenamedTensors(file, names)


def is_xlabs(file: TensorFile) -> bool:
    """Whether keys and values have biases, and so act at the end of double blocks."""
    return "to_k_ip.bias" in layer_parts(file)


def layer_parts(file: TensorFile) -> tuple[str, ...]:
    """What a file has for each layer, behind `ip_adapter.N.`: the same for all layers of a kind."""
    found = {match["part"] for name in file.shapes if (match := _PART.fullmatch(name)) is not None}
    for kind in (_TIMED, _BIASED):
        if found.intersection(kind) - set(_PLAIN):
            return kind
    return _PLAIN


def adapter_places(layout: TransformerConfig, *, xlabs: bool) -> tuple[Site, ...]:
    """The sites at which an adapter may act; the position of each is the N of its tensors' names."""
    if not xlabs:
        return layout.sites
    return tuple(site._replace(kind="cross") for site in layout.sites if site.stage == "double")


def transformer_sites(file: TensorFile, layout: TransformerConfig, path: object) -> dict[Site, str]:
    """Which sites a file has, and the first part of their tensors' names; names and shapes are checked.

    Raises WeightsError.
    """
    parts, names = layer_parts(file), dict[Site, str]()
    timed = layout.class_name == "SD3Transformer2DModel"
    if timed != (parts == _TIMED):
        reads = (
            "depend on the time, and Flux'"
            if parts == _TIMED
            else "do not depend on the time, and Stable Diffusion 3's"
        )
        raise WeightsError(f"{path} is an adapter whose tokens {reads} are others: it is for another family")
    places = adapter_places(layout, xlabs=parts == _BIASED)
    width = layout.num_attention_heads * layout.attention_head_dim
    context = width if timed else layout.joint_attention_dim
    dim = (layout.attention_head_dim,)
    expected: dict[str, tuple[int, ...]] = {
        **{f"to_{kind}_ip.weight": (width, context) for kind in "kv"},
        **{f"to_{kind}_ip.bias": (width,) for kind in "kv"},
        **dict.fromkeys(("norm_q.weight", "norm_k.weight", "norm_ip_k.weight"), dim),
        "norm_ip.linear.bias": (2 * context,),
    }
    for name, shape in file.shapes.items():
        if name.startswith("image_proj."):
            continue
        match = _PART.fullmatch(name)
        if match is None or match["part"] not in parts:
            raise WeightsError(f"{path} holds a tensor named {name}: this is no part of such an IP-Adapter")
        if int(match["number"]) >= len(places):
            raise WeightsError(
                f"{path} holds a tensor named {name}, but this model has {len(places)} places for such an adapter: it "
                "is for another model"
            )
        needed = expected.get(match["part"], (2 * context, *shape[1:2]))
        if shape != needed:
            site = places[int(match["number"])]
            raise WeightsError(
                f"{name} in {path} has shape {list(shape)}, but {site} of this model needs {list(needed)}"
            )
        for part in parts:
            if f"{match['layer']}.{part}" not in file.shapes:
                raise WeightsError(f"{path} has {name} but no {match['layer']}.{part} beside it")
        names[places[int(match["number"])]] = match["layer"]
    if not names:
        raise WeightsError(f"{path} has a projection but not one tensor named ip_adapter.N.to_k_ip.weight")
    return {site: names[site] for site in places if site in names}
