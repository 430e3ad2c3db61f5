"""The round, and the concept before and after fusion."""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response

from mos_client.federation.news import read_news
from mos_client.inspection.own_scores import scores_in
from mos_client.page.compared import compare, compared
from mos_client.page.desk import standing_of
from mos_client.page.leaving import take_part
from mos_client.page.showing import show
from mos_client.page.work import Job, end_join
from mos_common.errors import RequestError
from mos_common.pages.actions import Sent


def show_round(request: Request) -> Response:
    """Show who is in and waited for, and how the concept survived in every model."""
    standing = standing_of(request)
    models = [{"name": model.name, "scores": scores_in(model, standing.token)} for model in standing.models]
    values: dict[str, Any] = {"news": read_news(standing.state), "models": models, "job": Job(standing.state, "join")}
    values["compared"] = compared(standing)
    return show(request, "round.html", standing, **values)


def change(request: Request, sent: Sent) -> Response:
    """Stop taking part for now, or take part again."""
    standing, wanted = standing_of(request), sent.text("wanted")
    if wanted == "stop":
        end_join(standing.state)
    elif not standing.has_agreed:
        raise RequestError("agree first to what leaves this machine")
    else:
        take_part(standing)
    return RedirectResponse(f"/c/{standing.name}/round", 303)


def draw_both(request: Request, sent: Sent) -> Response:
    """Draw the concept before and after fusion, with the same words and seeds."""
    standing = standing_of(request)
    compare(standing)
    return RedirectResponse(f"/c/{standing.name}/round", 303)


def drawn(request: Request) -> Response:
    """Return the drawings of one side."""
    side = request.path_params["side"]
    files = {each.name: each.file for each in compared(standing_of(request))}
    if side not in files or not files[side].is_file():
        raise HTTPException(404)
    return FileResponse(files[side], media_type="image/png")
