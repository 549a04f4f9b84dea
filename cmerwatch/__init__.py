"""Watch what a vision-language-model app says about its images: the SDK's public names."""

from cmerwatch.sdk import testing
from cmerwatch.sdk.api import capture, context, flush, init, record, shutdown, stats, wrap
from cmerwatch.sdk.client import Client
from cmerwatch.sdk.counts import Stats
from cmerwatch.sdk.events import Event, Image

__all__ = [
    "Client",
    "Event",
    "Image",
    "Stats",
    "capture",
    "context",
    "flush",
    "init",
    "record",
    "shutdown",
    "stats",
    "testing",
    "wrap",
]
