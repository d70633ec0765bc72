"""Create all tables, Django's and ours, and users."""

from argparse import ArgumentParser
from typing import Any

from django.contrib.auth.models import User
from django.core.management import call_command
from django.core.management.base import BaseCommand

from helpdesk.database import engine
from helpdesk.models import Base


class Command(BaseCommand):
    """python -m helpdesk.manage setup --user NAME:PASSWORD[:staff]"""

    help = __doc__

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Users, as many as one likes."""
        parser.add_argument("--user", action="append", default=[], metavar="NAME:PASSWORD[:staff]")

    def handle(self, *args: Any, **options: Any) -> None:
        """Create what is missing."""
        call_command("migrate", verbosity=0)
        Base.metadata.create_all(engine)
        for given in options["user"]:
            name, password, *role = given.split(":")
            user, _ = User.objects.get_or_create(username=name)
            user.is_staff = role == ["staff"]
            user.set_password(password)
            user.save()
