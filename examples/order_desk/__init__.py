"""Flask takes orders, Celery works on them. Nothing here knows that it is audited."""
