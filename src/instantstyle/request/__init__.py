"""Requests and results: frozen pydantic models, JSON both ways.  No torch here.

One type is the command line's flags, the HTTP body, an evaluation task and a picture's metadata: `Request`.  A picture
inside it is not a path but the picture itself, as PNG bytes of bounded size with the hash of the file it came from:
what is generated from is exactly what is remembered.
"""

from instantstyle.request.image import MAX_IMAGE_SIZE, MAX_REFERENCE_SIZE, ImageInput, StoredImage, store_image
from instantstyle.request.request import (
    MAX_CONTENTS,
    MAX_PROMPT,
    MAX_SIDE,
    Control,
    Init,
    Request,
    StyleReference,
)
from instantstyle.request.result import GenerationMetadata, Result, output_paths, package_version, read_metadata, recall

__all__ = [
    "MAX_CONTENTS",
    "MAX_IMAGE_SIZE",
    "MAX_PROMPT",
    "MAX_REFERENCE_SIZE",
    "MAX_SIDE",
    "Control",
    "GenerationMetadata",
    "ImageInput",
    "Init",
    "Request",
    "Result",
    "StoredImage",
    "StyleReference",
    "output_paths",
    "package_version",
    "read_metadata",
    "recall",
    "store_image",
]
