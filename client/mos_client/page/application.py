"""The participant's page as one application, and serving it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from mos_client.page import drawing, leaving, pictures, rounds, start, tuning
from mos_client.page.desk import Desk, standing_of
from mos_client.page.showing import PACKAGE
from mos_common.pages.access import Access, Guard, Role, new_token
from mos_common.pages.actions import action
from mos_common.pages.application import page_application
from mos_common.pages.serving import address_of, hosts_of, listen, open_browser, server_of

_UPLOAD_BYTES, _MOST_FILES = 512 << 20, 300
_DRAWING_BYTES = 32 << 20


def serve_page(
    home: Path, state: Path | None, kit: Path | None, *, port: int, browser: bool, say: Callable[[str], None]
) -> None:
    """Serve the page until it is interrupted. What it has started runs on.

    Raises:
        NetworkError: the port is taken.

    """
    token = new_token()
    with closing(listen(port)) as listener:
        access = Access(hosts_of(listener), {token: Role.ACT})
        address = address_of(listener, token)
        say(f"the page is at {address}")
        say("Ctrl-C closes it; what it has started runs on")
        if browser:
            open_browser(address, say)
        server_of(participant_page(Desk(home, state, kit), access)).run(sockets=[listener])


def participant_page(desk: Desk, access: Access) -> Guard:
    """Return the application."""
    page_of = "/c/{name}"
    routes = [
        Route("/", start.show_start),
        Route("/begin", action(start.begin, max_files=1), methods=["POST"]),
        Route(page_of, _first_step),
        Route(f"{page_of}/pictures", pictures.show_pictures),
        Route(
            f"{page_of}/pictures/add",
            action(pictures.add, max_bytes=_UPLOAD_BYTES, max_files=_MOST_FILES),
            methods=["POST"],
        ),
        Route(f"{page_of}/pictures/captions", action(pictures.save_captions), methods=["POST"]),
        Route(f"{page_of}/pictures/remove", action(pictures.remove), methods=["POST"]),
        Route(f"{page_of}/pictures/sheet", pictures.sheet),
        Route(f"{page_of}/pictures/one/{{picture}}", pictures.thumbnail),
        Route(f"{page_of}/pictures/used/{{number:int}}", pictures.used),
        Route(f"{page_of}/tuning", tuning.show_tuning),
        Route(f"{page_of}/tuning/start", action(tuning.start), methods=["POST"]),
        Route(f"{page_of}/tuning/steer", action(tuning.steer), methods=["POST"]),
        Route(f"{page_of}/tuning/drawing/{{number:int}}", tuning.drawing),
        Route(f"{page_of}/leaving", leaving.show_leaving),
        Route(f"{page_of}/leaving/agree", action(leaving.agree), methods=["POST"]),
        Route(f"{page_of}/round", rounds.show_round),
        Route(f"{page_of}/round/change", action(rounds.change), methods=["POST"]),
        Route(f"{page_of}/round/both", action(rounds.draw_both), methods=["POST"]),
        Route(f"{page_of}/round/drawn/{{side}}", rounds.drawn),
        Route(f"{page_of}/draw", drawing.show_draw),
        Route(f"{page_of}/draw/new", action(drawing.draw, max_bytes=_DRAWING_BYTES, max_files=1), methods=["POST"]),
        Route(f"{page_of}/draw/again", action(drawing.again), methods=["POST"]),
        Route(f"{page_of}/draw/picture/{{number}}", drawing.picture),
        Route(f"{page_of}/withdraw", leaving.show_withdraw),
        Route(f"{page_of}/withdraw/now", action(leaving.withdraw), methods=["POST"]),
    ]
    guarded = page_application(PACKAGE, routes, access)
    guarded.app.state.desk = desk
    return guarded


def _first_step(request: Request) -> Response:
    standing = standing_of(request)
    return RedirectResponse(f"/c/{standing.name}/{standing.next_step}", 303)
