"""What training leaves: an adapter in the published layout, and the card that says what it was made of."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from instantstyle.blocks import UNetConfig
from instantstyle.utils.atomic_files import atomic_write
from instantstyle.weights.adapter import Adapter, save_adapter


def export_adapter(
    path: Path,
    adapter: Adapter,
    config: UNetConfig,
    card: str,
    *,
    dtype: torch.dtype = torch.float16,
    pad: bool = False,
) -> None:
    """Write the adapter, and its card beside it as .md.

    `pad` adds the blocks that did not learn, silent: many loaders (diffusers' among them) take no file without them,
    and then need no plan to hear the style alone.  Raises OutputError.
    """
    keys, values = dict(adapter.keys), dict(adapter.values)
    if pad:
        for site in config.sites:
            if site.kind == "cross" and site not in keys:
                width = config.block_out_channels[site.resolution_level(len(config.block_out_channels))]
                keys[site] = values[site] = torch.zeros(width, config.cross_attention_dim)
    projection = copy.deepcopy(adapter.projection).to("cpu", dtype)
    halved = Adapter(
        projection,
        {site: weight.detach().to(dtype) for site, weight in keys.items()},
        {site: weight.detach().to(dtype) for site, weight in values.items()},
        adapter.embed_dim,
        adapter.token_count,
    )
    save_adapter(path, halved, config)
    with atomic_write(path.with_suffix(".md")) as partial:
        partial.write_text(card, "utf-8")


def write_model_card(
    name: str,
    *,
    blocks: str,
    modules: list[str],
    reference: str,
    manifest: Mapping[str, Any],
    settings: Mapping[str, Any],
    trained: Mapping[str, Any],
    scores: Mapping[str, float] | None = None,
) -> str:
    """The card: what the adapter is, the data by counts and licences, the settings, and scores where there are any."""
    counts, licences = manifest["counts"], manifest["licences"]
    lines = [
        f"# {name}",
        "",
        f"An IP-Adapter for models of the family {manifest['family']}, trained with instantstyle on the frozen model "
        f"`{manifest['model']}`, at the blocks `{blocks}` ({', '.join(modules)}) and nowhere else.",
        {
            "same": "Every picture was its own reference.",
            "paired": "Every picture's reference was another picture of its style.",
            "mixed": "A picture's reference was another of its style where there was one, else the picture itself.",
        }[reference],
        "",
        "## Data",
        "",
        *(f"- {what}: {count:,}" for what, count in counts.items() if what != "bytes"),
        f"- licences, as the data says them: {', '.join(f'{k} ({v:,})' for k, v in licences.items())}",
        f"- hash of the features: `{manifest['sha256'][:16]}`",
        "",
        "## Training",
        "",
        *(f"- {what}: {_to_text(value)}" for what, value in {**trained, **settings}.items()),
    ]
    if scores:
        lines += ["", "## Scores", "", *(f"- {what}: {value:.3f}" for what, value in scores.items())]
    return "\n".join([*lines, ""])


def _to_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
