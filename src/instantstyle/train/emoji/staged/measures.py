"""What drawn pictures at 128 px are measured by beside the judges: how crisp edges are."""

import cv2
import numpy as np
import numpy.typing as npt

_STEEPEST = 0.05
"""Share of a picture's pixels that count as its edges."""


def edge_sharpness(pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """For each picture [n, h, w, 3] the mean slope of its steepest pixels: levels of luminance a pixel (Sobel / 8).

    Blur lowers it, as does low contrast: compare only with pictures of the same things in the same looks.
    """
    found = np.empty(len(pictures))
    for i, picture in enumerate(pictures):
        grey = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY).astype(np.float32)
        across, down = cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)
        slopes = np.sort((np.hypot(across, down) / 8).ravel())
        found[i] = slopes[-max(1, int(_STEEPEST * slopes.size)) :].mean()
    return found
