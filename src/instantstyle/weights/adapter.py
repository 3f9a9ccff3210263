"""IP-Adapter files: how an image embedding becomes tokens, and what each cross-attention reads of them.

Published layout: `image_proj.*` and, for the Nth attention layer of `UNetConfig.sites`, `ip_adapter.N.to_k_ip.weight`
and `ip_adapter.N.to_v_ip.weight`, [width, context_dim] without bias; flat in .safetensors, two nested dictionaries in
.bin; what training scripts save is read as well.  A file may hold only some layers (a style-only adapter is 82 %
smaller): that is an error only once a plan asks for the others.
"""

import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn

from instantstyle.blocks import BlockPlan, Layout, Site, TransformerConfig
from instantstyle.errors import WeightsError
from instantstyle.families import FAMILIES, TRANSFORMER_FAMILIES, Family
from instantstyle.networks.attention import KeyValue, split_heads
from instantstyle.networks.image_projection import MLPProjection, Resampler
from instantstyle.utils.atomic_files import atomic_write, check_writable
from instantstyle.weights.adapter_projection import PROJECTION, read_projection
from instantstyle.weights.lazy_weights import LazyWeights
from instantstyle.weights.tensor_files import RenamedTensors, TensorFile, open_tensors
from instantstyle.weights.transformer_adapter import (
    KEY_NORM_EPS,
    TIMED_NORMS,
    adapter_places,
    is_xlabs,
    layer_parts,
    transformer_sites,
    with_published_names,
)

ENCODERS: Mapping[int, str] = {
    768: "CLIP ViT-L/14",
    1024: "OpenCLIP ViT-H/14",
    1152: "SigLIP so400m/14",
    1280: "OpenCLIP ViT-bigG/14",
}
"""Who makes image embeddings of a width (after the projection), among the encoders adapters were published for."""
HIDDEN: Mapping[int, str] = {1024: "CLIP ViT-L/14", 1280: "OpenCLIP ViT-H/14", 1664: "OpenCLIP ViT-bigG/14"}
"""Who has hidden states of a width: what Plus adapters read."""


@dataclass(frozen=True)
class Adapter:
    """The image's way into cross-attention; its tensors may be parameters in training."""

    projection: nn.Module
    """`ImageProjection`, for Plus adapters `Resampler`, for InstantX' `MLPProjection`."""
    keys: Mapping[Site, Tensor]
    """The weight of each site's key projection, [width, context_dim]."""
    values: Mapping[Site, Tensor]
    """The weight of each site's value projection, [width, context_dim]."""
    embed_dim: int
    """Width of the image features that the projection reads."""
    token_count: int
    """Tokens a picture becomes."""
    places: tuple[Site, ...] | None = None
    """Of a transformer's adapter the sites at which its kind may act; None: a UNet's cross-attention."""
    biases: tuple[Mapping[Site, Tensor], Mapping[Site, Tensor]] | None = None
    """Added to keys and to values (XLabs)."""
    normalizes_keys: bool = False
    """Whether keys go through an RMS norm without scale (InstantX)."""
    time_norms: Mapping[str, Mapping[Site, Tensor]] | None = None
    """Of an adapter whose tokens depend on the time (Stable Diffusion 3.5) its norms, by their names in the file."""

    @property
    def is_plus(self) -> bool:
        """Whether it reads the encoder's last-but-one hidden states instead of the image embedding."""
        return isinstance(self.projection, Resampler) or self.time_norms is not None

    @property
    def expected_features(self) -> str:
        """The image features it was trained on, in words."""
        names, what = (HIDDEN, "hidden states") if self.is_plus else (ENCODERS, "image embeddings")
        return f"{what} {_named(self.embed_dim, names)}"

    def image_tokens(self, embedding: Float[Tensor, "n *sequence width"]) -> Float[Tensor, "n tokens context_dim"]:
        """The tokens of each picture, from its un-normalised embedding [n, embed_dim] (Plus: [n, sequence, embed_dim]).

        Raises WeightsError when the embedding is of another encoder.
        """
        self.check_encoder(embedding.shape[-1])
        return self.projection(embedding)

    def check_encoder(self, width: int) -> None:
        """Raises WeightsError when image features of this width are not what the adapter was trained for."""
        if width != self.embed_dim:
            names, what = (HIDDEN, "hidden states") if self.is_plus else (ENCODERS, "image embeddings")
            raise WeightsError(
                f"this adapter was trained for {what} {_named(self.embed_dim, names)}, but the image encoder gives "
                f"{_named(width, names)}: load the encoder the adapter was trained with"
            )

    def tokens_at(
        self, hidden: Float[Tensor, "n sequence width"], timestep: float
    ) -> tuple[Float[Tensor, "n tokens dim"], Float[Tensor, "n time_dim"]]:
        """The tokens of hidden states at a time of 0 to 1000, and the time's embedding, where they depend on it."""
        self.check_encoder(hidden.shape[-1])
        return self.projection(hidden, torch.full((len(hidden),), timestep, device=hidden.device))

    def speaking(self, plan: BlockPlan, config: Layout) -> list[Site]:
        """The sites where a plan is not zero.

        Raises WeightsError when the plan speaks at attention modules that the adapter has no weights for.
        """
        places = _places(config) if self.places is None else self.places
        sites = [site for site in places if _speaks(plan, site)]
        _check_present([site for site in sites if site not in self.keys], self.keys)
        _check_named(plan, config, places)
        return sites

    def project_kv(
        self, tokens: Float[Tensor, "n tokens context_dim"], plan: BlockPlan, config: Layout
    ) -> Mapping[Site, KeyValue]:
        """The image tokens' keys and values, [n, heads, tokens, dim] each, at the sites where the plan is not zero.

        Raises WeightsError when the plan speaks at attention modules that the adapter has no weights for.
        """
        sites = self.speaking(plan, config)

        def project(weight: Tensor, bias: Tensor | None, site: Site) -> Tensor:
            return split_heads(F.linear(tokens, weight, bias), _num_heads(config, site))

        kv: dict[Site, KeyValue] = {}
        for site in sites:
            k_bias, v_bias = (None, None) if self.biases is None else (each[site] for each in self.biases)
            k, v = project(self.keys[site], k_bias, site), project(self.values[site], v_bias, site)
            kv[site] = (F.rms_norm(k, k.shape[-1:], eps=KEY_NORM_EPS) if self.normalizes_keys else k, v)
        return kv


def load_adapter(
    path: str | Path,
    config: Layout,
    *,
    plan: BlockPlan | None = None,
    embed_dim: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    lazy: bool = False,
) -> Adapter:
    """Read an adapter for a model: all that the file holds, or only the sites where `plan` is not zero.

    A lazy adapter reads a site's weights when a plan first speaks there; all names and shapes are checked at once.
    `embed_dim` is the width of the features of the image encoder at hand, if it is to be checked.  Of a .safetensors
    file nothing but the projection and the asked-for sites is read.  Raises WeightsError, naming the tensor, family or
    encoder, when the file is missing, damaged, for another UNet or encoder, of a kind not supported, holds NaN, or
    lacks sites that the plan asks for.
    """
    with ExitStack() as stack:
        file = stack.enter_context(open_adapter(path))
        names = _sites(file, config, path)
        projection, width, count = read_projection(file, _context_dim(config), path)
        xlabs = is_xlabs(file)
        places = adapter_places(config, xlabs=xlabs) if isinstance(config, TransformerConfig) else _places(config)
        if plan is not None:
            sites = [site for site in places if _speaks(plan, site)]
            _check_present([site for site in sites if site not in names], names, f" in {path}")
            names = {site: names[site] for site in sites}

        kept = stack.pop_all() if lazy else stack  # the file stays open as long as there is something to be read

        def weights(part: str) -> Mapping[Site, Tensor]:
            tensors = {site: f"{name}.{part}" for site, name in names.items()}
            if lazy:
                return LazyWeights(file, tensors, dtype, device, kept)
            return {site: file.read(name).to(device, dtype) for site, name in tensors.items()}

        adapter = Adapter(
            projection.to(device, dtype),
            weights("to_k_ip.weight"),
            weights("to_v_ip.weight"),
            width,
            count,
            places if isinstance(config, TransformerConfig) else None,
            (weights("to_k_ip.bias"), weights("to_v_ip.bias")) if xlabs else None,
            isinstance(projection, MLPProjection),
            {part: weights(part) for part in TIMED_NORMS} if "norm_q.weight" in layer_parts(file) else None,
        )
    if embed_dim is not None:
        adapter.check_encoder(embed_dim)
    return adapter


@contextmanager
def open_adapter(path: str | Path) -> Generator[TensorFile, None, None]:
    """Open an adapter's file under the published names, also one that IP-Adapter's training scripts have saved.

    Those hold the whole of what was trained together, `image_proj_model.*`, `adapter_modules.N.*` and the frozen
    `unet.*`, which is not read (IP-Adapter's README, "Train").  Raises WeightsError.
    """
    with open_tensors(path) as file:
        if not any(_TRAINED.match(name) for name in file.shapes):
            yield with_published_names(file)
            return
        new_names = {"image_proj_model": "image_proj", "adapter_modules": "ip_adapter"}
        matches = [match for name in file.shapes if (match := _TRAINED.match(name))]
        yield RenamedTensors(file, {new_names[m["part"]] + m.string[m.end("part") :]: m.string for m in matches})


def adapter_input_dim(path: str | Path) -> tuple[bool, int]:
    """What an adapter's file was trained on: whether the last-but-one hidden states (Plus), and how wide the features.

    Raises WeightsError when it is no file of an adapter.
    """
    with open_adapter(path) as file:
        for name, plus in (("proj_in.weight", True), ("proj.weight", False), ("proj.0.weight", False)):
            shape = file.shapes.get(PROJECTION + name, ())
            if len(shape) == 2:
                return plus, shape[1]
        raise WeightsError(f"{path} is no IP-Adapter file that can be used: it has no tensor {PROJECTION}proj.weight")


def save_adapter(path: str | Path, adapter: Adapter, config: Layout) -> None:
    """Write an adapter in the published layout, flat .safetensors, whole or not at all.  Raises OutputError."""
    path = Path(path)
    number = {site: n for n, site in enumerate(config.sites)}
    tensors = {f"image_proj.{name}": tensor for name, tensor in adapter.projection.state_dict().items()}
    for kind, weights in (("k", adapter.keys), ("v", adapter.values)):
        tensors |= {f"ip_adapter.{number[site]}.to_{kind}_ip.weight": weight for site, weight in weights.items()}
    _write(path, tensors)


def extract_blocks(path: str | Path, out: str | Path, plan: BlockPlan, config: Layout) -> None:
    """Write only what a plan reads of an adapter's file, in the numbers it is stored in.

    Raises WeightsError when the file lacks what the plan asks for, OutputError when it cannot be written.
    """
    with open_adapter(path) as file:
        names = _sites(file, config, path)
        xlabs = is_xlabs(file)
        places = adapter_places(config, xlabs=xlabs) if isinstance(config, TransformerConfig) else _places(config)
        sites = [site for site in places if _speaks(plan, site)]
        _check_present([site for site in sites if site not in names], names, f" in {path}")
        _check_named(plan, config, places)
        wanted = [name for name in file.shapes if name.startswith(PROJECTION)]
        wanted += [f"{names[site]}.{part}" for site in sites for part in layer_parts(file)]
        _write(Path(out), {name: file.read(name) for name in wanted})


def family_of_adapter(path: str | Path) -> Family:
    """The family whose cross-attention an adapter's layers fit.  Raises WeightsError when it is for no family."""
    with open_adapter(path) as file:
        for family in (*FAMILIES.values(), *TRANSFORMER_FAMILIES.values()):
            try:
                _sites(file, family.layout, path)
            except WeightsError:
                continue
            return family
        raise WeightsError(
            f"the adapter {path} is for none of the families {', '.join(FAMILIES)}: say which model it is for"
        )


def adapter_modules(path: str | Path, config: Layout) -> tuple[str, ...]:
    """The attention modules that an adapter's file has weights for, in the UNet's order.  Raises WeightsError."""
    with open_adapter(path) as file:
        return tuple(dict.fromkeys(site.module for site in _sites(file, config, path)))


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    # Cloned: tensors that share memory cannot be written.
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    check_writable(path)
    with atomic_write(path) as partial:
        save_file(tensors, partial, metadata={"format": "pt"})


_TRAINED = re.compile(r"(?:module\.)?(?P<part>image_proj_model|adapter_modules)\.")
_LAYER = re.compile(r"(?P<layer>ip_adapter\.(?P<number>[0-9]{1,4}))\.to_(?P<kind>[kv])_ip\.weight")


def _places(config: Layout) -> tuple[Site, ...]:
    """A UNet's cross-attention."""
    return tuple(site for site in config.sites if site.kind == "cross")


def _num_heads(config: Layout, site: Site) -> int:
    heads = config.num_attention_heads
    return heads if isinstance(heads, int) else heads[site.resolution_level(len(heads))]


def _check_named(plan: BlockPlan, config: Layout, places: Sequence[Site]) -> None:
    """Raises WeightsError where a plan names blocks of a transformer, and not by `all`, at which no such adapter acts.

    `all` is of those where it does.
    """
    if not isinstance(config, TransformerConfig):
        return
    named = [BlockPlan({k: v for k, v in part.items() if k != "all"}) for part in (plan.weights, plan.negative)]
    acts = {site.module for site in places}
    if beyond := [
        site.module for site in config.sites if site.module not in acts and any(p.scale(site) for p in named)
    ]:
        modules = list(dict.fromkeys(site.module for site in places))
        raise WeightsError(
            f"the plan names {beyond[0]}, and an adapter of this kind acts from {modules[0]} to {modules[-1]} alone"
        )


def _sites(file: TensorFile, config: Layout, path: str | Path) -> dict[Site, str]:
    """Which sites the file has, and the first part of their tensors' names; all names and shapes are checked."""
    if not any(name.startswith(PROJECTION) for name in file.shapes):
        raise WeightsError(f"{path} is no IP-Adapter file: it has no tensor named {PROJECTION}*")
    _check_context(file, config, path)
    if isinstance(config, TransformerConfig):
        return transformer_sites(file, config, path)
    names: dict[Site, str] = {}
    for name, shape in file.shapes.items():
        if name.startswith(PROJECTION):
            continue
        match = _LAYER.fullmatch(name)
        if match is None:
            kind = "FaceID adapters are not supported" if "_lora" in name else "this is no part of an IP-Adapter"
            raise WeightsError(f"{path} holds a tensor named {name}: {kind}")
        number = int(match["number"])
        site = config.sites[number] if number < len(config.sites) else None
        if site is None or site.kind != "cross":
            last = max(n for n, site in enumerate(config.sites) if site.kind == "cross")
            raise WeightsError(
                f"{path} holds a tensor named {name}, but this UNet has no cross-attention number {number}: they are "
                f"the odd numbers up to {last}; the adapter is for another UNet"
            )
        expected = (
            config.block_out_channels[site.resolution_level(len(config.block_out_channels))],
            config.cross_attention_dim,
        )
        if shape != expected:
            raise WeightsError(
                f"{name} in {path} has shape {list(shape)}, but {site} of this UNet needs {list(expected)}"
            )
        for kind in "kv":
            if f"{match['layer']}.to_{kind}_ip.weight" not in file.shapes:
                raise WeightsError(f"{path} has {name} but no {match['layer']}.to_{kind}_ip.weight beside it")
        names[site] = match["layer"]
    if not names:
        raise WeightsError(f"{path} has a projection but not one tensor named ip_adapter.N.to_k_ip.weight")
    return {site: names[site] for site in config.sites if site in names}


def _context_dim(config: Layout) -> int:
    return config.joint_attention_dim if isinstance(config, TransformerConfig) else config.cross_attention_dim


def _check_context(file: TensorFile, config: Layout, path: str | Path) -> None:
    """The width of the text tokens is what tells the families apart; say so before any shape is complained about."""
    layers = (shape for name, shape in file.shapes.items() if _LAYER.fullmatch(name) and len(shape) == 2)
    timed = isinstance(config, TransformerConfig) and config.class_name == "SD3Transformer2DModel"
    if timed or "norm_q.weight" in layer_parts(file):
        return  # adapters of Stable Diffusion 3: their keys are made of tokens as wide as the network
    own = _context_dim(config)
    given = next((shape[1] for shape in layers), own)
    if given != own:
        families = {family.unet.cross_attention_dim: f"family {name}" for name, family in FAMILIES.items()}
        families[4096] = "Flux"
        kind = "model" if isinstance(config, TransformerConfig) or given == 4096 else "UNet"
        raise WeightsError(
            f"the adapter {path} is for a {kind} whose text tokens are {_named(given, families)}, but this {kind}'s "
            f"are {_named(own, families)}"
        )


def _speaks(plan: BlockPlan, site: Site) -> bool:
    return bool(plan.scale(site) or plan.negative_scale(site))


def _check_present(missing: Sequence[Site], present: Mapping[Site, object], where: str = "") -> None:
    if missing:
        lacks, has = (", ".join(dict.fromkeys(site.module for site in sites)) for sites in (missing, present))
        raise WeightsError(f"the plan speaks at {lacks}, which the adapter{where} has no weights for: it has {has}")


def _named(width: int, names: Mapping[int, str]) -> str:
    return f"{width} wide ({names[width]})" if width in names else f"{width} wide"
