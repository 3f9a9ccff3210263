"""What is compared with diffusers on one and the same files, as data; no torch here.

`test_combinations` draws every base x adapter x sampler both ways; docs/own-models.md has the table
from the same data.
"""

BASES = {
    "sdxl": "SDXL, a folder",
    "sd15": "SD1.5, a folder",
    "sdxl-file": "SDXL, one file",
    "sd15-file": "SD1.5, one file",
}
ADAPTERS = {
    "none": "no adapter",
    "base": "base adapter, all blocks",
    "style": "base adapter, style blocks",
    "slim": "style-only file",
    "plus": "Plus adapter, all blocks",
}
SAMPLERS = ("ddim", "euler", "dpm++")

COMBINATIONS = (
    *((base, adapter, sampler) for base in ("sdxl", "sd15") for adapter in ADAPTERS for sampler in SAMPLERS),
    *((base, "none", sampler) for base in ("sdxl-file", "sd15-file") for sampler in SAMPLERS),
    *((base, "style", "euler") for base in ("sdxl-file", "sd15-file")),
)
"""Base, adapter and sampler of each comparison."""

OTHERS = {
    "ControlNet, alone, several, in a window, with a style": "test_controlnet.py",
    "a picture to begin from; a part painted anew; inpainting UNets; with a style": "test_init.py",
    "LoRAs in five spellings, on UNet and text encoders, with a style": "test_lora.py",
    "several references, masks by region": "test_regions.py",
    "guidance, negative prompts, several pictures, subtraction, UniPC, LCM": "test_pipeline.py",
}
"""What else is compared, and where."""


def table() -> str:
    """The comparisons as Markdown."""
    lines = [f"| base | adapter | {' | '.join(SAMPLERS)} |", "|---|---|" + "---|" * len(SAMPLERS)]
    for base, shown in BASES.items():
        for adapter, what in ADAPTERS.items():
            marks = ["equal" if (base, adapter, sampler) in COMBINATIONS else "" for sampler in SAMPLERS]
            if any(marks):
                lines.append(f"| {shown} | {what} | {' | '.join(marks)} |")
    rest = [f"- {what}: `tests/oracle/{where}`" for what, where in OTHERS.items()]
    return "\n".join([*lines, "", "Compared beside these, for SDXL and SD1.5:", "", *rest]) + "\n"
