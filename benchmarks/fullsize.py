# pyright: reportPrivateImportUsage=false

"""A checkpoint of SDXL's full size in random bfloat16: load time and peak memory, ours and diffusers', one UNet step.

    python benchmarks/fullsize.py --folder DIR [--small] [--out FILE]

Writes the files once (about 8 GB; `--small` tries the same on a small model), then measures each side in a process of
its own, one after the other, on the same files.  Peak memory is the process's own peak of resident memory, which counts
mapped pages of weights as they are touched.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
SIDES = ("instantstyle", "diffusers")


def write(folder: Path, *, small: bool) -> None:
    """The model's folder in diffusers' layout, with an adapter, random weights in bfloat16.  What is there is kept."""
    if (folder / "model_index.json").is_file():
        return
    sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]
    import diffusers
    import transformers
    from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

    import checkpoints
    from instantstyle.families import SDXL
    from instantstyle.weights.layout import unet_config

    folder.mkdir(parents=True, exist_ok=True)
    torch.set_default_dtype(torch.bfloat16)
    try:
        sizes = (checkpoints.SMALL if small else checkpoints.FULL)["sdxl"]
        for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
            with torch.device("meta"):
                net = checkpoints.networks("sdxl", sizes)[part]
            net = net.to_empty(device="cpu").to(torch.bfloat16)
            for name, tensor in net.state_dict().items():
                if tensor.is_floating_point():
                    tensor.normal_(std=0.02) if "norm" not in name else tensor.fill_(float(name.endswith("weight")))
            net.save_pretrained(folder / part)
            del net
    finally:
        torch.set_default_dtype(torch.float32)
    from instantstyle.weights.vocabulary import clip_vocabulary

    vocabulary, merges = clip_vocabulary()
    for suffix in ("", "_2"):
        tokenizer: Any = transformers.CLIPTokenizer
        tokenizer(vocab=vocabulary, merges=merges, model_max_length=77).save_pretrained(folder / f"tokenizer{suffix}")
    scheduler: Any = diffusers.EulerDiscreteScheduler
    scheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).save_pretrained(folder / "scheduler")
    config = unet_config(json.loads((folder / "unet/config.json").read_text()))
    width, embed = config.context_dim, config.pooled_dim or 0
    tensors = {"image_proj.proj.weight": torch.randn(4 * width, embed), "image_proj.proj.bias": torch.zeros(4 * width)}
    tensors |= {"image_proj.norm.weight": torch.ones(width), "image_proj.norm.bias": torch.zeros(width)}
    for n, site in enumerate(config.sites):
        if site.kind == "cross":
            wide = config.channels[site.level(len(config.channels))]
            tensors |= {f"ip_adapter.{n}.to_{kind}_ip.weight": 0.02 * torch.randn(wide, width) for kind in "kv"}
    save_file({name: t.bfloat16() for name, t in tensors.items()}, folder / "ip_adapter.safetensors")
    assert SDXL.unet == config or small
    index = {
        "_class_name": "StableDiffusionXLPipeline",
        "force_zeros_for_empty_prompt": True,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        **{f"text_encoder{s}": ["transformers", f"CLIPTextModel{'WithProjection' * bool(s)}"] for s in ("", "_2")},
        **{f"tokenizer{s}": ["transformers", "CLIPTokenizer"] for s in ("", "_2")},
        "image_encoder": [None, None],
        "feature_extractor": [None, None],
    }
    (folder / "model_index.json").write_text(json.dumps(index))


def measure(side: str, folder: Path, latent: int) -> dict[str, float]:
    """Load, and take one step of the UNet; seconds and GiB."""
    began = time.perf_counter()
    if side == "instantstyle":
        sys.path[:0] = [str(ROOT / "src")]
        from instantstyle.blocks import BlockPlan
        from instantstyle.methods.image_prompt import image_prompt
        from instantstyle.model import load
        from instantstyle.nets.attention import plain

        model = load(folder, dtype="bfloat16", device="cpu")
        loaded = time.perf_counter()
        context = torch.randn(1, 77, model.unet.config.context_dim, dtype=torch.bfloat16)
        pooled = torch.randn(1, model.unet.config.pooled_dim or 0, dtype=torch.bfloat16)
        sizes = torch.tensor([[512.0, 512, 0, 0, 512, 512]])
        with torch.no_grad():
            adapter, plan = model.need_adapter(), BlockPlan({"up.0.1": 1.0})
            embedding = torch.randn(1, adapter.embed_dim, dtype=torch.bfloat16)
            image = adapter.read(adapter.tokens(embedding), plan, model.unet.config)
            latents = torch.randn(1, 4, latent, latent, dtype=torch.bfloat16)
            attend = image_prompt(plain, plan, image, None)
            model.unet(latents, torch.tensor([500.0]), model.unet.read(context), pooled, sizes, attend=attend)
    else:
        import diffusers

        pipeline: Any = diffusers.StableDiffusionXLPipeline
        pipe = pipeline.from_pretrained(folder, torch_dtype=torch.bfloat16)
        pipe.load_ip_adapter(folder, subfolder="", weight_name="ip_adapter.safetensors", image_encoder_folder=None)
        pipe.set_ip_adapter_scale({"up": {"block_0": [0.0, 1.0, 0.0]}})
        loaded = time.perf_counter()
        wide, pooled_dim = pipe.unet.config.cross_attention_dim, pipe.text_encoder_2.config.projection_dim
        with torch.no_grad():
            pipe.unet(
                torch.randn(1, 4, latent, latent, dtype=torch.bfloat16),
                torch.tensor(500.0),
                torch.randn(1, 77, wide, dtype=torch.bfloat16),
                added_cond_kwargs={
                    "text_embeds": torch.randn(1, pooled_dim, dtype=torch.bfloat16),
                    "time_ids": torch.tensor([[512.0, 512, 0, 0, 512, 512]]),
                    "image_embeds": [torch.randn(1, 1, pooled_dim, dtype=torch.bfloat16)],
                },
            )
    stepped = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"load": loaded - began, "step": stepped - loaded, "peak": peak}


def main() -> None:
    """Both sides, as a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--small", action="store_true", help="a small model: whether all of this runs")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--side", choices=SIDES)
    given = parser.parse_args()
    if given.side:
        print(json.dumps(measure(given.side, given.folder, 8 if given.small else 64)))
        return
    # Written in a process of its own too: its memory is no side's.
    if not (given.folder / "model_index.json").is_file():
        write(given.folder, small=given.small)
    rows: list[str] = []
    for side in SIDES:
        command = [sys.executable, __file__, "--folder", str(given.folder), "--side", side]
        done = subprocess.run([*command, *(["--small"] if given.small else [])], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{side} failed:\n{done.stderr[-2000:]}")
        found = json.loads(done.stdout.strip().splitlines()[-1])
        rows.append(f"| {side} | {found['load']:.1f} | {found['step']:.1f} | {found['peak']:.2f} |")
    size = "small" if given.small else "full size, 512 x 512 pixels"
    table = f"SDXL, {size}, random bfloat16, style block, one UNet step of one row; {torch.get_num_threads()} threads, "
    table += f"{platform.machine()}, torch {torch.__version__}.\n\n"
    table += "| side | load s | step s | peak GiB |\n|---|---|---|---|\n"
    table += "\n".join(rows) + "\n"
    if given.out:
        given.out.write_text(table)
    print(table)


if __name__ == "__main__":
    main()
