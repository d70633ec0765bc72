"""``python -m otel_activity``: the command line by the interpreter that the service runs on."""

from __future__ import annotations

from otel_activity.cli import main

if __name__ == "__main__":
    main()
