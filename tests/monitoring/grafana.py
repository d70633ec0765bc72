"""The dashboards' files, and what Grafana puts in the place of its macros and variables."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

__all__ = ["FOLDER", "expressions", "promql", "queries", "sql"]

FOLDER: Final = Path(__file__).parents[2] / "collector-config" / "grafana"


def dashboards() -> Iterator[tuple[str, dict[str, Any]]]:
    """Each committed file with its name."""
    for file in sorted((FOLDER / "dashboards").glob("*.json")):
        yield file.stem, json.loads(file.read_text())


def _targets() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, dashboard in dashboards():
        for panel in dashboard["panels"]:
            for target in panel.get("targets", ()):
                yield f"{name}: {panel['title']} {target['refId']}", target


def queries() -> dict[str, str]:
    """Every SQL query by dashboard and panel, those of variables too."""
    found = {name: target["rawSql"] for name, target in _targets() if "rawSql" in target}
    for name, dashboard in dashboards():
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query" and variable["datasource"]["uid"] == "activity":
                found[f"{name}: ${variable['name']}"] = variable["query"]
    return found


def expressions() -> dict[str, str]:
    """Every PromQL expression by dashboard and panel."""
    return {name: target["expr"] for name, target in _targets() if "expr" in target}


def sql(query: str, variables: Mapping[str, list[str]], start: datetime, end: datetime) -> str:
    """A query as Grafana sends it to PostgreSQL.

    ``$__timeFilter(x)`` becomes ``x BETWEEN '<start>' AND '<end>'``, ``$__interval_ms`` the milliseconds
    between two points, ``${name:sqlstring}`` the chosen values as SQL strings with commas between them.
    """
    between = rf"\1 BETWEEN '{start.isoformat()}' AND '{end.isoformat()}'"
    text = re.sub(r"\$__timeFilter\(([^)]+)\)", between, query)
    text = text.replace("$__interval_ms", "60000")

    def values(found: re.Match[str]) -> str:
        return ", ".join("'" + value.replace("'", "''") + "'" for value in variables[found[1]])

    text = re.sub(r"\$\{(\w+):sqlstring\}", values, text)
    assert "$" not in text, f"nothing is known to put in: {text}"
    return text


def promql(expression: str, variables: Mapping[str, str]) -> str:
    """An expression as Grafana sends it to Prometheus: ``$name`` becomes the value."""
    text = re.sub(r"\$(\w+)", lambda found: variables[found[1]], expression)
    assert "$" not in text, f"nothing is known to put in: {text}"
    return text
