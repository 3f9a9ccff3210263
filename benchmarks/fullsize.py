# pyright: reportPrivateImportUsage=false

"""A checkpoint of SDXL's full size in random bfloat16: load time and peak memory, ours and diffusers', two UNet steps.

    python benchmarks/fullsize.py --folder DIR [--small] [--remove] [--out FILE]

Writes the files once (7.7 GB; `--small` tries the same on a small model), then measures each side in a process of its
own, one after the other, on the same files, which are put out of the page cache before each.  The first step reads
what loading has not; the second is computing alone.  Both sides get the same inputs; their predictions are compared.

Peak memory is the process's own highest resident memory, weights that are mapped from their files counted as they are
touched; what is private at the end could not be dropped and read again.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
SIDES = ("instantstyle", "diffusers")
DISK = 8.0
"""GB that the files need."""
LIMIT = 900
"""Seconds that one side may take."""
INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "force_zeros_for_empty_prompt": True,
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "image_encoder": [None, None],
    "feature_extractor": [None, None],
}


def write(folder: Path, *, small: bool) -> None:
    """The model's folder in diffusers' layout, with an adapter, random weights in bfloat16; its index comes last."""
    sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]
    import diffusers
    import transformers
    from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

    import checkpoints
    from instantstyle.families import SDXL
    from instantstyle.weights.clip_vocab import clip_vocabulary
    from instantstyle.weights.unet_config import unet_config

    with torch.device("meta"):
        nets = checkpoints.networks("sdxl", (checkpoints.SMALL if small else checkpoints.FULL)["sdxl"])
    config = unet_config(dict(nets["unet"].config))
    if not small and config != SDXL.unet:
        sys.exit(f"the UNet to be written is not SDXL's: {config}")
    folder.mkdir(parents=True, exist_ok=True)
    noise = _noise()
    for part in list(nets):
        net = nets.pop(part).to(torch.bfloat16).to_empty(device="cpu")
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                _fill(tensor, noise) if "norm" not in name else tensor.fill_(float(name.endswith("weight")))
        net.save_pretrained(folder / part)
        del net
    vocabulary, merges = clip_vocabulary()
    for suffix in ("", "_2"):
        tokenizer: Any = transformers.CLIPTokenizer
        tokenizer(vocab=vocabulary, merges=merges, model_max_length=77).save_pretrained(folder / f"tokenizer{suffix}")
    scheduler: Any = diffusers.EulerDiscreteScheduler
    scheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).save_pretrained(folder / "scheduler")
    width, embed = config.cross_attention_dim, config.pooled_projection_dim or 0
    shapes: dict[str, tuple[int, ...]] = {
        "image_proj.proj.weight": (4 * width, embed),
        "image_proj.proj.bias": (4 * width,),
        "image_proj.norm.weight": (width,),
        "image_proj.norm.bias": (width,),
    }
    for n, site in enumerate(config.sites):
        if site.kind == "cross":
            wide = config.block_out_channels[site.resolution_level(len(config.block_out_channels))]
            shapes |= {f"ip_adapter.{n}.to_{kind}_ip.weight": (wide, width) for kind in "kv"}
    tensors = {name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    for tensor in tensors.values():
        _fill(tensor, noise)
    tensors["image_proj.norm.weight"].fill_(1.0)
    save_file(tensors, folder / "ip_adapter.safetensors")
    (folder / "model_index.json").write_text(json.dumps(INDEX))


def _noise() -> Tensor:
    return (0.02 * torch.randn(2**22 - 3, generator=torch.Generator().manual_seed(0))).bfloat16()


def _fill(tensor: Tensor, noise: Tensor) -> None:
    """Fill with the same random numbers repeated, since drawing two thousand million of them takes minutes."""
    flat = tensor.view(-1)
    for start in range(0, len(flat), len(noise)):
        part = flat[start : start + len(noise)]
        part.copy_(noise[: len(part)])


def inputs(width: int, pooled: int, latent: int) -> dict[str, Tensor]:
    """The inputs of both sides: one row of latents, its text and image embeddings, 512 x 512 pixels."""
    make = torch.Generator().manual_seed(1)
    shapes = {"latents": (1, 4, latent, latent), "context": (1, 77, width), "pooled": (1, pooled), "image": (1, pooled)}
    random = {name: torch.randn(shape, generator=make).bfloat16() for name, shape in shapes.items()}
    return random | {"sizes": torch.tensor([[512.0, 512, 0, 0, 512, 512]])}


def measure(side: str, folder: Path, latent: int) -> dict[str, float]:
    """Load, and take two steps of the UNet; seconds and GiB.  The prediction is left beside the model."""
    began = time.perf_counter()
    if side == "instantstyle":
        sys.path[:0] = [str(ROOT / "src")]
        from instantstyle.blocks import BlockPlan
        from instantstyle.loading import load
        from instantstyle.methods.image_prompts import ImagePrompt
        from instantstyle.methods.instantstyle import add_image_prompt
        from instantstyle.networks.attention import plain

        model = load(folder, dtype="bfloat16", device="cpu")
        config = model.unet.config
        loaded = time.perf_counter()
        given = inputs(config.cross_attention_dim, config.pooled_projection_dim or 0, latent)

        def step() -> Tensor:
            adapter, plan = model.get_adapter(), BlockPlan({"up.0.1": 1.0})
            image = adapter.project_kv(adapter.image_tokens(given["image"]), plan, config)
            prompt = ImagePrompt(image, {site: plan.scale(site) for site in image})
            attend, text = add_image_prompt(plain, prompt), model.unet.precompute_kv(given["context"])
            time_now = torch.tensor([500.0])
            return model.unet(given["latents"], time_now, text, given["pooled"], given["sizes"], attend=attend)
    else:
        import diffusers

        pipeline: Any = diffusers.StableDiffusionXLPipeline
        pipe = pipeline.from_pretrained(folder, torch_dtype=torch.bfloat16)
        pipe.load_ip_adapter(folder, subfolder="", weight_name="ip_adapter.safetensors", image_encoder_folder=None)
        pipe.set_ip_adapter_scale({"up": {"block_0": [0.0, 1.0, 0.0]}})
        loaded = time.perf_counter()
        given = inputs(pipe.unet.config.cross_attention_dim, pipe.text_encoder_2.config.projection_dim, latent)
        added = {"text_embeds": given["pooled"], "time_ids": given["sizes"], "image_embeds": [given["image"][:, None]]}

        def step() -> Tensor:
            return pipe.unet(given["latents"], torch.tensor(500.0), given["context"], added_cond_kwargs=added).sample

    with torch.no_grad():
        step()
        first = time.perf_counter()
        prediction = step()
        second = time.perf_counter()
    torch.save(prediction.float(), folder / f".{side}.pt")
    return {"load": loaded - began, "first": first - loaded, "second": second - first, **_memory()}


def _memory() -> dict[str, float]:
    """GiB of this process alone: getrusage's maximum would be the parent's too, whose memory a fork begins with."""
    status = Path("/proc/self/status")
    if not status.exists():
        return {"peak": float("nan"), "private": float("nan")}
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return {name: int(lines[key].split()[0]) / 2**20 for name, key in (("peak", "VmHWM"), ("private", "RssAnon"))}


def drop_page_cache(folder: Path) -> None:
    """Drop a folder's files from the page cache, where the system supports it."""
    for path in folder.rglob("*"):
        if path.is_file() and hasattr(os, "posix_fadvise"):
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def relative_difference(folder: Path) -> float:
    """The difference of the two predictions relative to diffusers', by root mean squares."""
    ours, theirs = (torch.load(folder / f".{side}.pt", weights_only=True) for side in SIDES)
    return float((ours - theirs).square().mean().sqrt() / theirs.square().mean().sqrt())


def _run(given: argparse.Namespace, what: str) -> str:
    """Run one part in a process of its own; returns the last line it printed."""
    command = [sys.executable, __file__, "--folder", str(given.folder), "--part", what]
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)
    try:
        done = subprocess.run(
            [*command, *(["--small"] if given.small else [])], capture_output=True, text=True, timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        sys.exit(f"{what} took more than {LIMIT} s")
    if done.returncode:
        sys.exit(f"{what} failed ({done.returncode}):\n{done.stderr[-2000:]}")
    return (done.stdout.strip().splitlines() or [""])[-1]


def main(argv: Sequence[str] | None = None) -> None:
    """Both sides, as a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="where the files are, or are written")
    parser.add_argument("--small", action="store_true", help="a small model: whether all of this runs")
    parser.add_argument("--remove", action="store_true", help="remove the folder afterwards")
    parser.add_argument("--out", type=Path, help="write the table here too")
    parser.add_argument("--part", choices=("write", *SIDES), help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.part == "write":
        write(given.folder, small=given.small)
        return
    if given.part:
        print(json.dumps(measure(given.part, given.folder, 8 if given.small else 64)))
        return
    given.folder.mkdir(parents=True, exist_ok=True)
    if not (given.folder / "model_index.json").is_file():
        free = shutil.disk_usage(given.folder).free / 1e9
        if not given.small and free < DISK:
            sys.exit(f"the files need {DISK:g} GB, and {free:.1f} are free at {given.folder}")
        _run(given, "write")
    rows: list[str] = []
    for side in SIDES:
        drop_page_cache(given.folder)
        result = json.loads(_run(given, side))
        seconds = " | ".join(f"{result[name]:.1f}" for name in ("load", "first", "second"))
        rows.append(f"| {side} | {seconds} | {result['peak']:.2f} | {result['private']:.2f} |")
    size = "small" if given.small else "full size, 512 x 512 pixels"
    table = f"SDXL, {size}, random bfloat16, style block, UNet steps of one row; {torch.get_num_threads()} threads, "
    table += f"{platform.machine()}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}. Loading counts imports "
    table += "but torch's; files out of the page cache.\n"
    table += f"The predictions differ by {relative_difference(given.folder):.1e} of their size.\n\n"
    table += "| side | load s | first step s | second step s | peak GiB | private GiB at the end |\n"
    table += "|---|---|---|---|---|---|\n" + "\n".join(rows) + "\n"
    if given.out:
        given.out.write_text(table)
    print(table)
    if given.remove:
        shutil.rmtree(given.folder)


if __name__ == "__main__":
    main()
