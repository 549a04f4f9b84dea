"""Is the process alive, is it ready to take events, and what does it count."""

from __future__ import annotations

import datetime as dt
from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from sqlalchemy import orm

from cmerwatch import checks, deliveries, fetches, models, partitions
from cmerwatch_web import deps, errors
from cmerwatch_web.api import metrics

router = APIRouter(tags=["health"])

MAX_SKEW_SECONDS = 30.0  # ids carry our clock, leases the database's: far apart, buckets and pages disagree


@router.get("/healthz")
async def get_healthz() -> JSONResponse:
    """The process answers; nothing else is asked. Async: it answers even while every thread waits for the database."""
    return JSONResponse({"status": "alive"})


@router.get("/readyz")
def get_readyz(session: deps.Session) -> JSONResponse:
    """200 when an event sent now would be accepted: the database answers, clocks agree, today has its partitions."""
    theirs: dt.datetime = session.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
    skew = abs((dt.datetime.now(dt.UTC) - theirs).total_seconds())
    days = partitions.days_ahead(session.connection())
    state: dict[str, Any] = {
        "database": "ready",
        "clock": "ready" if skew <= MAX_SKEW_SECONDS else "skewed",
        "clock_skew_seconds": round(skew, 3),
        "partitions": "ready" if days else "missing",
        "partition_days_ahead": days,
        # Told, not required: without a worker events wait, but they are taken.
        "worker_clock_seconds_ago": _beat_seconds_ago(session, "clock"),
    }
    if "skewed" in state.values() or "missing" in state.values():
        message = "Not ready: the clock is off, or today has no partition (`cmerwatch worker` makes them)."
        return JSONResponse(errors.body("unavailable", message, state), 503, errors.retry_headers())
    return JSONResponse({"status": "ready", **state})


def _beat_seconds_ago(session: orm.Session, name: str) -> float | None:
    """How long ago a worker's clock, or its alert rules, last finished a round (every 15 s); None before the first."""
    age = sa.extract("epoch", sa.func.clock_timestamp() - models.Heartbeat.at)
    seconds = session.scalar(sa.select(age).where(models.Heartbeat.name == name))
    return None if seconds is None else round(float(seconds), 1)


@router.get("/metrics")
def get_metrics(session: deps.Session) -> Response:
    return Response(metrics.text(_gauges(session)), media_type=metrics.TEXT)


def _gauges(session: orm.Session) -> dict[str, tuple[str, float]]:
    quarantined = sa.select(sa.func.count()).select_from(models.Work).where(models.Work.state == models.QUARANTINED)
    clock = _beat_seconds_ago(session, "clock")
    rules = _beat_seconds_ago(session, "alerts")
    messages = deliveries.counts(session)
    pictures = fetches.counts(session)
    return {
        "cmerwatch_worker_clock_age_seconds": (
            "Seconds since a worker's clock last finished a round; NaN before the first.",
            float("nan") if clock is None else clock,
        ),
        "cmerwatch_alert_rules_age_seconds": (
            "Seconds since a worker last evaluated everybody's alert rules; NaN before the first.",
            float("nan") if rules is None else rules,
        ),
        "cmerwatch_waiting": ("Events accepted and not yet checked.", checks.waiting(session)),
        "cmerwatch_quarantined": ("Events no worker survived.", session.execute(quarantined).scalar_one()),
        "cmerwatch_partition_days_ahead": (
            "Days from today on that can take events; at 0 ingest refuses.",
            partitions.days_ahead(session.connection()),
        ),
        "cmerwatch_image_fetches_waiting": ("Pictures named by URL and not there yet.", pictures.waiting),
        "cmerwatch_image_fetches_overdue": (
            "Of these, what a worker should have asked for a minute ago.",
            pictures.overdue,
        ),
        "cmerwatch_image_fetches_failed": (
            "Pictures named by URL and given up in the last day.",
            pictures.failed_today,
        ),
        "cmerwatch_messages_waiting": ("Alerts' messages not yet delivered.", messages.waiting),
        "cmerwatch_messages_overdue": (
            "Of these, what a worker should have sent a minute ago, not counting channels that are off.",
            messages.overdue,
        ),
        "cmerwatch_messages_dead": ("Messages given up in the last day.", messages.dead_today),
        "cmerwatch_channels_off": ("Channels switched off, by a person or a permanent error.", messages.channels_off),
    }
