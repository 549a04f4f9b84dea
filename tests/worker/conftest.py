"""Fixtures of the worker's threads, which commit: a database of its own for each test."""

from __future__ import annotations

import uuid

import pytest

from cmerwatch import db
from tests import factories


@pytest.fixture
def project_id(committed: str) -> uuid.UUID:
    with db.transaction() as session:
        return factories.project(session, "acme")
