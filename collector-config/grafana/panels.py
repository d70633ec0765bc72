"""The kinds of panels that the dashboards are made of, and how they ask."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml
from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import common as styles
from grafana_foundation_sdk.models import dashboard as models

__all__ = ["bars", "board", "chosen", "compared", "curves", "fact", "facts", "listing", "sql", "typed"]

SQL: Final = Path(__file__).parent / "sql"
PROMQL: Final[dict[str, str]] = yaml.safe_load((Path(__file__).parent / "promql.yaml").read_text())
POSTGRES: Final = models.DataSourceRef(type_val="grafana-postgresql-datasource", uid="activity")
PROMETHEUS: Final = models.DataSourceRef(type_val="prometheus", uid="prometheus")


def sql(name: str) -> str:
    """The query in ``sql/<name>.sql``."""
    return (SQL / f"{name}.sql").read_text().strip()


class _Rows(Dataquery):
    """A query to PostgreSQL; the library has no class for that data source."""

    def __init__(self, query: str, shape: str) -> None:
        self._query = query
        self._shape = shape

    def to_json(self) -> dict[str, Any]:
        """As Grafana stores it."""
        return {
            "datasource": POSTGRES,
            "editorMode": "code",
            "format": self._shape,
            "rawQuery": True,
            "rawSql": self._query,
            "refId": "A",
        }


class _Query(Builder[Dataquery]):
    def __init__(self, query: str, shape: str) -> None:
        self._built = _Rows(query, shape)

    def build(self) -> Dataquery:
        return self._built


def _series(legend: str, name: str) -> prometheus.Dataquery:
    expression = PROMQL[name]
    query = prometheus.Dataquery().datasource(PROMETHEUS).expr(expression).legend_format(legend)
    return query.exemplar("_bucket{" in expression)


def curves(title: str, about: str, width: int, unit: str, **lines: str) -> timeseries.Panel:
    """Lines over time from Prometheus.

    Args:
        title: of the panel.
        about: what it shows, for the tooltip.
        width: of 24.
        unit: Grafana's name of the unit.
        **lines: legend by name in ``promql.yaml``; ``{{label}}`` in it is a label's value.
    """
    panel = _over_time(title, about, width).unit(unit).fill_opacity(10).datasource(PROMETHEUS)
    for letter, (name, legend) in zip("ABCD", lines.items(), strict=False):
        panel = panel.with_target(_series(legend, name).ref_id(letter).range())
    return panel


def compared(title: str, about: str, width: int, unit: str, name: str) -> timeseries.Panel:
    """One expression of ``promql.yaml`` now, and at the same time before."""
    panel = _over_time(title, about, width).unit(unit).fill_opacity(10).datasource(PROMETHEUS)
    for letter, legend, shift in (("A", "now", ""), ("B", "$before before", "offset $before")):
        query = prometheus.Dataquery().datasource(PROMETHEUS).ref_id(letter).legend_format(legend)
        expression = PROMQL[name].replace(" SHIFT", f" {shift}".rstrip())
        panel = panel.with_target(query.expr(expression).range())
    return panel


def bars(title: str, about: str, width: int, rows: str) -> timeseries.Panel:
    """Counts over time from PostgreSQL, on top of each other: events are points in time, not a rate."""
    panel = _over_time(title, about, width).fill_opacity(60).draw_style(styles.GraphDrawStyle.BARS)
    panel = panel.stacking(common.StackingConfig().mode(styles.StackingMode.NORMAL))
    return panel.datasource(POSTGRES).with_target(_Query(sql(rows), "time_series"))


def _over_time(title: str, about: str, width: int) -> timeseries.Panel:
    panel = timeseries.Panel().title(title).description(about).span(width).height(8).min(0)
    return panel.show_points(styles.VisibilityMode.NEVER)


def facts(title: str, about: str, width: int, rows: str) -> stat.Panel:
    """One number for each column of a query with one row."""
    panel = stat.Panel().title(title).description(about).span(width).height(4).datasource(POSTGRES)
    panel = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).fields("/.*/"))
    return panel.graph_mode(styles.BigValueGraphMode.NONE).with_target(_Query(sql(rows), "table"))


def fact(title: str, about: str, unit: str, name: str, *, bad: float) -> stat.Panel:
    """One number from Prometheus, red from `bad` on."""
    steps = [models.Threshold(value=None, color="green"), models.Threshold(value=bad, color="red")]
    limits = dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)
    panel = stat.Panel().title(title).description(about).span(4).height(4).unit(unit).thresholds(limits)
    return panel.datasource(PROMETHEUS).with_target(_series("", name).ref_id("A").instant())


def listing(title: str, about: str, width: int, rows: str, *, height: int = 9) -> table.Panel:
    """A table; entities and actors lead on."""
    panel = table.Panel().title(title).description(about).span(width).height(height).datasource(POSTGRES)
    panel = panel.with_target(_Query(sql(rows), "table")).filterable(True)
    for column, address in LINKS.items():
        link = {"title": f"{column}: more", "url": address}
        panel = panel.override_by_name(column, [models.DynamicConfigValue(id_val="links", value=[link])])
    return panel


_RANGE: Final = "${__url_time_range}"
LINKS: Final = {
    "Entity": '/d/otel-activity-history?var-entity_type=${__data.fields["Entity type"]}'
    f"&var-entity_id=${{__value.raw}}&{_RANGE}",
    "Actor": f"/d/otel-activity-actor?var-actor=${{__value.raw}}&{_RANGE}",
}
"""Where a value of a column leads."""


def chosen(name: str, label: str, query: str, *, many: bool = True) -> dashboard.QueryVariable:
    """A variable whose choices come from PostgreSQL (a name in ``sql/``) or Prometheus (``label_values``)."""
    variable = (
        dashboard.QueryVariable(name).label(label).refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
    )
    if query.startswith("label_values"):
        variable = variable.datasource(PROMETHEUS).query(query).all_value(".+")
    else:
        variable = variable.datasource(POSTGRES).query(sql(query))
    return variable.multi(many).include_all(many)


def typed(name: str, label: str, default: str) -> dashboard.TextBoxVariable:
    """A variable that people type."""
    return dashboard.TextBoxVariable(name).label(label).default_value(default)


def board(uid: str, title: str, about: str, *, since: str = "now-24h") -> dashboard.Dashboard:
    """An empty dashboard of ours."""
    made = dashboard.Dashboard(title).uid(f"otel-activity-{uid}").description(about)
    links = dashboard.DashboardLink("Activity").type(models.DashboardLinkType.DASHBOARDS)
    links = links.tags(["otel-activity"]).as_dropdown(True).keep_time(True)
    return made.tags(["otel-activity"]).time(since, "now").refresh("1m").timezone("browser").link(links)
