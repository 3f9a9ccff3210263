"""Outcomes: what a finished run becomes, its pictures on disk, the meter's readings, the verdict of one made again."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from instantstyle.errors import InputError, InstantStyleError, OutputError
from instantstyle.request import Request, Result
from instantstyle.serve.errors import disk_reason
from instantstyle.serve.images import ImageFiles
from instantstyle.serve.rows import JobRow
from instantstyle.utils.images import compare_images, load_image

if TYPE_CHECKING:
    from PIL import Image

    from instantstyle.model import Model
    from instantstyle.sampling import Engine, Run

BASELINES = 256
"""Requests whose pictures without a reference the meter remembers."""
NewImage = tuple[str, int, int, str, Mapping[str, Any]]
"""Id, width, height, the words it is found by, what is known of it: what `JobStore.finish` takes."""


class Outcomes:
    """Of one model; used on the engine thread alone."""

    def __init__(self, model: "Model", files: ImageFiles) -> None:
        self._model, self._files = model, files
        self._baselines: OrderedDict[str, Sequence[Image.Image]] = OrderedDict()

    def begin_baseline(self, row: JobRow, request: Request, engine: "Engine") -> "Run | None":
        """Submit the same request without its references, where the meter is asked for and has no such pictures yet."""
        if not row.options.get("meter"):
            return None
        from instantstyle.meter import can_measure, without_reference

        if not can_measure(self._model, request):
            return None
        bare = without_reference(request)
        if bare.to_json() in self._baselines:
            return None
        try:
            return engine.submit(bare)
        except InstantStyleError:  # the meter is no reason to fail
            return None

    def record(
        self, row: JobRow, request: Request, result: Result, baseline: "Run | None"
    ) -> tuple[dict[str, Any], list[NewImage]]:
        """Keep a job's pictures: its outcome, and the rows of pictures that are files by now.

        Raises OutputError when one cannot be written; none is left then.
        """
        outcome: dict[str, Any] = {
            "seed": result.request.seed,
            "size": result.request.size,
            "seconds": round(result.seconds, 3),
            "warnings": list(result.warnings),
            "steps": result.request.steps,
        }
        if row.draft:
            drafts = [self._files.keep_draft(image) for image in result.images]
            outcome["drafts"] = [{"id": image, "place": place} for place, image in enumerate(drafts)]
            return outcome, []
        readings = self._readings(row, request, result, baseline)
        if (original := row.options.get("compare_with")) is not None:
            outcome["verdict"] = self._verdict(str(original), int(row.options.get("compare_index", 0)), result)
        about: dict[str, Any] = {
            "prompt": result.request.prompt,
            "method": result.request.method,
            "seed": result.request.seed,
            "styles": [name for each in result.request.references if (name := getattr(each.image, "name", None))],
        }
        said = (about["prompt"], about["method"], about["seed"], *about["styles"], result.request.negative)
        words = " ".join(map(str, said)).lower()
        return outcome, [
            (image, *result.images[i].size, words, {**about, "meter": readings[i] if readings else None})
            for i, image in enumerate(self._write(result))
        ]

    def _write(self, result: Result) -> list[str]:
        written: list[str] = []
        try:
            for index in range(len(result.images)):
                written.append(self._files.write(result, index))
        except OutputError as refused:
            for image in written:
                self._files.delete(image)
            raise OutputError(
                f"the picture could not be kept on the server's disk: {disk_reason(refused)}"
            ) from refused
        return written

    def _readings(self, row: JobRow, request: Request, result: Result, baseline: "Run | None") -> list[dict[str, Any]]:
        """The meter's readings, none where it was not asked for or cannot be had."""
        if not row.options.get("meter"):
            return []
        from instantstyle.meter import can_measure, measure, without_reference

        if not can_measure(self._model, request):
            return []
        key = without_reference(request).to_json()
        if baseline is not None and baseline.state == "done":
            self._baselines[key] = baseline.result().images
            while len(self._baselines) > BASELINES:
                self._baselines.popitem(last=False)
        if key not in self._baselines:
            return []
        try:
            return [
                each.as_dict() for each in measure(self._model, result.request, result.images, self._baselines[key])
            ]
        except InputError:
            return []

    def _verdict(self, image: str, index: int, result: Result) -> dict[str, Any]:
        """How a picture that was made again compares with the first."""
        before = self._files.read(image)
        if before is None:
            return {"error": "the picture it was to be compared with is gone"}
        comparison = compare_images(load_image(before), result.images[index])
        return {"identical": comparison["differing"] == 0, **comparison}


def failure_sentence(failed: BaseException) -> str:
    """Why a job failed, for one who cannot read a traceback."""
    if type(failed).__name__ == "OutOfMemoryError" or isinstance(failed, MemoryError):
        return "there is not enough memory for this: ask for fewer or smaller pictures"
    return f"{type(failed).__name__}: {' '.join(str(failed).split())[:300]} (a mistake of ours; the log says more)"
