"""Invoices: Flask, Flask-Login and SQLAlchemy. Knows nothing of auditing."""
