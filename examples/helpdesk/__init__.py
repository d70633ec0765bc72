"""A help desk: Django for users, sessions and pages, SQLAlchemy for tickets. Knows nothing of auditing."""
