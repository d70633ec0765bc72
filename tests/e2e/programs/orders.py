"""Models of every delivery class, and a transaction that has a change of each and a strict action."""

from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from otel_activity import audited, log_user_action


class Base(DeclarativeBase):
    pass


@audited(delivery="strict")
class Invoice(Base):
    __tablename__ = "invoice"
    id: Mapped[int] = mapped_column(primary_key=True)


@audited(delivery="best_effort")
class Visit(Base):
    __tablename__ = "visit"
    id: Mapped[int] = mapped_column(primary_key=True)


class Task(Base):
    __tablename__ = "task"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


def order(session: Session) -> None:
    """Two strict events, one best-effort event, and two that are as the settings say; not committed."""
    invoice, visit, task = Invoice(), Visit(), Task(name="new")
    session.add_all([invoice, visit, task])
    session.flush()
    task.name = "renamed"
    log_user_action("order.pay", entity_id=invoice.id, session=session, delivery="strict")
