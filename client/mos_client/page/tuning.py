"""Will it fit, how long will it take; and tuning: started, paused, stopped, resumed, watched."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from mos_client.inspection.tuning_scores import newest_progress, scores_so_far
from mos_client.page.desk import Standing, standing_of
from mos_client.page.pictures import start_check, webp
from mos_client.page.showing import show
from mos_client.page.work import Job, join_words, of_concept
from mos_client.tuning.steering import Steering, Wanted
from mos_common.errors import RequestError
from mos_common.pages.actions import Sent

_MOST_STEPS = 100_000


def show_tuning(request: Request) -> Response:
    """Show the estimate, the progress and the scores, whatever of them there is."""
    standing = standing_of(request)
    if not standing.runs and standing.concept_file is None:
        start_check(standing)
    lines = [line.strip() for line in standing.check.lines]
    scores = scores_so_far(standing.state)
    values: dict[str, Any] = {"job": standing.check, "scores": scores, "wanted": Steering.of(standing.state).wanted}
    values["estimate"] = [line for line in lines if line.startswith(("memory:", "time:"))]
    values["ready"] = any(line == "nothing speaks against tuning on it" for line in lines)
    pictures = sorted(standing.session.request.images.glob("*")) if standing.has_pictures else []
    values["real"] = [path.name for path in pictures if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp")][:4]
    values["typed"] = _tune(standing).command
    values["failed"] = _tune(standing).trouble
    return show(request, "tuning.html", standing, **values)


def start(request: Request, sent: Sent) -> Response:
    """Start the tuning, or go on with it where it stopped. The server is not called."""
    standing = standing_of(request)
    session = standing.session
    if not standing.runs:
        if sent.text("steps", ""):
            session = replace(
                session, request=replace(session.request, steps=sent.number("steps", least=1, most=_MOST_STEPS))
            )
            session.save()
        Steering.of(standing.state).want(Wanted.RUN)
        _tune(standing).start(join_words(session, "--tune-only", *of_concept(session)))
    return _back(standing)


def steer(request: Request, sent: Sent) -> Response:
    """Pause, stop, or run on."""
    standing, wanted = standing_of(request), sent.text("wanted")
    if wanted not in set(Wanted):
        raise RequestError(f"{wanted[:20]!r} is none of pause, stop and run")
    Steering.of(standing.state).want(Wanted(wanted))
    return _back(standing)


def drawing(request: Request) -> Response:
    """Return one of the newest drawings that were made while tuning."""
    from mos_client.tuning.watch import drawings_in

    file = newest_progress(standing_of(request).state, ".png")
    if file is None:
        raise HTTPException(404)
    with Image.open(file) as grid:
        row = drawings_in(grid, -1)
    number = request.path_params["number"]
    if number >= len(row):
        raise HTTPException(404)
    return webp(row[number])


def _tune(standing: Standing) -> Job:
    return Job(standing.state, "tune")


def _back(standing: Standing) -> Response:
    return RedirectResponse(f"/c/{standing.name}/tuning", 303)
