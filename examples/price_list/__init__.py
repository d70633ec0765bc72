"""An example application without a web framework: a nightly job that brings a price list up to date.

It knows nothing of auditing. ``otel-activity`` audits it as it is under ``opentelemetry-instrument``.
"""
