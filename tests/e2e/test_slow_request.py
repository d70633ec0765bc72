"""From a slow request in the metrics to its trace, and on to its audit events."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from otel_activity import semconv
from otel_activity.store import ActivityStore, EventFilter

if TYPE_CHECKING:
    from tests.e2e.support import World

pytestmark = pytest.mark.e2e


def collected(output: str) -> dict[str, list[Any]]:
    """The data points of each metric that the SDK's console exporter printed last."""
    document = json.loads(output[output.index('{\n    "resource_metrics"') :])
    return {
        metric["name"]: metric["data"]["data_points"]
        for resource in document["resource_metrics"]
        for scope in resource["scope_metrics"]
        for metric in scope["metrics"]
    }


def test_the_exemplar_of_a_slow_request_finds_its_events(world: World) -> None:
    """`opentelemetry-instrument` brings request durations; the slow one's trace finds its changes."""
    process = world.start(
        "python",
        "slow.py",
        OTEL_METRICS_EXPORTER="console",
        OTEL_SEMCONV_STABILITY_OPT_IN="http",
    )
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    metrics = collected(output)
    (durations,) = metrics["http.server.request.duration"]
    assert durations["attributes"]["http.route"] == "/parcels/{to}"
    slowest = max(durations["exemplars"], key=lambda exemplar: exemplar["value"])
    assert slowest["value"] >= 0.3
    with ActivityStore(world.store) as store:
        found = store.search(EventFilter(trace_id=f"{slowest['trace_id']:032x}"))
    (event,) = found.events
    assert event.attributes[semconv.CHANGES]["to"]["after"] == "moon"
    assert sum(point["value"] for point in metrics["otel_activity.event.released"]) == 3
    assert metrics["db.client.connection.count"]
