"""A page's application: access in front, routes behind, and errors that say what to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles

from mos_common.errors import MosError
from mos_common.pages.access import Access, Guard
from mos_common.pages.rendering import render


def page_application(
    package: str,
    routes: Sequence[BaseRoute],
    access: Access,
    lifespan: Callable[[Starlette], AbstractAsyncContextManager[None]] | None = None,
) -> Guard:
    """Return the application of a page. Its `package` has `templates/` and `static/`.

    A `MosError` of a route becomes a page with its sentence.
    """

    def refused(request: Request, error: Exception) -> Response:
        status, said = 400, str(error)
        if isinstance(error, HTTPException):
            status, said = error.status_code, str(error.detail)
            if status == 404:
                said = "There is no such page."
        return render(request, package, "error.html", status=status, title="That did not work", said=said)

    def failed(request: Request, _error: Exception) -> Response:  # uvicorn logs the error
        said = "That is a mistake of this program; its terminal says more. Nothing was lost: go back and try again."
        return render(request, package, "error.html", status=500, title="That did not work", said=said)

    static = StaticFiles(packages=[(package, "static"), ("mos_common.pages", "static")])
    application = Starlette(
        routes=[*routes, Mount("/static", static)],
        exception_handlers={HTTPException: refused, MosError: refused, Exception: failed},
        lifespan=lifespan,
    )
    return Guard(application, access)  # outside of everything, so that errors have its headers too
