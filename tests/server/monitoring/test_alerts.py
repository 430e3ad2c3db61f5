"""Every alert fires, by Prometheus's own rules, on metrics recorded from a real server.

The server's clock and the size of its disk are set; all else happens. A scrape is recorded for each
minute of that clock and handed to `promtool test rules` as it is.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
import yaml

from mos_server.state.records import COLLECTING, RoundSettings, Upload
from server.monitoring.conftest import Scrape, Served, promtool

MONITORING = Path(__file__).parents[3] / "deploy" / "monitoring"
RULES, DASHBOARD = MONITORING / "alerts.yaml", MONITORING / "dashboard.json"
ALERTS = {"MosRoundStuck", "MosIdentityLost", "MosDiskLow", "MosUploadsRefused", "MosCertificateEnding"}
# Minutes of the recording at which something happens.
REFUSED, DISK_FULL, CERTIFICATE_ENDS, ROUND_OVERDUE, END = 3, 8, 20, 35, 46
_FAULTS_SEEN_S = 0.3


@pytest.fixture(scope="module")
def recording(served: Served) -> list[Scrape]:
    """Three quarters of an hour of a server's life: one scrape a minute of its clock."""
    with served.journal() as journal:
        journal.rounds.ask(RoundSettings(deadline_s=60 * ROUND_OVERDUE - 300))
        until = time.monotonic() + 120
        while journal.rounds.unfinished().status != COLLECTING:
            assert time.monotonic() < until
            time.sleep(0.2)
        alice = journal.participants.all()[0]
        scrapes = []
        for minute in range(END):
            if minute == REFUSED:
                for size in range(5):
                    refused = Upload(0, "round-001", alice.key, "alice", "?", "", size, time.time(), "no file", None)
                    journal.uploads.add(refused)
            if minute == DISK_FULL:
                (served.faults / "free").write_text("0.05")
            (served.faults / "clock").write_text(str(60 * minute))
            time.sleep(_FAULTS_SEEN_S)
            scrapes.append(served.scrape())
        journal.rounds.cancel()
    return scrapes


def rule_tests(recording: list[Scrape], firing: dict[str, set[str]]) -> dict:
    """Return a file for `promtool test rules`: the series, and which alerts fire when."""
    keys = dict.fromkeys(key for scrape in recording for key in scrape)
    series = []
    for name, labels in keys:
        as_scraped = {**dict(labels), "job": "mos", "instance": "127.0.0.1:9094"}
        selector = ",".join(f"{label}={json.dumps(value)}" for label, value in as_scraped.items())
        values = [scrape.get((name, labels)) for scrape in recording]
        shown = " ".join("_" if value is None else repr(value) for value in values)
        series.append({"series": f"{name}{{{selector}}}", "values": shown})
    tests = [
        {
            "expr": 'count by (alertname) (ALERTS{alertstate="firing"}) > bool 0',
            "eval_time": when,
            "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(names)],
        }
        for when, names in firing.items()
    ]
    return {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": series, "promql_expr_test": tests}],
    }


def test_each_alert_fires_when_what_it_is_for_has_happened(recording: list[Scrape], tmp_path: Path):
    fires = {
        f"{REFUSED - 1}m": {"MosIdentityLost"},
        f"{REFUSED + 2}m": {"MosIdentityLost", "MosUploadsRefused"},
        f"{DISK_FULL + 11}m": {"MosIdentityLost", "MosUploadsRefused", "MosDiskLow"},
        f"{CERTIFICATE_ENDS + 11}m": ALERTS - {"MosRoundStuck"},
        f"{ROUND_OVERDUE + 7}m": ALERTS,
    }
    file = tmp_path / "alerts.test.yaml"
    file.write_text(yaml.safe_dump(rule_tests(recording, fires)))
    promtool("test", "rules", file)


def test_the_rules_are_five_and_prometheus_reads_them():
    rules = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    assert {rule["alert"] for rule in rules} == ALERTS
    assert "5 rules found" in promtool("check", "config", MONITORING / "prometheus.yaml")


def test_every_metric_that_rules_and_dashboard_name_is_exported(served: Served, recording: list[Scrape]):
    served.refuse_a_stranger()
    exported = {name for scrape in [*recording, served.scrape()] for name, _ in scrape}
    expressions = [rule["expr"] for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]]
    board = json.loads(DASHBOARD.read_text())
    expressions += [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    expressions += [each["query"]["query"] for each in board["templating"]["list"] if isinstance(each["query"], dict)]
    named = {name for expression in expressions for name in re.findall(r"\bmos_\w+", expression)}
    assert named <= exported
    assert len(named) > 20


def test_every_label_that_the_dashboard_shows_is_on_its_metric(served: Served, recording: list[Scrape]):
    labels: dict[str, set[str]] = {}
    for scrape in [*recording, served.scrape()]:
        for name, found in scrape:
            labels.setdefault(name, set()).update(label for label, _ in found)
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"])) - {"instance"}
            of = re.findall(r"\bmos_\w+", target["expr"])
            assert shown <= set().union(*(labels[name] for name in of)), panel["title"]
