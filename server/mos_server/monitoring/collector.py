"""The metrics, as prometheus-client asks for them.

Everything is read when Prometheus asks, from the journal and from the files that it speaks of: no
event is counted twice, and a restart forgets none. The one exception is what the gate refused
before it reached the journal (`Refused`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mos_common.errors import StateError
from mos_common.outage import Outage
from mos_common.release import RELEASE
from mos_server.monitoring import readings
from mos_server.monitoring.health import Health
from mos_server.state.folder import State
from mos_server.state.journal import Journal
from mos_server.state.records import CANCELLED, FAILED, HELD_BACK, PUBLISHED, UNFINISHED

log = logging.getLogger(__name__)

STATES = (*UNFINISHED, PUBLISHED, HELD_BACK, FAILED, CANCELLED)
_STAGES = ("class_word", "single", "fused", "ceiling")


class Refused:
    """Requests that the gate refused: the journal never heard of them, so they are counted here."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._counter = Counter(
            "mos_refused_requests", "Requests refused at the gate since the start.", ["status"], registry=registry
        )

    def __call__(self, status: int) -> None:
        """Count a request that was answered with an HTTP status."""
        self._counter.labels(str(status)).inc()


class StateCollector(Collector):
    """The metrics of one state folder. A part that cannot be read is missing, and said so."""

    def __init__(self, state: State, journal: Journal, health: Health) -> None:
        self._state, self._journal, self._health = state, journal, health
        self._sizes = readings.Sizes(state)
        self._trouble = {name: Outage(lambda line: log.error("%s", line)) for name in self._parts()}

    def describe(self) -> Iterable[Metric]:
        """Return no description: nothing is read before somebody asks."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every metric as it stands now."""
        unread = GaugeMetricFamily("mos_unreadable", "1 if a part of the metrics cannot be read.", labels=["part"])
        for name, part in self._parts().items():
            try:
                yield from list(part())
                unread.add_metric([name], 0)
                self._trouble[name].over(f"the metrics of {name} can be read again")
            except (StateError, OSError, ValueError, LookupError, TypeError) as error:
                unread.add_metric([name], 1)
                self._trouble[name].report(f"the metrics of {name} cannot be read: {error}")
        yield unread

    def _parts(self) -> Mapping[str, Callable[[], Iterator[Metric]]]:
        return {
            "server": self._of_server,
            "participants": self._of_people,
            "rounds": self._of_rounds,
            "uploads": self._of_uploads,
            "model": self._of_model,
            "disk": self._of_disk,
            "certificates": self._of_certificates,
        }

    def _of_server(self) -> Iterator[Metric]:
        build = GaugeMetricFamily("mos_build", "The release of this server.", labels=["release"])
        build.add_metric([RELEASE], 1)
        yield build
        yield _gauge("mos_ready", "1 if the server is ready: see /readyz.", 0 if self._health.why_not_ready() else 1)

    def _of_people(self) -> Iterator[Metric]:
        found = readings.people(self._journal)
        admitted = [each for each in found if not each.barred]
        yield _gauges("mos_participants", "Names that have enrolled.", "state", {
            "admitted": len(admitted), "barred": len(found) - len(admitted),
        })  # fmt: skip
        yield _gauge("mos_participants_online", "Admitted names that are here.", sum(each.online for each in admitted))
        yield _gauges(
            "mos_participant_last_seen_timestamp_seconds",
            "When an admitted participant was last here, in seconds since the epoch.",
            "participant",
            {each.name: each.last for each in admitted if each.last is not None},
        )
        yield _gauges("mos_kits", "Kits that were made.", "state", readings.invitations(self._journal))

    def _of_rounds(self) -> Iterator[Metric]:
        rounds = self._journal.rounds.all()
        counts = {state: sum(each.status == state for each in rounds) for state in STATES}
        yield _gauges("mos_rounds", "Rounds, by their state.", "state", counts)
        seconds = GaugeMetricFamily(
            "mos_round_state_seconds", "How long the open round has been in its state.", labels=["round", "state"]
        )
        limits = GaugeMetricFamily(
            "mos_round_state_limit_seconds", "How long the open round may be in its state.", labels=["round", "state"]
        )
        for each in (each for each in rounds if each.unfinished):
            seconds.add_metric([each.id, each.status], readings.state_seconds(self._journal, each))
            limits.add_metric([each.id, each.status], readings.state_limit_seconds(each))
        yield from (seconds, limits)
        fused = (readings.fusion_seconds(self._journal, each) for each in reversed(rounds[-20:]))
        last = next((each for each in fused if each is not None), None)
        if last is not None:
            yield _gauge("mos_fusion_seconds", "How long the last fusion took, recording included.", last)

    def _of_uploads(self) -> Iterator[Metric]:
        uploaded = readings.uploads(self._journal)
        yield CounterMetricFamily("mos_uploads", "Concepts that arrived, used or not.", value=uploaded.count)
        yield CounterMetricFamily("mos_upload_bytes", "Bytes of the concepts that arrived.", value=uploaded.bytes)
        refused = CounterMetricFamily("mos_refused_uploads", "Uploads that are not fused.", labels=["reason"])
        for reason, count in uploaded.refused.items():
            refused.add_metric([reason], count)
        yield refused
        yield CounterMetricFamily("mos_withdrawn", "Concepts that were withdrawn.", value=uploaded.withdrawn)

    def _of_model(self) -> Iterator[Metric]:
        model = readings.latest_model(self._state, self._journal)
        if model is None:
            return
        yield _gauge("mos_model_concepts", "Concepts in the newest model.", len(model.manifest["concepts"]))
        yield _gauge("mos_model_bytes", "Bytes of the newest model, own changes included.", model.bytes)
        if model.round.ended is not None:
            yield _gauge("mos_model_published_timestamp_seconds", "When it was published.", model.round.ended)
        identity = GaugeMetricFamily(
            "mos_model_identity", "Identity in the newest model: mean cosines.", labels=["concept", "stage"]
        )
        lost = GaugeMetricFamily(
            "mos_model_identity_loss", "Identity before fusion, minus after it.", labels=["concept"]
        )
        for upload in model.uploads:
            if upload.identity is not None:
                for stage in _STAGES:
                    identity.add_metric([upload.token, stage], getattr(upload.identity, stage))
                lost.add_metric([upload.token], upload.identity.loss)
        yield from (identity, lost)
        allowed = model.round.settings.flag_loss
        yield _gauge("mos_model_identity_loss_allowed", "The loss above which a concept is flagged.", allowed)
        yield _gauges("mos_model_drift", "Energy on ordinary prompts.", "group", model.manifest.get("drift", {}))
        kept = GaugeMetricFamily(
            "mos_model_energy_kept", "Share of a concept's effect that is left.", labels=["concept", "group"]
        )
        for concept in model.manifest["concepts"]:
            for group, survival in concept["survival"].items():
                kept.add_metric([concept["token"], group], survival["energy_kept"])
        yield kept

    def _of_disk(self) -> Iterator[Metric]:
        total, free = readings.disk(self._state)
        yield _gauge("mos_disk_bytes", "Bytes of the disk of the state folder.", total)
        yield _gauge("mos_disk_free_bytes", "Free bytes of that disk.", free)
        yield _gauges("mos_state_bytes", "Bytes of the state folder, by part.", "part", self._sizes())

    def _of_certificates(self) -> Iterator[Metric]:
        left = readings.certificate_seconds(self._state)
        yield _gauges("mos_certificate_left_seconds", "How long a certificate is still valid.", "certificate", left)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for each, value in values.items():
        family.add_metric([each], value)
    return family
