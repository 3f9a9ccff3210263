"""`python -m instantstyle.emoji`: fetch and render every drawing set into the cache; again, it goes on where it was."""

import sys

from instantstyle.emoji.rasterize import build
from instantstyle.emoji.sources import cache_folder
from instantstyle.errors import InstantStyleError


def main() -> None:
    """Build the emoji world, a line a set.  Ends the program with a sentence and 1 when it cannot be built."""
    print(f"fetching and rendering into {cache_folder()}", flush=True)
    try:
        build(report=lambda line: print(line, flush=True))
    except (InstantStyleError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: finished sets are kept, the same command goes on with the next")
    print(f"the emoji world is in {cache_folder()}")


if __name__ == "__main__":
    main()
