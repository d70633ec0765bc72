"""The alert rules: valid, documented, about metrics that exist, and firing exactly when they should."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import yaml

from otel_activity.metrics import HISTOGRAMS, READINGS
from otel_activity.receiver.metrics import ReceiverMetrics
from otel_activity.receiver.tablestats import STATISTICS
from tests.support import require_tool

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[2]
RULES: Final = ROOT / "collector-config" / "prometheus" / "alerts.yaml"
RUNBOOK: Final = ROOT / "docs" / "alerts.md"
SCENARIOS: Final[list[dict[str, Any]]] = yaml.safe_load(
    (Path(__file__).parent / "scenarios.yaml").read_text()
)
OTHERS: Final = {
    # the Collector's own
    "otelcol_exporter_send_failed_log_records_total",
    "otelcol_exporter_queue_size",
    "otelcol_exporter_queue_capacity",
    "otelcol_receiver_refused_log_records_total",
    # what it counts, see collector-config/README.md
    "activity_events_total",
    "activity_events_unknown_actor_total",
    # of OpenTelemetry's framework instrumentations
    "http_server_request_duration_seconds_count",
}
NAME: Final = re.compile(r"\b(?:otel|activity|http|db|otelcol|postgresql)_\w+(?=[\s{\[)]|$)")
RECORDED: Final = re.compile(r"\bactivity(?::\w+)+")


def rules() -> list[dict[str, Any]]:
    """All rules of the file."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    """All alerts of the file."""
    return [rule for rule in rules() if "alert" in rule]


def recorded() -> dict[str, str]:
    """The expressions of what the file records, by name."""
    return {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}


def in_prometheus(name: str, kind: str, unit: str) -> str:
    """What a metric of ours is called there."""
    end = {"s": "_seconds", "By": "_bytes"}.get(unit, "")
    return name.replace(".", "_") + end + {"counter": "_total", "histogram": "_bucket"}.get(kind, "")


def ours() -> Iterator[str]:
    """Every metric that this package can show."""
    for reading in READINGS:
        yield in_prometheus(reading.name, reading.kind, reading.unit)
    for timing in HISTOGRAMS:
        yield in_prometheus(timing.name, "histogram", timing.unit)
    yield from (statistic.exposed for statistic in STATISTICS)
    for family, kind in re.findall(r"^# TYPE (\w+) (\w+)$", ReceiverMetrics().text().decode(), re.MULTILINE):
        yield family if kind != "histogram" else f"{family}_bucket"


def named(expression: str) -> set[str]:
    """The metrics that an expression names, itself or by what is recorded."""
    while RECORDED.search(expression):
        expression = RECORDED.sub(lambda found: f"({recorded()[found[0]]})", expression)
    grouped = re.sub(r"\b(by|on) \([^)]*\)", "", expression)
    selected = re.sub(r"\{[^}]*\}", "", grouped)
    return set(NAME.findall(selected))


def test_every_alert_is_about_metrics_that_exist() -> None:
    """A rule on a name that nobody exports would be silent for ever."""
    known = {*ours(), *OTHERS}
    for alert in alerts():
        found = named(alert["expr"])
        assert found, alert["alert"]
        assert found <= known, alert["alert"]


def test_every_alert_has_a_runbook() -> None:
    """Each has a severity and names its section of docs/alerts.md; there are no other sections."""
    sections = re.findall(r"^### (\w+)$", RUNBOOK.read_text(), re.MULTILINE)
    assert sections == [alert["alert"] for alert in alerts()]
    for alert in alerts():
        assert alert["annotations"]["runbook"] == f"docs/alerts.md#{alert['alert'].lower()}"
        assert alert["labels"]["severity"] in {"warning", "critical"}


def test_every_alert_is_seen_to_fire_and_to_be_silent() -> None:
    """Each fires in one scenario, and does not in another that has its metrics."""
    for alert in alerts():
        name, needed = alert["alert"], named(alert["expr"])
        fires = [each for each in SCENARIOS if name in each["fires"]]
        silent = [
            each
            for each in SCENARIOS
            if name not in each["fires"] and needed <= {series.split("{")[0] for series in each["series"]}
        ]
        assert fires, name
        assert silent, name


def scenario(found: dict[str, Any]) -> dict[str, Any]:
    """One scenario in promtool's form."""
    series = []
    for text, values in found["series"].items():
        name, _, labels = text.partition("{")
        also = f", {labels}" if labels else "}"
        series.append({"series": f'{name}{{job="shop", instance="a"{also}', "values": values})
    expected = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in found["fires"]]
    return {
        "name": found["name"],
        "interval": "1m",
        "input_series": series,
        "promql_expr_test": [
            {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": found["at"],
                "exp_samples": expected,
            }
        ],
    }


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run([require_tool("promtool"), *arguments], capture_output=True, text=True, timeout=120)


@pytest.mark.external
def test_promtool_accepts_the_rules() -> None:
    """`promtool check rules` finds no fault."""
    done = promtool("check", "rules", str(RULES))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.external
def test_alerts_fire_exactly_when_they_should(tmp_path: Path) -> None:
    """`promtool test rules`: in each scenario the alerts that it names fire, and no other."""
    file = tmp_path / "test.yaml"
    document = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": list(map(scenario, SCENARIOS)),
    }
    file.write_text(yaml.safe_dump(document))
    done = promtool("test", "rules", str(file))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.external
def test_a_scenario_that_is_wrong_is_noticed(tmp_path: Path) -> None:
    """The comparison can fail: a scenario that expects silence where an alert fires does."""
    wrong = next(each for each in SCENARIOS if each["fires"])
    file = tmp_path / "test.yaml"
    tests = [scenario({**wrong, "fires": []})]
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    assert promtool("test", "rules", str(file)).returncode != 0
