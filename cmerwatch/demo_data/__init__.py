"""A recorded run of the toy vision-language model: real pictures, answers and token logprobs.

The events are as an app would send them; only their age is made up, so that they can be laid
over the days before any moment.
"""

import gzip
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from zipfile import ZipFile


@dataclass(frozen=True)
class RecordedEvent:
    """`age_seconds` counts back from the end of the last closed bucket; `images` are sha256."""

    event_id: str
    age_seconds: float
    endpoint: str
    prompt_type: str
    customer: str
    model: str
    model_version: str
    environment: str
    images: tuple[str, ...]
    prompt: str
    output: str
    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]


def recording() -> Iterator[RecordedEvent]:
    """Every recorded event, the oldest first."""
    with (_folder() / "events.jsonl.gz").open("rb") as packed, gzip.open(packed, "rt") as lines:
        for line in lines:
            row = json.loads(line)
            for name in ("images", "tokens", "logprobs"):
                row[name] = tuple(row[name])
            yield RecordedEvent(**row)


def image(sha256: str) -> bytes:
    """The encoded picture; a hash that was not recorded is a KeyError."""
    return _images().read(f"{sha256}.webp")


@cache
def _images() -> ZipFile:
    return ZipFile(io.BytesIO((_folder() / "images.zip").read_bytes()))


def _folder() -> resources.abc.Traversable:
    return resources.files(__name__)
