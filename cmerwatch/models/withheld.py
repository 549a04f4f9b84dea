"""Checks that are scored, and that the policy in force then could not decide."""

from __future__ import annotations

import uuid

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch.models.base import Base


class Withheld(Base):
    """One check a fixed cosine was asked to decide although its checker's logit has a bias.

    `policy_version`: the one it is counted under as undecided. A row is deleted in the transaction that decides its
    check under a later version, which is what makes that happen once.
    """

    __tablename__ = "withheld"

    project_id: orm.Mapped[uuid.UUID] = orm.mapped_column(
        sa.ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True
    )
    policy_version: orm.Mapped[int] = orm.mapped_column(primary_key=True, autoincrement=False)
    event_id: orm.Mapped[uuid.UUID] = orm.mapped_column(primary_key=True)
    checker_id: orm.Mapped[int] = orm.mapped_column(primary_key=True, autoincrement=False)
