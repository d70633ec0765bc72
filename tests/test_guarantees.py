"""docs/delivery.md names the tests that prove what it promises: they exist, and no promise is without one."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "delivery.md").read_text(encoding="utf-8")
NAME = re.compile(r"`([\w/]+\.py)::(test_\w+)`")
HEADED = re.compile(r"^\| (.*) \| proven by \|\n\|[-|]+\|\n((?:\|.*\|\n)+)", re.MULTILINE)


def rows() -> list[str]:
    """The rows of all tables that have a column for it."""
    return [row for table in HEADED.finditer(PAGE) for row in table[2].splitlines()]


@cache
def named_in(file: str) -> frozenset[str]:
    """Names of the tests that a module defines, in classes too."""
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    found = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, found))


def test_every_class_has_its_table() -> None:
    """Durable, strict, best effort, and what all of them survive."""
    assert len(HEADED.findall(PAGE)) == 4
    assert len(rows()) > 30
    assert len(re.findall(r"^\| guarantee \|", PAGE, re.MULTILINE)) == 3


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[2:60])
def test_every_guarantee_is_proven(row: str) -> None:
    """Each row names at least one test, and every test that it names is there."""
    named = NAME.findall(row.rsplit("|", 2)[1])
    assert named
    assert row.rsplit("|", 2)[1].count("test_") == sum(f"{file}{name}".count("test_") for file, name in named)
    assert [f"{file}::{name}" for file, name in named if name not in named_in(file)] == []
