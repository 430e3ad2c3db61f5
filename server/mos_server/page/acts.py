"""What the page's forms do. The audit has each act before it is done, with its command."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from mos_common.commands import command_line
from mos_common.errors import RequestError
from mos_common.kit import kit_bytes
from mos_common.pages.access import visitor_of
from mos_common.pages.actions import Sent
from mos_server.page.asking import round_words
from mos_server.page.federation import Federation
from mos_server.round.asking import duration_s
from mos_server.round.holding import held_back
from mos_server.state.concepts import withdraw
from mos_server.state.folder import State
from mos_server.state.inviting import check_name, new_kit


@dataclass(frozen=True)
class Done:
    """What an act did, in lines for people; the command that it equals; where to go on."""

    title: str
    said: list[str]
    command: str
    back: str


class Acts:
    """The acts of one federation's page."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._journal = federation.journal

    @property
    def _state(self) -> State:
        return self._federation.state

    def invite(self, request: Request, sent: Sent) -> Response:
        """Make a kit, and answer with its file."""
        name, valid, again = sent.text("name"), sent.text("valid", "7d"), bool(sent.text("again", ""))
        check_name(name)
        flags = [*(["--valid", valid] if valid != "7d" else []), *(["--again"] if again else [])]
        valid_s = duration_s(valid, "--valid")
        self._note(request, "invite", name, command_line("mos-server", *self._words("invite", name), *flags))
        kit = new_kit(self._state, self._journal, name, valid_s=valid_s, again=again)
        headers = {"content-disposition": f'attachment; filename="{name}.kit"'}
        return Response(kit_bytes(kit), media_type="application/octet-stream", headers=headers)

    def bar(self, request: Request, sent: Sent) -> Done:
        """Revoke a name, or one key of it."""
        name, key = sent.text("name"), sent.text("key", "") or None
        command = command_line("mos-server", *self._words("bar", name), *(["--key", key] if key else []))
        self._note(request, "bar", name, command)
        barred = self._journal.participants.bar(name, key)
        kept = sorted({upload.token for upload in self._journal.uploads.kept() if upload.participant == name})
        said = [f"{barred.keys} of {barred.keys + barred.left} keys revoked, {barred.kits} unused kits void."]
        if kept:
            said.append(f"Still kept, and in rounds to come until you withdraw them: {', '.join(kept)}.")
        return Done(f"{name} is barred" if not barred.left else f"A key of {name} is barred", said, command, "/people")

    def withdraw(self, request: Request, sent: Sent) -> Done:
        """Withdraw a concept."""
        token = sent.text("concept")
        command = command_line("mos-server", *self._words("concepts", "withdraw", token))
        self._note(request, "withdraw", None, command)
        gone = withdraw(self._state, self._journal, token)
        inside = sorted({upload.round for upload in gone if upload.round is not None})
        said = ["Its file and its statistics are erased, and it is left out of rounds to come."]
        if inside:
            said.append(f"Models of {', '.join(inside)} stay as they are: run a round to publish one without it.")
        return Done(f"{gone[0].token} is withdrawn", said, command, "/concepts")

    def ask(self, request: Request, sent: Sent) -> Done:
        """Ask for a round, by the command itself: settings of fusion load torch."""
        words = round_words(self._state.path, sent)
        command = command_line("mos-server", *words)
        self._note(request, "round", None, command)
        return Done("The round is asked for", [self._federation.children.run(*words)], command, "/rounds")

    def cancel(self, request: Request, sent: Sent) -> Done:
        """Cancel the round that runs."""
        command = command_line("mos-server", *self._words("round"), "--cancel")
        self._check_running(sent)
        self._note(request, "cancel", None, command)
        cancelled = self._journal.rounds.cancel()
        return Done(f"{cancelled.id} is cancelled", ["What was uploaded is kept."], command, "/rounds")

    def hold_back(self, request: Request, sent: Sent) -> Done:
        """Have the model of the round that runs held back."""
        command = command_line("mos-server", *self._words("hold-back"))
        self._check_running(sent)
        self._note(request, "hold back", None, command)
        held = self._journal.rounds.hold_back()
        said = ["The model is made and scored. Then it waits here until you publish it."]
        return Done(f"{held.id} will be held back", said, command, f"/rounds/{held.id}")

    def publish(self, request: Request, sent: Sent) -> Done:
        """Publish a round that is held back, by the command itself: own changes load the base."""
        round_ = held_back(self._journal, sent.text("round"))
        words = self._words("publish", round_.id)
        command = command_line("mos-server", *words)
        self._note(request, "publish", None, command)
        return Done(
            f"{round_.id} is published", [self._federation.children.run(*words)], command, f"/rounds/{round_.id}"
        )

    def sheet(self, request: Request, sent: Sent) -> Done:
        """Draw a contact sheet, in a process of its own."""
        round_ = self._journal.rounds.get(sent.text("round"))
        words = self._words("sheet", round_.id)
        command = command_line("mos-server", *words)
        self._federation.children.start(*words)
        self._note(request, "sheet", None, command)
        said = ["The pictures appear on the round's page as they are drawn."]
        return Done("The contact sheet is being drawn", said, command, f"/rounds/{round_.id}#sheet")

    def _words(self, command: str, *more: str) -> tuple[str, ...]:
        out = ("--out", f"{more[0]}.kit") if command == "invite" else ()
        return (command, str(self._state.path), *more, *out)

    def _check_running(self, sent: Sent) -> None:
        """Check that the round that runs is the one that the visitor saw."""
        running, seen = self._journal.rounds.unfinished(), sent.text("round")
        if running is None or running.id != seen:
            raise RequestError(f"{seen[:40]} is not running any more: nothing was done")

    def _note(self, request: Request, act: str, person: str | None, command: str) -> None:
        """Add a line to the audit: what was asked for on the page, by which role."""
        details = {"act": act, "by": "page", "role": visitor_of(request.scope).role.value}
        self._journal.audit.add("asked on the page", person=person, sealed={"command": command}, details=details)
