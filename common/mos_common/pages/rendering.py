"""Templates: everything a stranger wrote is text, and a value that is missing is an error."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse

from mos_common.pages import curves, formats
from mos_common.pages.access import visitor_of
from mos_common.release import RELEASE
from mos_common.texts import visible


@cache
def templates_of(package: str) -> Environment:
    """Return the templates of a page's package, above the ones that all pages share."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("mos_common.pages")]),
        autoescape=True,  # whatever a template's name ends with
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "size": formats.size,
        "duration": formats.duration,
        "ago": formats.ago,
        "moment": formats.moment,
        "machine_moment": formats.machine_moment,
        "share": formats.share,
        "score": formats.score,
        "visible": visible,
        "polyline": curves.polyline,
        "smoothed": curves.smoothed,
    }
    environment.globals["release"] = RELEASE
    return environment


def render(request: Request, package: str, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    """Return a page. Templates see `values`, `visitor` and `here`, the address of the request."""
    drawn = templates_of(package).get_template(template)
    html = drawn.render(visitor=visitor_of(request.scope), here=request.url.path, **values)
    return HTMLResponse(html, status_code=status)
