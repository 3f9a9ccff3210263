"""What waits for a GPU: `python -m gpu.NAME` from the repository's root; QUEUE.md says which, for how long and why."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(folder) for folder in (ROOT / "src", ROOT / "tests") if str(folder) not in sys.path]
