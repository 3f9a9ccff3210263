"""IP-Adapters of Flux: where each published kind acts, told from the tensors' names.

XLabs (github.com/XLabs-AI/x-flux): keys and values with bias for every double block, added to the picture at the
block's end.  InstantX (FLUX.1-dev-IP-Adapter): keys and values without bias for every block, keys behind an RMS norm
without scale, added to attention before its output projection.
"""

import re

from instantstyle.blocks import Site, TransformerConfig
from instantstyle.errors import WeightsError
from instantstyle.weights.tensor_files import RenamedTensors, TensorFile

KEY_NORM_EPS = 1e-5
"""Of InstantX' norm of keys."""
_XLABS = re.compile(r"double_blocks\.(?P<block>[0-9]{1,4})\.processor\.ip_adapter_double_stream_(?P<kind>[kv])_proj\.")
_LAYER = re.compile(r"(?P<layer>ip_adapter\.(?P<number>[0-9]{1,4}))\.to_[kv]_ip\.(?P<part>weight|bias)")


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
    return any((match := _LAYER.fullmatch(name)) is not None and match["part"] == "bias" for name in file.shapes)


def adapter_places(layout: TransformerConfig, *, xlabs: bool) -> tuple[Site, ...]:
    """The sites at which an adapter may act; the position of each is the N of its tensors' names."""
    if not xlabs:
        return layout.sites
    return tuple(site._replace(kind="cross") for site in layout.sites if site.stage == "double")


def transformer_sites(file: TensorFile, layout: TransformerConfig, path: object) -> dict[Site, str]:
    """Which sites a file has, and the first part of their tensors' names; names and shapes are checked.

    Raises WeightsError.
    """
    if layout.class_name != "FluxTransformer2DModel":
        raise WeightsError(
            f"adapters of Stable Diffusion 3 are not read yet, as their tokens depend on the time: {path} cannot be "
            "used; methods style-aligned and swapped need no adapter"
        )
    xlabs, names = is_xlabs(file), dict[Site, str]()
    places = adapter_places(layout, xlabs=xlabs)
    width = layout.num_attention_heads * layout.attention_head_dim
    expected = {"weight": (width, layout.joint_attention_dim), "bias": (width,)}
    for name, shape in file.shapes.items():
        if name.startswith("image_proj."):
            continue
        match = _LAYER.fullmatch(name)
        if match is None:
            raise WeightsError(f"{path} holds a tensor named {name}: this is no part of an IP-Adapter for Flux")
        if int(match["number"]) >= len(places):
            raise WeightsError(
                f"{path} holds a tensor named {name}, but this model has {len(places)} places for such an adapter: it "
                "is for another model"
            )
        if shape != expected[match["part"]]:
            site, needed = places[int(match["number"])], list(expected[match["part"]])
            raise WeightsError(f"{name} in {path} has shape {list(shape)}, but {site} of this model needs {needed}")
        for kind in "kv":
            for part in ("weight", "bias") if xlabs else ("weight",):
                if f"{match['layer']}.to_{kind}_ip.{part}" not in file.shapes:
                    raise WeightsError(f"{path} has {name} but no {match['layer']}.to_{kind}_ip.{part} beside it")
        names[places[int(match["number"])]] = match["layer"]
    if not names:
        raise WeightsError(f"{path} has a projection but not one tensor named ip_adapter.N.to_k_ip.weight")
    return {site: names[site] for site in places if site in names}
