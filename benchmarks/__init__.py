"""What auditing costs, measured side by side: `python -m benchmarks`. Not part of the installed package."""
