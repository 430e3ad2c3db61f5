"""How a state folder of `join` stands, line by line, for `mos-client status`."""

from __future__ import annotations

from collections.abc import Iterator

from mos_client.federation.activity import FAILED, FINISHED, INTERRUPTED, JOINED, TUNING, Activity, read_activity
from mos_client.federation.consent import read_consent
from mos_client.federation.news import RoundNews, read_news
from mos_client.federation.session import Session
from mos_client.federation.tuned import tuned_already
from mos_client.inspection.own_scores import scores_in
from mos_client.inspection.tuning_scores import scores_so_far
from mos_client.tuning.steering import Steering, Wanted
from mos_common.digests import digest_of_file
from mos_common.errors import MosError
from mos_common.kit import read_kit
from mos_common.pages.formats import ago, duration, moment, score, size
from mos_common.trust import KIT

_ENDED = {FAILED: "failed", INTERRUPTED: "was interrupted", FINISHED: "finished"}


def status_of(session: Session) -> Iterator[str]:
    """Yield what it does, what it would send, how the round stands, and what models say of it.

    The folder is read; nobody is asked.
    """
    yield f"{session.request.concept} ({session.request.class_word}) in {session.state}"
    yield _doing(read_activity(session.state), Steering.of(session.state).wanted)
    if (scores := scores_so_far(session.state)) is not None:
        for each in scores["evaluations"]:
            best = " (best)" if each["step"] == scores["best"] else ""
            yield (
                f"  after step {each['step']}{best}: identity {score(each['identity'])}, "
                f"prompt {score(each['prompt_adherence'])}"
            )
    yield from _file(session)
    news = read_news(session.state)
    if news is not None:
        yield from _round(news)
    yield from _models(session)


def _doing(activity: Activity | None, wanted: Wanted) -> str:
    if activity is None:
        return "nothing has run on it yet"
    if activity.stage in _ENDED or not activity.runs:
        ended = f"the last join {_ENDED.get(activity.stage, 'was killed')} {ago(activity.at)}"
        return f"{ended}: {activity.trouble}" if activity.trouble else ended
    if activity.stage == TUNING and activity.total:
        loss = f", loss {score(activity.loss)}" if activity.loss is not None else ""
        left = f", about {duration(activity.left_s)} left" if activity.left_s is not None else ""
        what = "paused" if wanted is Wanted.PAUSE else "tuning"
        return f"{what}: step {activity.done} of {activity.total}{loss}{left}"
    return "it takes part" if activity.stage == JOINED else "tuning: the base model is being loaded"


def _file(session: Session) -> Iterator[str]:
    try:
        file = tuned_already(session)
    except MosError as error:
        yield f"concept file: {error}"
        return
    if file is None:
        yield "concept file: not tuned yet"
        return
    digest = digest_of_file(file)
    yield f"concept file: {file.name}, {size(file.stat().st_size)}, SHA-256 {digest}"
    given = read_consent(session.state)
    if given is not None:
        what = "this file" if given.digest == digest else "another file than this"
        with_own = "with its own changes" if given.own else "to be published only fused"
        yield f"you agreed to send {what}, {with_own}, on {moment(given.at)}"


def _round(news: RoundNews) -> Iterator[str]:
    said = f" as the server said {ago(news.at)}"
    if not news.round:
        yield f"no round yet{said}"
        return
    until = f", waits until {moment(news.until)} ({ago(news.until)})" if news.until else ""
    yield f"{news.round}: {news.status}, {news.wanted} concepts wanted{until},{said}"
    if news.reason:
        yield f"  {news.reason}"
    for each in news.members:
        yield f"  {each.participant}: {each.activity}" + (", waited for" if each.waited_for else "")


def _models(session: Session) -> Iterator[str]:
    models = session.downloaded()
    if not models:
        yield "no model downloaded yet"
        return
    try:
        token = session.token(read_kit(session.state / KIT).name)
    except MosError as error:  # the kit may be lost without harm
        yield f"models downloaded: {len(models)}; scores need your name in the federation: {error}"
        return
    for model in models:
        scores = scores_in(model, token) or {}
        ways = {"without the concept": "class_word", "before fusion": "single", "after": "fused", "real": "ceiling"}
        told = ", ".join(f"{way} {score(scores.get(key))}" for way, key in ways.items())
        yield f"{model}: " + (f"identity {told}" if scores else f"{token} was not scored in it, or is not in it")
