"""The step loop: many requests in flight, their rows stacked in one UNet call.

A run brings its own latents, scheduler, guidance, random generator and way of attending.  All that is linear is
batched over runs, although every one may differ in prompt, references, method, seed, steps and guidance; at each
attention layer `together` hands each run its own rows.  Runs join and leave between steps.
"""

from instantstyle.engine.loop import MAX_ROWS, Engine
from instantstyle.engine.run import Progress, Run
from instantstyle.engine.samplers import SAMPLERS
from instantstyle.engine.stack import together

__all__ = ["MAX_ROWS", "SAMPLERS", "Engine", "Progress", "Run", "together"]
