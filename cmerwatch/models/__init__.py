"""Tables only: no behaviour, no queries."""

from cmerwatch.models.accounts import (
    ROLES,
    ApiKey,
    AuditEntry,
    ConsoleSession,
    Heartbeat,
    Membership,
    Project,
    SignInLink,
    User,
)
from cmerwatch.models.base import Base
from cmerwatch.models.checks import (
    Check,
    Checker,
    DecisionRow,
    PolicyVersion,
    ReviewItem,
    Rollup1h,
    Rollup5m,
)
from cmerwatch.models.events import LEASED, QUARANTINED, READY, Event, EventBody, Image, IngestKey, Work

# Every table split by day on a UUIDv7 column, with that column: partitions.py makes and drops their parts together.
PARTITIONED = {"events": "id", "event_bodies": "id", "checks": "event_id", "decisions": "event_id"}

__all__ = [
    "LEASED",
    "PARTITIONED",
    "QUARANTINED",
    "READY",
    "ROLES",
    "ApiKey",
    "AuditEntry",
    "Base",
    "Check",
    "Checker",
    "ConsoleSession",
    "DecisionRow",
    "Event",
    "EventBody",
    "Heartbeat",
    "Image",
    "IngestKey",
    "Membership",
    "PolicyVersion",
    "Project",
    "ReviewItem",
    "Rollup1h",
    "Rollup5m",
    "SignInLink",
    "User",
    "Work",
]
