"""The first step: a kit, a name for the concept, and what it is."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from mos_client.federation.activity import read_activity
from mos_client.federation.pinning import check_kit
from mos_client.federation.session import SETTINGS, Session
from mos_client.page.desk import Desk, Standing
from mos_client.page.showing import show
from mos_client.page.work import GIVEN_KIT
from mos_client.tuning.request import TuneRequest
from mos_common.base_names import TINY
from mos_common.errors import MosError, RequestError
from mos_common.kit import MOST_BYTES, Kit, read_kit, write_kit
from mos_common.pages.actions import Sent

LICENCES = ("CC BY 4.0", "CC BY-NC 4.0", "CC BY-SA 4.0", "CC0 1.0", "only for this federation")


def show_start(request: Request) -> Response:
    """Show the concepts that are here, and the form for another one."""
    return _shown(request)


def _shown(request: Request, trouble: str = "", filled: dict[str, str] | None = None) -> Response:
    desk: Desk = request.app.state.desk
    here, kit, kit_trouble = list[Standing](), None, ""
    for name, folder in desk.folders().items():
        try:
            here.append(Standing(name, Session.load(folder), read_activity(folder)))
        except MosError as error:  # one damaged folder does not close the others
            trouble = trouble or str(error)
    if desk.kit is not None:
        try:
            kit = read_kit(desk.kit)
        except MosError as error:
            kit_trouble = str(error)
    values: dict[str, Any] = {"here_are": here, "kit": kit, "trouble": trouble or kit_trouble, "filled": filled or {}}
    is_tiny = kit is not None and kit.base_name == TINY
    fixed = desk.state is not None and bool(here)  # that folder is for one concept
    status = 400 if trouble else 200
    return show(request, "start.html", status=status, **values, licences=LICENCES, is_tiny=is_tiny, fixed=fixed)


def begin(request: Request, sent: Sent) -> Response:
    """Make a state folder from the form, or show it again with what is wrong."""
    names = ("concept", "class_word", "base", "author", "licence")
    filled = {name: sent.text(name, "") for name in names}
    try:
        kit = _kit_of(request.app.state.desk, sent)
        session = begun(request.app.state.desk, kit, filled)
    except MosError as error:
        return _shown(request, str(error), filled)
    return RedirectResponse(f"/c/{session.state.resolve().name}/pictures", 303)


def begun(desk: Desk, kit: Kit, filled: dict[str, str]) -> Session:
    """Return a new session, whose kit and settings are kept in its state folder.

    Raises:
        MosError: the kit does not fit, a text is missing or cannot be used, or the folder is used.

    """
    name = filled["concept"].strip("<> ").lower().replace(" ", "-")
    if not name or not filled["class_word"]:
        raise RequestError("give the concept a name, and say what kind of thing it is")
    concept = f"<{name}>"
    state = desk.new(concept)
    if (state / SETTINGS).exists():
        raise RequestError(f"{state} is for a concept already: choose another name, or go on with that one")
    check_kit(kit, state)
    base = filled["base"] or (TINY if kit.base_name == TINY else "")
    if not base:
        raise RequestError(
            f"say where the base model {kit.base_name} is on this computer: a folder, a file or a hub id"
        )
    request = TuneRequest(
        images=state / "pictures",
        concept=concept,
        class_word=filled["class_word"],
        base=base,
        author=filled["author"],
        licence=filled["licence"],
    )
    state.mkdir(parents=True, exist_ok=True)
    state.chmod(0o700)
    request.images.mkdir(exist_ok=True)
    write_kit(kit, state / GIVEN_KIT)
    session = Session(state, kit.base, request, own=kit.publishes == "own")
    session.save()
    return session


def _kit_of(desk: Desk, sent: Sent) -> Kit:
    """Return the kit that was chosen or dropped, or else the one that the command was given."""
    chosen = sent.files("kit")
    if not chosen:
        if desk.kit is None:
            raise RequestError("choose the kit: the file that the operator sent to you")
        return read_kit(desk.kit)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kit"
        file.write_bytes(chosen[0].file.read(MOST_BYTES + 1))
        try:
            return read_kit(file)
        except MosError as error:
            raise RequestError(str(error).replace(str(file), "the chosen file")) from error
