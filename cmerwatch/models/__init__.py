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
from cmerwatch.models.alerts import (
    STATES,
    Alert,
    AlertRule,
    AlertState,
    AlertTransition,
    Channel,
    Delivery,
    Silence,
    SinkMessage,
)
from cmerwatch.models.base import Base
from cmerwatch.models.checks import (
    Check,
    Checker,
    CheckerReference,
    DecisionRow,
    PolicyVersion,
    Redecided1h,
    Redecided5m,
    Redecision,
    ReferenceSample,
    Rollup1h,
    Rollup5m,
)
from cmerwatch.models.events import LEASED, QUARANTINED, READY, Event, EventBody, Image, IngestKey, Work
from cmerwatch.models.judgements import JUDGEMENT_STATES, Judgement, JudgeSpend
from cmerwatch.models.reviews import ERROR_TYPES, VERDICTS, Review, ReviewItem
from cmerwatch.models.withheld import Withheld

# Every table split by day on a UUIDv7 column, with that column: partitions.py makes and drops their parts together.
PARTITIONED = {"events": "id", "event_bodies": "id", "checks": "event_id", "decisions": "event_id"}

__all__ = [
    "ERROR_TYPES",
    "JUDGEMENT_STATES",
    "LEASED",
    "PARTITIONED",
    "QUARANTINED",
    "READY",
    "ROLES",
    "STATES",
    "VERDICTS",
    "Alert",
    "AlertRule",
    "AlertState",
    "AlertTransition",
    "ApiKey",
    "AuditEntry",
    "Base",
    "Channel",
    "Check",
    "Checker",
    "CheckerReference",
    "ConsoleSession",
    "DecisionRow",
    "Delivery",
    "Event",
    "EventBody",
    "Heartbeat",
    "Image",
    "IngestKey",
    "JudgeSpend",
    "Judgement",
    "Membership",
    "PolicyVersion",
    "Project",
    "Redecided1h",
    "Redecided5m",
    "Redecision",
    "ReferenceSample",
    "Review",
    "ReviewItem",
    "Rollup1h",
    "Rollup5m",
    "SignInLink",
    "Silence",
    "SinkMessage",
    "User",
    "Withheld",
    "Work",
]
