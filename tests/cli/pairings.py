"""Files that do not go together, as data: what is given, how it ends, and what the sentence says.  No torch here.

`test_wrong_pairings` makes the files and gives them; the table in docs/own-models.md is generated from the
same data, so the page says what was tested.
"""

from dataclasses import dataclass

BASE = "--model SDXL --style ref.png"
BARE = "--model SDXL --method none"


@dataclass(frozen=True)
class Pairing:
    """One row."""

    flags: str
    """After `generate "a cat" --out cat.png --steps 1`; SDXL, SD15 and DREAMS stand for small models."""
    says: str
    """A part of the sentence on stderr."""
    code: int = 1


PAIRINGS: dict[str, Pairing] = {
    "an adapter of SD1.5, and SDXL": Pairing(
        f"{BASE} --adapter sd15-adapter.safetensors", "is for a UNet whose text tokens are 768 wide (family sd15)"
    ),
    "an adapter of SDXL, and SD1.5": Pairing(
        "--model SD15 --style ref.png --adapter sdxl-adapter.bin",
        "is for a UNet whose text tokens are 2048 wide (family sdxl)",
    ),
    "an adapter for ViT-H, and bigG's image encoder": Pairing(
        f"{BASE} --adapter vit-h.safetensors --image-encoder bigg",
        "trained for image embeddings 1024 wide (OpenCLIP ViT-H/14), but the image encoder gives 1280 wide (OpenCLIP "
        "ViT-bigG/14): load the encoder the adapter was trained with",
    ),
    "a Plus adapter, and an image encoder that is not its own": Pairing(
        f"{BASE} --adapter plus.safetensors --image-encoder bigg",
        "trained for hidden states 1280 wide (OpenCLIP ViT-H/14)",
    ),
    "a Plus adapter without any image encoder": Pairing(
        "--model DREAMS --style ref.png --adapter plus-dreams.safetensors --size 64",
        "has no image encoder, so it cannot look at a reference: give one that gives hidden states 1280 wide (OpenCLIP "
        "ViT-H/14) as image encoder",
        2,
    ),
    "an adapter of faces (FaceID)": Pairing(
        f"{BASE} --adapter faceid.safetensors", "FaceID adapters are not supported"
    ),
    "a style-only adapter, and the plan `all`": Pairing(
        f"{BASE} --adapter style-only.safetensors --plan all", "the plan speaks at down.1.0, down.1.1"
    ),
    "a checkpoint in one file without an adapter, and a style": Pairing(
        "--model DREAMS --style ref.png --size 64", "has no IP-Adapter, so no style can enter: load it with adapter", 2
    ),
    "content to subtract, and an adapter of another CLIP than the text's": Pairing(
        f"{BASE} --adapter vit-h.safetensors --image-encoder vit-h --content dog",
        "image embeddings are 1024 wide (OpenCLIP ViT-H/14), not one shared space: give the text encoder of the same "
        "CLIP as content encoder such as laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        2,
    ),
    "a style card of another image encoder": Pairing(
        "--model SDXL --style ink.style.safetensors", "was made for another image encoder"
    ),
    "a LoRA of SD1.5, and SDXL": Pairing(
        f"{BARE} --lora sd15-lora.safetensors", "is for a UNet whose text tokens are 768 wide (family sd15)"
    ),
    "a LoRA of Flux": Pairing(
        f"{BARE} --lora flux-lora.safetensors", "is for a diffusion transformer such as Flux or SD 3"
    ),
    "a LoHa where a LoRA is wanted": Pairing(f"{BARE} --lora loha.safetensors", "is no plain LoRA but LoHa"),
    "a few-step preset of SDXL, and SD1.5": Pairing(
        "--model SD15 --method none --preset lightning-4",
        "the preset 'lightning-4' is for sdxl, and this model is of family sd15",
        0,
    ),
    "a LoRA for a second text encoder, and SD1.5": Pairing(
        "--model SD15 --method none --lora second.safetensors",
        "changes the text_encoder_2, which this model does not have",
    ),
    "a ControlNet of SD1.5, and SDXL": Pairing(
        f"{BARE} --control ref.png --control-model sd15-control.safetensors",
        "is for family sd15: it has text tokens of width 768 where this model, of family sdxl, needs",
    ),
    "a T2I-Adapter as ControlNet": Pairing(
        f"{BARE} --control ref.png --control-model t2i.safetensors", "is a T2I-Adapter, which is not supported"
    ),
    "an IP-Adapter as ControlNet": Pairing(
        f"{BARE} --control ref.png --control-model vit-h.safetensors", "is an IP-Adapter: give it as adapter"
    ),
    "a picture to follow, and no ControlNet": Pairing(
        f"{BARE} --control ref.png", "has no ControlNet, so no picture can be followed: load it with controls", 2
    ),
    "a LoRA as model": Pairing("--model sd15-lora.safetensors", "is a LoRA: give it as lora"),
    "a ControlNet as model": Pairing("--model sd15-control.safetensors", "is a ControlNet: give it as a control"),
    "Flux as model": Pairing("--model flux.safetensors", "is of Flux"),
    "SDXL's refiner as model": Pairing("--model refiner.safetensors", "is SDXL's refiner, which takes no style"),
    "a checkpoint without its VAE and text encoder": Pairing(
        "--model unet-only.safetensors", "has a UNet and no a VAE, no CLIP's text encoder: give the whole checkpoint"
    ),
    "a folder that lacks a text encoder": Pairing("--model one-tower --method none", "numbers a token, and the UNet"),
    "a UNet that edits by instruction (eight channels)": Pairing(
        "--model edits --method none", "this UNet reads 8 channels and predicts 4: it wants something beside", 2
    ),
    "an inpainting UNet without a mask": Pairing(
        "--model inpainting --method none",
        "is made for inpainting (9 channels) and there is no mask, so the whole picture is painted anew: give a "
        "picture and a mask (--init, --mask), or a base model",
        0,
    ),
    "a truncated file": Pairing(
        f"{BASE} --adapter short.safetensors", "short.safetensors is truncated, damaged, or no weight file at all"
    ),
    "a page that was saved instead of a file": Pairing("--model page.safetensors", "is a web page and not the weights"),
    "a pickle with code in it": Pairing(
        f"{BASE} --adapter code.bin", "holds something other than tensors, which could run code, and is not loaded"
    ),
    "weights that are no numbers (NaN)": Pairing(
        f"{BASE} --adapter nan.safetensors", "holds NaN or infinity: the file is damaged, or its training diverged"
    ),
}


def table() -> str:
    """The rows as Markdown."""
    lines = ["| what is given | the sentence says | exit code |", "|---|---|---|"]
    lines += [f"| {what} | ... {row.says} ... | {row.code} |" for what, row in PAIRINGS.items()]
    return "\n".join(lines) + "\n"
