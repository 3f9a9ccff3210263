"""Edge sharpness of images at 128 px."""

import cv2
import numpy as np
import numpy.typing as npt

_EDGE_SHARE = 0.05
"""Share of an image's pixels, those of the largest gradients, that count as edges."""


def edge_sharpness(pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Mean gradient magnitude [n] of the edge pixels of images [n, h, w, 3] uint8: grey levels a pixel (Sobel / 8).

    Blur and low contrast lower it: compare only images of the same concepts in the same styles.
    """
    sharpness = np.empty(len(pictures))
    for i, picture in enumerate(pictures):
        grey = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY).astype(np.float32)
        dx, dy = cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)
        slopes = np.sort((np.hypot(dx, dy) / 8).ravel())
        sharpness[i] = slopes[-max(1, int(_EDGE_SHARE * slopes.size)) :].mean()
    return sharpness
