"""From a request's bytes to events that may be stored and those that may not. Touches no database and no disk."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

from cmerwatch import errors, events, image_urls, settings
from cmerwatch import images as image_headers
from cmerwatch_web.api import bodies, schemas


@dataclass(slots=True)
class Arrival:
    """One event of a request: `event`, or the `error` that refuses it. `path` is "events[3]." or ""."""

    path: str
    event: events.NewEvent | None = None
    error: errors.CmerwatchError | None = None


@dataclass(slots=True)
class Arrivals:
    """The events of one request in order, and the pictures that came with them, by sha256."""

    rows: list[Arrival]
    pictures: dict[str, events.Picture] = field(default_factory=dict)


def read(sent: bodies.Sent, limits: settings.Settings) -> Arrivals:
    """Raises Invalid where the request as a whole makes no sense; what is wrong with one event stands in its row."""
    body, images = bodies.opened(sent)
    listed = _listed(bodies.document(body))
    needs_cleaning = bodies.needs_cleaning(body)
    reader = _Reader(images, limits)
    return Arrivals([reader.arrive(value, path, needs_cleaning) for path, value in listed], reader.pictures)


def _listed(value: Any) -> list[tuple[str, Any]]:
    """(path, value) of each event, whether one was sent or a list of them."""
    if not isinstance(value, dict):
        raise errors.Invalid('The body must be a JSON object: one event, or {"events": [...]}.', field="body")
    if "events" not in value:
        return [("", value)]
    others = sorted(set(value) - {"events"})
    if others:
        raise errors.Invalid(
            f"`{others[0][:64]}` must not stand beside `events`; put it into each event.", field=others[0][:64]
        )
    batch = value["events"]
    if not isinstance(batch, list) or not 1 <= len(batch) <= schemas.MAX_EVENTS:
        raise errors.Invalid(
            f"`events` must be a list of 1 to {schemas.MAX_EVENTS} events; send more in several requests.",
            field="events",
            limit=schemas.MAX_EVENTS,
        )
    return [(f"events[{index}].", event) for index, event in enumerate(batch)]


class _Reader:
    """Reads the events of one request; each picture that several of them share is looked at once."""

    def __init__(self, parts: dict[str, bytes], limits: settings.Settings) -> None:
        self.parts = parts
        self.limits = limits
        self.header_limits = image_headers.Limits(side=limits.max_image_side, pixels=limits.max_image_pixels)
        self.pictures: dict[str, events.Picture] = {}

    def arrive(self, value: Any, path: str, needs_cleaning: bool) -> Arrival:
        try:
            sanitized = False
            if needs_cleaning:
                value, sanitized = bodies.cleaned(value)
            source = schemas.read_event(value, path, self.limits.max_text_chars)
            urls = [
                (i, image_urls.taken(image.url, self.url_rules, f"{path}images[{i}].url"))
                for i, image in enumerate(source.images)
                if image.url is not None
            ]
            pictures = [
                self._look(image, f"{path}images[{i}]") for i, image in enumerate(source.images) if image.url is None
            ]
        except errors.CmerwatchError as error:
            return Arrival(path, error=error)
        # Only now: what came with an event that is refused is not stored for its sake.
        self.pictures |= {sha256: picture for sha256, picture in pictures if picture is not None}
        return Arrival(path, schemas.new_event(source, [sha256 for sha256, _ in pictures], sanitized, urls))

    @functools.cached_property
    def url_rules(self) -> image_urls.Rules:
        """Not read for a request without URLs."""
        return image_urls.Rules(self.limits.picture_hosts)

    def _look(self, image: schemas.ImageSource, name: str) -> tuple[str, events.Picture | None]:
        """(sha256, picture); the picture is None where the event only names bytes uploaded before."""
        limit = self.limits.max_image_bytes
        if image.data is not None:
            data, sha256 = schemas.inline_image(image.data, f"{name}.data", limit), None
        else:
            sha256 = image.sha256 or ""
            if sha256 in self.pictures or sha256 not in self.parts:
                return sha256, self.pictures.get(sha256)
            data = self.parts[sha256]
        if len(data) > limit:
            raise schemas.image_too_large(name, limit)
        try:
            picture = events.look(data, sha256, self.header_limits)
        except errors.ImageRefused as error:
            raise at(error, name) from None
        return picture.sha256, picture


def at(error: errors.CmerwatchError, name: str) -> errors.CmerwatchError:
    """The same refusal, saying which field of which event it is about."""
    return type(error)(f"`{name}`: {error.message}", **(error.details | {"field": name}))
