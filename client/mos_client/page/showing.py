"""Render a step with what every step shows: the way, and where one is on it."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mos_client.page.desk import STEPS, Standing
from mos_common.pages.rendering import render

PACKAGE = "mos_client.page"


def show(request: Request, template: str, standing: Standing | None = None, **values: Any) -> Response:
    """Return a page of the participant."""
    step = template.removesuffix(".html")
    done = standing.done() if standing else set()
    known = {"standing": standing, "steps": STEPS, "step": step, "done": done, "title": STEPS.get(step, "Start")}
    return render(request, PACKAGE, template, **(known | values))
