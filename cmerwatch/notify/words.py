"""What a notice says in words; every kind of channel lays out the same sentences. Plain text, untrusted throughout."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

from cmerwatch.notify.kind import Message
from cmerwatch.shapes import Notice, Part

_STATUS = {"firing": "Firing", "repeat": "Still firing", "resolved": "Resolved", "test": "Test"}
_FIRST = {"repeat": "Firing", "update": "Firing", "resolved": "Fired and resolved"}


def headline(message: Message) -> str:
    notice = message.notice
    return f"{status(message)}: {notice.rule} ({subject(notice)})"


def status(message: Message) -> str:
    """An alert that was never told of is told of with its end, and nothing is still firing to who never heard of it."""
    notice = message.notice
    if message.is_first and notice.status in _FIRST:
        return _FIRST[notice.status]
    return _changed(notice) if notice.status == "update" else _STATUS.get(notice.status, notice.status)


def _changed(notice: Notice) -> str:
    """How an incident went on, in slices: that it spread counts before what has recovered of it."""
    if notice.joined:
        return f"Now also on {_slices(notice.joined, 'more ')}"
    return f"{_slices(notice.recovered)} recovered, {notice.slices:,} still firing"


def _slices(count: int, word: str = "") -> str:
    return f"{count:,} {word}{'slice' if count == 1 else 'slices'}"


def subject(notice: Notice) -> str:
    """The slice that leads, or the whole project, and how many more there are."""
    others = f" and {_slices(notice.slices - 1, 'more ')}" if notice.slices > 1 else ""
    return named(notice.slice, notice.project) + others


def named(of: Mapping[str, str], project: str) -> str:
    if not of:
        return f"project {project}"
    return ", ".join(f"{name} {value}" for name, value in of.items())


def parts(notice: Notice) -> list[tuple[str, str]]:
    """What an incident of several slices lists: each slice with its numbers, and the address of its outputs."""
    if notice.slices <= 1:
        return []
    return [(f"{named(part.slice, notice.project)}: {_numbers(part)}", part.link) for part in notice.parts]


def unlisted(notice: Notice) -> str:
    """What the list leaves out, in words; empty when nothing."""
    left = notice.slices - len(notice.parts)
    return f"And {_slices(left, 'more ')}." if notice.slices > 1 and left > 0 else ""


def _numbers(part: Part) -> str:
    return part.reason if part.value is None and part.reason else rate(part)


def facts(notice: Notice) -> list[tuple[str, str]]:
    """Label and value of what is known, the most telling first."""
    found = [(notice.metric.upper(), rate(notice))]
    if notice.baseline is not None:
        found.append(("Usually", percent(notice.baseline)))
    found.append(("Condition", notice.condition))
    found.append(("Window", f"{moment(notice.window_start)} to {moment(notice.window_end)} UTC"))
    if notice.coverage is not None:
        found.append(("Coverage", percent(notice.coverage)))
    found.append(("Severity", notice.severity))
    found.append(("Project", notice.project))
    if notice.resolved_at:
        found.append(("Fired", f"{moment(notice.fired_at)} UTC"))
        found.append(("Resolved", f"{moment(notice.resolved_at)} UTC"))
    return [(label, value) for label, value in found if value]


def remarks(notice: Notice) -> list[str]:
    """The worst sub-slices of what is no incident of several, what else changed, and the reason, one line each."""
    worst = [f"{name} {value}: {percent(share)} of {n:,}" for name, value, share, n in notice.worst]
    return [*(["Worst: " + "; ".join(worst)] if worst else []), *notice.changes, *filter(None, [notice.reason])]


def rate(notice: Notice | Part) -> str:
    """Never a rate without its n and interval."""
    if notice.value is None:
        return f"unknown (n = {notice.n:,})"
    interval = ""
    if notice.low is not None and notice.high is not None:
        interval = f" [{percent(notice.low)}, {percent(notice.high)}]"
    return f"{percent(notice.value)}{interval}, n = {notice.n:,}"


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def moment(iso: str) -> str:
    """To the minute; text that is no time stays as it is."""
    try:
        return dt.datetime.fromisoformat(iso).astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return iso


def cut(text: str, limit: int) -> str:
    """At most `limit` characters, without the control characters that no service shows, an ellipsis where cut."""
    clean = "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"
