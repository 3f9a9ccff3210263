"""The step loop: many requests in flight, their rows stacked in one call of the denoiser.

A run brings its own latents, scheduler, guidance, random generator and way of attending.  All that is linear is
batched over runs, although every one may differ in prompt, references, method, seed, steps and guidance; at each
attention layer `route_attention` hands each run its own rows.  Runs join and leave between steps.
"""

from instantstyle.sampling.batch import route_attention
from instantstyle.sampling.engine import MAX_BATCH_ROWS, Engine
from instantstyle.sampling.resolve import resolve
from instantstyle.sampling.run import Progress, Run
from instantstyle.sampling.schedulers import SAMPLERS

__all__ = ["MAX_BATCH_ROWS", "SAMPLERS", "Engine", "Progress", "Run", "resolve", "route_attention"]
