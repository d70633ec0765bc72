"""Tests of otel_activity; `pip install -e ".[test]" && pytest`."""
