"""Depth models of transformers: a picture of how near everything is, for the controls that follow depth."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from instantstyle.errors import WeightsError
from instantstyle.weights.strict_load import silence_progress


@dataclass(frozen=True, eq=False)
class DepthEstimator:
    """A loaded depth model with its preprocessing."""

    net: Any
    processor: Any
    spec: str
    device: torch.device
    """Where it computes; the parameters of an offloaded network are elsewhere."""

    @torch.no_grad()
    def estimate(self, picture: Image.Image) -> UInt8[np.ndarray, "height width"]:
        """Near is white and far is black, from the nearest to the farthest thing in the picture.

        Models of relative depth (MiDaS, Depth Anything) give more for what is nearer; those that say of themselves that
        they measure metres give less, and are turned round.
        """
        pixels = self.processor(images=picture, return_tensors="pt").to(self.device, self.net.dtype)
        predicted = self.processor.post_process_depth_estimation(self.net(**pixels), [picture.size[::-1]])
        near = predicted[0]["predicted_depth"].float().cpu().numpy().astype(np.float64)
        if getattr(self.net.config, "depth_estimation_type", "relative") == "metric":
            near = -near
        spread = near.max() - near.min()
        return ((near - near.min()) / (spread if spread > 0 else 1.0) * 255).astype(np.uint8)


def load_depth(spec: str | Path, device: torch.device) -> DepthEstimator:
    """A depth model from a folder or a hub id, in float32.  Raises WeightsError when there is none."""
    transformers: Any = importlib.import_module("transformers")

    with silence_progress():
        try:
            net, info = transformers.AutoModelForDepthEstimation.from_pretrained(
                str(spec), output_loading_info=True, dtype=torch.float32
            )
            processor = transformers.AutoImageProcessor.from_pretrained(str(spec), backend="pil")
        except Exception as e:  # a dozen kinds, none of them documented
            reason = (str(e).strip().splitlines() or [repr(e)])[0]
            raise WeightsError(
                f"cannot load a depth model from {str(spec)!r}: {reason[:200]}; give a folder or a hub id such as "
                "depth-anything/Depth-Anything-V2-Small-hf"
            ) from e
    if missing := sorted(info.get("missing_keys") or ()):
        raise WeightsError(f"the depth model {spec} lacks {len(missing)} weights: {', '.join(missing[:3])}")
    return DepthEstimator(net.to(device).requires_grad_(False).eval(), processor, str(spec), device)
