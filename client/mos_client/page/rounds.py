"""The round, and the concept before and after fusion."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from mos_client.federation.news import read_news
from mos_client.page.desk import Standing, standing_of
from mos_client.page.leaving import take_part
from mos_client.page.showing import show
from mos_client.page.work import Job, end_join
from mos_common.errors import MosError, RequestError
from mos_common.model_files import parse_manifest, read_manifest
from mos_common.pages.actions import Sent


def show_round(request: Request) -> Response:
    """Show who is in and waited for, and how the concept survived in every model."""
    standing = standing_of(request)
    models = [{"name": model.name, "scores": _identity(standing, model)} for model in standing.models]
    job = Job(standing.state, "join")
    return show(request, "round.html", standing, news=read_news(standing.state), models=models, job=job)


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


def concepts_of(model: Any) -> list[dict[str, Any]]:
    """Return the concepts that a verified model's manifest names."""
    try:
        concepts = parse_manifest(model, read_manifest(model)).get("concepts")
    except MosError:
        return []
    return [each for each in concepts if isinstance(each, dict)] if isinstance(concepts, list) else []


def _identity(standing: Standing, model: Any) -> dict[str, float] | None:
    """Return the four scores of the own concept in a model, if it is in it and was scored."""
    mine = next((each for each in concepts_of(model) if each.get("token") == standing.token), None)
    identity = mine.get("identity") if mine else None
    return identity if isinstance(identity, dict) else None
