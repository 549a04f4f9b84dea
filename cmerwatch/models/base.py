"""What every table shares: naming of constraints, and columns that repeat."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Annotated

import sqlalchemy as sa
from sqlalchemy import orm


class Base(orm.DeclarativeBase):
    metadata = sa.MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it from the class
        dt.datetime: sa.DateTime(timezone=True),
        uuid.UUID: sa.Uuid(),
        str: sa.Text(),
        bytes: sa.LargeBinary(),
        float: sa.Double(),
    }


Id = Annotated[uuid.UUID, orm.mapped_column(primary_key=True)]
CreatedAt = Annotated[dt.datetime, orm.mapped_column(server_default=sa.func.now())]
Dimension = Annotated[str, orm.mapped_column(server_default="")]


def project_key() -> orm.MappedColumn[uuid.UUID]:
    return orm.mapped_column(sa.ForeignKey("projects.id", ondelete="CASCADE"))


class Dimensions:
    """The six dimensions; '' when absent."""

    endpoint: orm.Mapped[Dimension]
    prompt_type: orm.Mapped[Dimension]
    customer: orm.Mapped[Dimension]
    model: orm.Mapped[Dimension]
    model_version: orm.Mapped[Dimension]
    environment: orm.Mapped[Dimension]
