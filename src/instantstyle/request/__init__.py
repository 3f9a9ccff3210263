"""What is asked for and what comes back, as frozen values that survive JSON.  No torch here.

One type is the command line's flags, the HTTP body, an evaluation case and a picture's metadata: `Request`.  A picture
inside it is not a path but the picture itself, bounded and as PNG bytes, with the hash of the file it came from: what
is generated from is exactly what is remembered.
"""

from instantstyle.request.image import PICTURE_SIDE, REFERENCE_SIDE, Picture, PictureLike, remember
from instantstyle.request.request import (
    MAX_CONTENTS,
    MAX_PROMPT,
    MAX_SIDE,
    Control,
    Init,
    Reference,
    Request,
    StyleReference,
)
from instantstyle.request.result import Memory, Result, numbered, recall, version

__all__ = [
    "MAX_CONTENTS",
    "MAX_PROMPT",
    "MAX_SIDE",
    "PICTURE_SIDE",
    "REFERENCE_SIDE",
    "Control",
    "Init",
    "Memory",
    "Picture",
    "PictureLike",
    "Reference",
    "Request",
    "Result",
    "StyleReference",
    "numbered",
    "recall",
    "remember",
    "version",
]
