"""Exactly what leaves, the yes to it, and taking it back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from mos_client.federation.consent import consent, take_back
from mos_client.federation.leaving import LEAVES
from mos_client.federation.session import Session
from mos_client.page.desk import Standing, standing_of
from mos_client.page.showing import show
from mos_client.page.work import Job, end_join, join_words, of_concept
from mos_common.digests import digest_of_file
from mos_common.errors import RequestError
from mos_common.pages.actions import Sent


def show_leaving(request: Request) -> Response:
    """Show the file, what a stranger could tell from it, and the question."""
    from mos_client.inspection.describe import describe_briefly
    from mos_common.concept_file import read_concept

    standing = standing_of(request)
    file = standing.concept_file
    if file is None:
        return show(request, "leaving.html", standing, file=None)
    digest = digest_of_file(file)
    leakage = _leakage(standing, file, digest)
    values = {"file": file, "digest": digest, "size": file.stat().st_size, "leaves": LEAVES, "leakage": leakage}
    values["tensors"] = list(describe_briefly(read_concept(file)))
    return show(request, "leaving.html", standing, **values, publishes=standing.kit.publishes)


def agree(request: Request, sent: Sent) -> Response:
    """Keep the yes to the file that was shown, and take part."""
    standing = standing_of(request)
    session, file = standing.session, standing.concept_file
    if file is None or digest_of_file(file) != sent.text("digest"):
        raise RequestError("the concept is another one than the one you were shown: look at it again")
    session = replace(session, own=standing.kit.publishes == "own" and sent.text("own", "own") == "own")
    session.save()
    consent(session, digest_of_file(file))
    take_part(standing)
    return RedirectResponse(f"/c/{standing.name}/round", 303)


def take_part(standing: Standing) -> None:
    """Start the `join` that answers the server."""
    session = Session.load(standing.state)
    if not standing.runs:
        flags = [] if session.own else ["--fused-only"]
        Job(standing.state, "join").start(join_words(session, "--ask", *of_concept(session), *flags))


def show_withdraw(request: Request) -> Response:
    """Show what withdrawing means, and what came of it."""
    standing = standing_of(request)
    return show(request, "withdraw.html", standing, job=Job(standing.state, "withdraw"))


def withdraw(request: Request, sent: Sent) -> Response:
    """Stop taking part, and have the server erase the concept."""
    standing = standing_of(request)
    if sent.text("sure", "") != "yes":
        raise RequestError("tick the box first: withdrawing cannot be undone")
    take_back(standing.state)
    end_join(standing.state)
    Job(standing.state, "withdraw").start(["withdraw", "--state", standing.state])
    return RedirectResponse(f"/c/{standing.name}/withdraw", 303)


def _leakage(standing: Standing, file: Path, digest: str) -> Job:
    """Return the `leakage` of a concept file, started if it was not."""
    job, asked = Job(standing.state, f"leakage-{digest[:16]}"), standing.session.request
    if not job.log.exists():
        job.start(["leakage", file, asked.images, "--base", asked.base])
    return job
