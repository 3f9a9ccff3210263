"""generate: one request to pictures; an engine with one run."""

from collections.abc import Callable

from instantstyle.model import Model
from instantstyle.request import Request, Result
from instantstyle.sampling import Engine, Progress


def generate(model: Model, request: Request, *, progress: Callable[[Progress], None] | None = None) -> Result:
    """Make the pictures of a request; `progress` is called after each step, those of the preparation among them.

    Raises InputError when the request does not fit the model or the method.  Whatever `progress` raises ends the run.
    """
    run = Engine(model).submit(request)
    for step in run:
        if progress is not None:
            progress(step)
    return run.result()
