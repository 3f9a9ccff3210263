"""`python -m instantstyle.emoji`: fetch and render every icon set into the cache; resumable."""

import sys

from instantstyle.emoji.rasterize import build_emoji_world
from instantstyle.emoji.sources import cache_folder
from instantstyle.errors import InstantStyleError


def main() -> None:
    """Build the emoji world, printing a line a set.  Exits with 1 and a sentence when it cannot be built."""
    print(f"fetching and rendering into {cache_folder()}", flush=True)
    try:
        build_emoji_world(log=lambda line: print(line, flush=True))
    except (InstantStyleError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: finished sets are kept, the same command goes on with the next")
    print(f"the emoji world is in {cache_folder()}")


if __name__ == "__main__":
    main()
