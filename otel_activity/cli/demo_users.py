"""Simulated people: concurrent users of the example application, over HTTP, from one seed."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import httpx

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["FIXED_ACTIONS", "Crowd", "expected_events"]

FIXED_ACTIONS: Final = 60
"""Actions of each user in the fixed scenario."""
IMPORTED: Final = 80
"""Tasks that each project begins with, created in one transaction."""
EVENTS_PER_USER: Final = 170
"""Events a user of the fixed scenario causes at the very least, whatever the order of things."""

_WORDS: Final = (
    "draft",
    "review",
    "pump",
    "valve",
    "invoice",
    "café",
    "ship",
    "label",
    "测试",
    "roof",
    "cable",
)
_LABELS: Final = ("bug", "urgent", "later", "blocked", "customer", "idea", "safety", "cost")
_STATUSES: Final = ("open", "active", "review", "done")


def expected_events(users: int) -> int:
    """How many events the fixed scenario has to yield at least."""
    return users * EVENTS_PER_USER


@dataclass
class _Project:
    id: str
    tasks: list[int] = field(default_factory=list)


class Crowd:
    """Everybody who uses the application, and what they know of its contents.

    Args:
        url: where the application answers.
        users: how many act at the same time.
        seed: decides who does what; the order in which requests meet in the application is not decided.
    """

    def __init__(self, url: str, *, users: int, seed: int) -> None:
        self._url = url
        self._size = users
        self._seed = seed
        self._run = uuid.UUID(int=random.Random().getrandbits(128)).hex[:8]  # addresses are unique for ever
        self._people: list[int] = []
        self._projects: list[_Project] = []
        self._comments: list[int] = []
        self.statuses: Counter[str] = Counter()
        """Responses: ``done`` (2xx), ``refused`` (4xx), ``failed`` (5xx), ``lost`` (no response)."""

    async def work(self, *, actions: int | None) -> None:
        """Everybody registers, starts a project and acts.

        Args:
            actions: how many actions of each; endless, with pauses for people to watch, if None.
        """
        limits = httpx.Limits(max_connections=self._size + 4)
        async with httpx.AsyncClient(
            base_url=self._url, timeout=60, limits=limits, trust_env=False
        ) as client:
            users = [_User(self, client, random.Random(f"{self._seed}/{n}"), n) for n in range(self._size)]
            async with asyncio.TaskGroup() as group:
                for user in users:
                    group.create_task(user.arrive())
            async with asyncio.TaskGroup() as group:
                for user in users:
                    group.create_task(user.act(actions))
            if actions is not None:
                await self._wind_up(users)

    async def _wind_up(self, users: list[_User]) -> None:
        """The end of the fixed scenario: big updates and big cascades."""
        projects = list(self._projects)
        async with asyncio.TaskGroup() as group:
            for user, project in zip(users, projects, strict=False):
                group.create_task(user.archive(project) if user.number % 2 else user.delete_project(project))

    def register(self, person: int) -> None:
        """Remember somebody others can assign tasks to."""
        self._people.append(person)

    def add(self, project: _Project) -> None:
        """Remember a project."""
        self._projects.append(project)

    def forget(self, project: _Project) -> None:
        """A project that is being deleted is left alone."""
        if project in self._projects:
            self._projects.remove(project)

    @property
    def people(self) -> list[int]:
        """Ids of the registered."""
        return self._people

    @property
    def projects(self) -> list[_Project]:
        """Projects that exist."""
        return self._projects

    @property
    def comments(self) -> list[int]:
        """Ids of comments that may still exist."""
        return self._comments


class _User:
    """One person: a random generator of its own, and a share of what everybody sees."""

    def __init__(self, crowd: Crowd, client: httpx.AsyncClient, chance: random.Random, number: int) -> None:
        self.number = number
        self._crowd = crowd
        self._client = client
        self._chance = chance
        self._id = 0
        self._login: tuple[str, str] | None = None
        self._actions: tuple[tuple[Callable[[], Awaitable[None]], int], ...] = (
            (self._change_task, 22),
            (self._comment, 16),
            (self._label, 14),
            (self._create_task, 10),
            (self._reassign, 8),
            (self._spend, 7),
            (self._change_settings, 5),
            (self._change_preferences, 5),
            (self._invite, 5),
            (self._dry_run, 2),
            (self._delete_comment, 4),
            (self._delete_task, 3),
            (self._comment_on_nothing, 2),
            (self._register_again, 1),
            (self._archive_empty, 1),
        )

    async def arrive(self) -> None:
        """Register and start a project with many tasks."""
        email, password = self._email(), f"secret of {self._email()}"
        person = await self._send(
            "POST",
            "/users",
            {
                "email": email,
                "name": f"Person {self.number}",
                "password": password,
                "hourly_rate": f"{self._chance.randint(2000, 12000) / 100:.2f}",
                "preferences": {"theme": self._chance.choice(("light", "dark")), "columns": ["title", "due"]},
            },
        )
        if person is None:
            return
        self._id, self._login = person["id"], (email, password)
        self._crowd.register(self._id)
        await self.start_project()

    async def act(self, actions: int | None) -> None:
        """Do things at random."""
        weights = [weight for _, weight in self._actions]
        done = 0
        while self._id and (actions is None or done < actions):
            (action, _) = self._chance.choices(self._actions, weights)[0]
            await action()
            done += 1
            if actions is None:
                await self._pause()

    async def start_project(self, tasks: int = IMPORTED) -> None:
        """A project, its owner as a member, and a bulk of tasks in one transaction."""
        project = await self._new_project()
        if project is None:
            return
        await self._send("POST", f"/projects/{project.id}/import", [self._task() for _ in range(tasks)])
        listed = await self._send("GET", f"/projects/{project.id}/tasks")
        project.tasks = [task["id"] for task in listed or ()]
        self._crowd.add(project)

    async def archive(self, project: _Project) -> None:
        """Close every task of a project in one transaction."""
        await self._send("POST", f"/projects/{project.id}/archive")

    async def delete_project(self, project: _Project) -> None:
        """Delete a project with everything in it."""
        self._crowd.forget(project)
        await self._send("DELETE", f"/projects/{project.id}")

    # --- actions --------------------------------------------------------------------------------------

    async def _change_task(self) -> None:
        changes = self._chance.choice(
            (
                {"status": self._chance.choice(_STATUSES)},
                {"priority": self._chance.randint(1, 5)},
                {
                    "title": self._title(),
                    "details": {"note": self._title(), "steps": self._chance.randint(1, 9)},
                },
            )
        )
        await self._send("PATCH", f"/tasks/{self._a_task()}", changes)

    async def _comment(self) -> None:
        comment = {"author_id": self._id, "body": f"What about the {self._title()}?\nWe should talk."}
        made = await self._send("POST", f"/tasks/{self._a_task()}/comments", comment)
        if made is not None:
            self._crowd.comments.append(made["id"])

    async def _label(self) -> None:
        names = self._chance.sample(_LABELS, self._chance.randint(0, 3))
        await self._send("PUT", f"/tasks/{self._a_task()}/labels", {"names": names})

    async def _create_task(self) -> None:
        project = self._chance.choice(self._crowd.projects)
        made = await self._send("POST", f"/projects/{project.id}/tasks", self._task())
        if made is not None:
            project.tasks.append(made["id"])

    async def _reassign(self) -> None:
        await self._send("POST", f"/tasks/{self._a_task()}/reassign/{self._id}")

    async def _spend(self) -> None:
        """Now and then too much: the change was written, then the application refuses and rolls back."""
        amount = self._chance.choice(("12.50", "99.99", "0.01", "100000.00"))
        await self._send("POST", f"/projects/{self._a_project().id}/spending", {"amount": amount})

    async def _change_settings(self) -> None:
        settings = {
            "colour": self._chance.choice(("red", "blue")),
            "limits": {"open": self._chance.randint(5, 50)},
        }
        await self._send("PATCH", f"/projects/{self._a_project().id}", {"settings": settings})

    async def _change_preferences(self) -> None:
        preferences = {"theme": self._chance.choice(("light", "dark")), "page": self._chance.randint(10, 99)}
        await self._send("PATCH", f"/users/{self._id}", {"preferences": preferences})

    async def _invite(self) -> None:
        """Many at once; those who are members already, and one who does not exist, cost a savepoint each."""
        count = min(len(self._crowd.people), 4)
        people: list[dict[str, Any]] = [
            {"user_id": person} for person in self._chance.sample(self._crowd.people, count)
        ]
        people.append({"user_id": 2_000_000_000, "role": "guest"})
        await self._send("POST", f"/projects/{self._a_project().id}/members", people)

    async def _dry_run(self) -> None:
        tasks = [self._task() for _ in range(10)]
        await self._send("POST", f"/projects/{self._a_project().id}/import?dry_run=true", tasks)

    async def _delete_comment(self) -> None:
        if self._crowd.comments:
            position = self._chance.randrange(len(self._crowd.comments))
            await self._send("DELETE", f"/comments/{self._crowd.comments.pop(position)}")

    async def _delete_task(self) -> None:
        project = self._a_project()
        if len(project.tasks) > 1:
            task = project.tasks.pop(self._chance.randrange(len(project.tasks)))
            await self._send("DELETE", f"/tasks/{task}")

    async def _comment_on_nothing(self) -> None:
        await self._send(
            "POST", "/tasks/2000000000/comments", {"author_id": self._id, "body": "Anybody here?"}
        )

    async def _register_again(self) -> None:
        again = {"email": self._email(), "name": "Impostor", "password": "x"}
        await self._send("POST", "/users", again)

    async def _archive_empty(self) -> None:
        """A project without tasks meets the bug in the application: it fails after the change was written."""
        project = await self._new_project()
        if project is not None:
            await self._send("POST", f"/projects/{project.id}/archive")

    # --- what they need -------------------------------------------------------------------------------

    def _email(self) -> str:
        return f"person{self.number}.{self._crowd._run}@example.org"

    def _title(self) -> str:
        return " ".join(self._chance.sample(_WORDS, 3))

    def _task(self) -> dict[str, Any]:
        return {
            "title": self._title(),
            "assignee_id": self._chance.choice((self._id, None)),
            "estimate": self._chance.choice(("0.5", "2.25", "13", None)),
            "due_on": self._chance.choice(("2027-02-28", None)),
            "details": {"source": "import", "weight": self._chance.randint(1, 1000) / 8, "tags": []},
        }

    def _a_project(self) -> _Project:
        return self._chance.choice(self._crowd.projects)

    def _a_task(self) -> int:
        """A task of anybody's; 0, which does not exist, if a project has none left."""
        tasks = self._a_project().tasks
        return self._chance.choice(tasks) if tasks else 0

    async def _new_project(self) -> _Project | None:
        budget = f"{self._chance.randint(1000, 9999)}.00"
        project = {"owner_id": self._id, "name": self._title(), "budget": budget, "starts_on": "2026-11-02"}
        made = await self._send("POST", "/projects", project)
        return None if made is None else _Project(made["id"])

    async def _pause(self) -> None:
        await asyncio.sleep(self._chance.uniform(0.1, 1.2))

    async def _send(self, method: str, path: str, body: Any = None) -> Any:
        """Send one request and count the answer; None unless it was done."""
        # A server closes the connection after a crash in a handler: none is used twice for those.
        headers = {"connection": "close"} if path.endswith("/archive") else {}
        try:
            response = await self._client.request(method, path, json=body, headers=headers, auth=self._login)
        except httpx.TransportError:
            self._crowd.statuses["lost"] += 1
            return None
        kind = {2: "done", 4: "refused"}.get(response.status_code // 100, "failed")
        self._crowd.statuses[kind] += 1
        return response.json() if kind == "done" and response.content else None
