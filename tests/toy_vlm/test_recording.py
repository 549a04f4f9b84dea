import gzip
import hashlib
import io
import json
from collections import Counter
from importlib import resources
from typing import Any

import pytest
from PIL import Image

from cmerwatch import demo_data
from cmerwatch.demo_data import RecordedEvent
from toy_vlm import captions, record, vlm

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0


@pytest.fixture(scope="module")
def events() -> list[RecordedEvent]:
    return list(demo_data.recording())


@pytest.fixture(scope="module")
def truths() -> dict[str, dict[str, Any]]:
    rows = gzip.decompress(record.TRUTH.read_bytes()).decode().splitlines()
    return {row["event_id"]: row for row in map(json.loads, rows)}


def test_there_are_enough_events_in_all_and_at_the_end(events: list[RecordedEvent]) -> None:
    assert len(events) >= 2400
    assert sum(event.age_seconds <= 30 * MINUTE for event in events) >= 260


def test_the_run_spans_eight_days_without_leaving_them(events: list[RecordedEvent]) -> None:
    ages = [event.age_seconds for event in events]
    assert ages == sorted(ages, reverse=True)
    assert 0 < ages[-1] < 5 * MINUTE
    assert 7.5 * DAY < ages[0] < 8 * DAY


def test_days_are_busier_than_nights(events: list[RecordedEvent]) -> None:
    by_quarter = Counter(
        int(((event.age_seconds + 1 * HOUR) % DAY) // (6 * HOUR)) for event in events if event.age_seconds > 6 * HOUR
    )
    assert max(by_quarter.values()) > 3 * min(by_quarter.values())


def test_three_endpoints_each_take_every_prompt_type_from_three_customers(events: list[RecordedEvent]) -> None:
    seen = {(event.endpoint, event.prompt_type) for event in events}
    assert seen == {(endpoint, kind) for endpoint in record.ENDPOINTS for kind in captions.PROMPTS}
    assert {event.customer for event in events} == set(record.CUSTOMERS)
    assert all(event.prompt == captions.PROMPTS[event.prompt_type] for event in events)


def test_the_regressed_version_is_live_for_the_last_hours_only(events: list[RecordedEvent]) -> None:
    last = [event for event in events if event.age_seconds <= record.REGRESSED_FOR - MINUTE]
    before = [event for event in events if event.age_seconds > record.REGRESSED_FOR]
    assert {event.model_version for event in before} == {vlm.GOOD}
    assert 0.85 < sum(event.model_version == vlm.REGRESSED for event in last) / len(last) < 1


def test_every_event_has_a_logprob_for_each_token_of_its_output(events: list[RecordedEvent]) -> None:
    for event in events:
        assert "".join(event.tokens) == event.output
        assert len(event.tokens) == len(event.logprobs) > 0
        assert all(value <= 0 for value in event.logprobs)
    assert len({event.event_id for event in events}) == len(events)


def test_every_picture_is_there_under_its_hash_and_nothing_else_is(events: list[RecordedEvent]) -> None:
    named = {sha256 for event in events for sha256 in event.images}
    for sha256 in named:
        packed = demo_data.image(sha256)
        assert hashlib.sha256(packed).hexdigest() == sha256
        with Image.open(io.BytesIO(packed)) as picture:
            assert max(picture.size) == record.SIDE
    with pytest.raises(KeyError):
        demo_data.image("0" * 64)


def test_the_recording_is_small_enough_to_ship() -> None:
    folder = resources.files(demo_data)
    size = sum(len((folder / name).read_bytes()) for name in ("events.jsonl.gz", "images.zip"))
    assert size <= 4_000_000


def test_some_answers_are_bare_numbers(events: list[RecordedEvent]) -> None:
    bare = sum(event.output.isdigit() for event in events)
    assert 10 <= bare <= 0.1 * len(events)


def test_the_recording_is_what_the_shipped_weights_say(events: list[RecordedEvent]) -> None:
    for version in (vlm.GOOD, vlm.REGRESSED):
        model = vlm.load(version)
        for event in [event for event in events if event.model_version == version][::40]:
            with Image.open(io.BytesIO(demo_data.image(event.images[0]))) as picture:
                answer = model.answer(picture, event.prompt)
            assert answer.text == event.output
            assert answer.logprobs == pytest.approx(event.logprobs, abs=1e-3)


def test_the_truth_beside_the_recording_is_about_the_same_events(
    events: list[RecordedEvent], truths: dict[str, dict[str, Any]]
) -> None:
    assert list(truths) == [event.event_id for event in events]


def test_the_regressed_version_is_wrong_several_times_as_often(
    events: list[RecordedEvent], truths: dict[str, dict[str, Any]]
) -> None:
    wrong = {
        version: [not truths[event.event_id]["true"] for event in events if event.model_version == version]
        for version in (vlm.GOOD, vlm.REGRESSED)
    }
    rates = {version: sum(rows) / len(rows) for version, rows in wrong.items()}
    assert rates[vlm.GOOD] < 0.08
    assert rates[vlm.REGRESSED] > 0.3
