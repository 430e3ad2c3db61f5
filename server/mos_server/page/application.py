"""The addresses of the operator's page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from mos_common.commands import command_line
from mos_common.errors import RequestError
from mos_common.pages.access import Access, Guard
from mos_common.pages.actions import Sent, action
from mos_common.pages.application import page_application
from mos_common.pages.rendering import render
from mos_server.fusion.methods import METHODS
from mos_server.page import views
from mos_server.page.acts import Acts, Done
from mos_server.page.asking import FIELDS
from mos_server.page.federation import Federation
from mos_server.page.model_view import model_view, picture
from mos_server.state.records import HELD_BACK, Round

PACKAGE = "mos_server.page"


def operators_page(federation: Federation, access: Access) -> Guard:
    """Return the application of the operator's page."""
    acts = Acts(federation)
    looks = {
        "/": overview,
        "/people": people,
        "/rounds": rounds,
        "/rounds/{id}": one_round,
        "/rounds/{id}/log": log,
        "/rounds/{id}/pictures/{digest}/{column}": sheet_picture,
        "/concepts": concepts,
        "/server": server,
    }
    does: dict[str, Callable[[Request, Sent], Done | Response]] = {
        "/people/invite": acts.invite,
        "/people/bar": acts.bar,
        "/concepts/withdraw": acts.withdraw,
        "/rounds/ask": acts.ask,
        "/rounds/cancel": acts.cancel,
        "/rounds/hold-back": acts.hold_back,
        "/rounds/publish": acts.publish,
        "/rounds/sheet": acts.sheet,
    }
    routes = [
        *(Route(path, _looking(federation, look)) for path, look in looks.items()),
        *(Route(path, action(_doing(federation, act)), methods=["POST"]) for path, act in does.items()),
    ]
    return page_application(PACKAGE, routes, access)


def overview(federation: Federation, request: Request) -> Response:
    """Show the federation at a glance."""
    return _page(federation, request, "overview.html", "Overview", **views.overview(federation))


def people(federation: Federation, request: Request) -> Response:
    """Show participants and kits."""
    return _page(federation, request, "people.html", "People", people=views.people(federation))


def rounds(federation: Federation, request: Request) -> Response:
    """Show all rounds, and the form that asks for one."""
    return _page(
        federation,
        request,
        "rounds.html",
        "Rounds",
        rounds=views.rounds(federation),
        running=federation.journal.rounds.unfinished(),
        fields=FIELDS,
        methods=METHODS,
    )


def one_round(federation: Federation, request: Request) -> Response:
    """Show one round and its model."""
    round_ = _round(federation, request)
    view = model_view(federation, round_)
    notes = federation.journal.notes.of(round_.id)
    return _page(
        federation,
        request,
        "round.html",
        round_.id,
        round=round_,
        timeline=views.timeline(federation, round_),
        progress=views.progress(federation, round_) if round_.unfinished else None,
        refused=[each for each in federation.journal.uploads.of(round_.id) if each.refused is not None],
        settings=views.settings_of(round_),
        model=None if isinstance(view, str) else view,
        no_model=view if isinstance(view, str) else "",
        drawing=federation.children.of("sheet", str(federation.state.path), round_.id),
        notes=notes[-views.LOG_LINES :],
        more_notes=max(0, len(notes) - views.LOG_LINES),
        held=round_.status == HELD_BACK,
    )


def log(federation: Federation, request: Request) -> Response:
    """Show every note of a round, as text."""
    notes = federation.journal.notes.of(_round(federation, request).id)
    from mos_common.pages.formats import machine_moment

    return PlainTextResponse("".join(f"{machine_moment(at)}  {text}\n" for _, at, text in notes))


def sheet_picture(federation: Federation, request: Request) -> Response:
    """Send one picture of a contact sheet."""
    path = request.path_params
    file = picture(federation, _round(federation, request).id, path["digest"], path["column"])
    if file is None:
        raise HTTPException(404)
    return FileResponse(file, media_type="image/webp")


def concepts(federation: Federation, request: Request) -> Response:
    """Show the concepts that are kept."""
    return _page(federation, request, "concepts.html", "Concepts", kept=federation.journal.uploads.concepts())


def server(federation: Federation, request: Request) -> Response:
    """Show settings, sizes, certificates and the audit."""
    return _page(federation, request, "server.html", "Server", **views.server(federation))


def _round(federation: Federation, request: Request) -> Round:
    try:
        return federation.journal.rounds.get(request.path_params["id"])
    except RequestError:
        raise HTTPException(404) from None


def _looking(federation: Federation, look: Callable[[Federation, Request], Response]) -> Callable[[Request], Response]:
    def endpoint(request: Request) -> Response:  # not a coroutine: Starlette runs it in a thread
        return look(federation, request)

    return endpoint


def _doing(
    federation: Federation, act: Callable[[Request, Sent], Done | Response]
) -> Callable[[Request, Sent], Response]:
    def handler(request: Request, sent: Sent) -> Response:
        done = act(request, sent)
        if isinstance(done, Response):
            return done
        return _page(federation, request, "done.html", done.title, done=done)

    return handler


def _page(federation: Federation, request: Request, template: str, title: str, **values: Any) -> Response:
    state = federation.state.path

    def command(*words: str) -> str:
        """Return a command of the server on this folder, as a person types it."""
        return command_line("mos-server", words[0], state, *words[1:])

    return render(
        request,
        PACKAGE,
        template,
        title=title,
        command_of=command,
        kind_of=views.kind_of,
        folder=state.name,
        **values,
    )
