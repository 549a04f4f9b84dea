"""Token log-probabilities: asked for on request only, and their absence recorded with its reason."""

from collections.abc import Callable
from typing import Any

import openai
import pytest

import cmerwatch
from tests.sdk import openai_apps as apps
from tests.sdk.model_server import Behaviour, ModelServer, Say
from tests.sdk.openai_apps import asking, client_for, raised_by, request, sync_client

Recorded = Callable[[], list[dict[str, Any]]]
WAYS = [*apps.SYNC, *apps.ASYNC]


@pytest.mark.parametrize("way", [apps.create, apps.stream, apps.acreate, apps.astream])
def test_a_provider_without_logprobs_leaves_the_confidence_unknown_with_the_reason(
    way: Any, models: ModelServer, recorded: Recorded
) -> None:
    models.behaviour = Behaviour(logprobs="ignored")
    for options in ({}, {"logprobs": True}, {"extra_body": {"logprobs": True}}):
        apps.run(way, cmerwatch.wrap(client_for(way, models)), request(**options))
    events = recorded()
    assert [event["confidence_status"] for event in events] == [
        "not_requested",
        "unsupported_by_provider",
        "unsupported_by_provider",
    ]
    assert not any({"confidence", "logprobs", "tokens"} & event.keys() for event in events)


def test_numbers_that_are_no_logprobs_are_an_error_and_not_a_confidence(
    models: ModelServer, recorded: Recorded
) -> None:
    for values in ((0.9, 0.8), (-9999.0, -9999.0)):
        models.behaviour = Behaviour(says=[Say(("A", "."), values)])
        apps.create(cmerwatch.wrap(sync_client(models)), request(logprobs=True))
    for event in recorded():
        assert event["confidence_status"] == "error"
        assert "logprobs" not in event


def test_the_sentinel_travels_for_the_server_to_leave_out(models: ModelServer, recorded: Recorded) -> None:
    models.behaviour = Behaviour(says=[Say(("A", "."), (-9999.0, -0.5))])
    apps.create(cmerwatch.wrap(sync_client(models)), request(logprobs=True))
    assert recorded()[0]["logprobs"] == [-9999.0, -0.5]


@pytest.mark.parametrize("way", WAYS)
def test_logprobs_are_asked_for_only_on_request(way: Any, models: ModelServer, recorded: Recorded) -> None:
    apps.run(way, cmerwatch.wrap(client_for(way, models)), request())
    apps.run(way, cmerwatch.wrap(client_for(way, models), request_logprobs=True), request())
    assert [seen.get("logprobs") for seen in models.requests] == [None, True]
    assert [event["confidence_status"] for event in recorded()] == ["not_requested", "present"]


@pytest.mark.parametrize("way", WAYS)
def test_a_server_that_refuses_logprobs_is_asked_again_without_and_then_remembered(
    way: Any, models: ModelServer, recorded: Recorded
) -> None:
    models.behaviour = Behaviour(logprobs="refused")
    expected = apps.run(way, client_for(way, models), request())
    for _ in range(2):
        client = cmerwatch.wrap(client_for(way, models), request_logprobs=True)
        assert apps.run(way, client, request()) == expected
    assert [seen.get("logprobs") for seen in models.requests] == [None, True, None, None]
    assert [event["confidence_status"] for event in recorded()] == ["unsupported_by_model"] * 2


@pytest.mark.parametrize("status", [400, 403, 422])
def test_whatever_status_a_server_refuses_logprobs_with_the_app_gets_its_answer(
    status: int, models: ModelServer, recorded: Recorded
) -> None:
    models.behaviour = Behaviour(logprobs="refused", refused_with=status)
    apps.create(cmerwatch.wrap(sync_client(models), request_logprobs=True), request())
    assert [event["confidence_status"] for event in recorded()] == ["unsupported_by_model"]


@pytest.mark.parametrize("status", [401, 404, 429, 500])
def test_an_error_that_no_retry_without_logprobs_would_mend_is_the_apps(
    status: int, models: ModelServer, recorded: Recorded
) -> None:
    models.behaviour = Behaviour(logprobs="refused", refused_with=status)
    with pytest.raises(openai.APIStatusError):
        apps.create(cmerwatch.wrap(sync_client(models), request_logprobs=True), request())
    assert all(seen.get("logprobs") for seen in models.requests)


def test_another_model_at_the_same_address_is_asked_on_its_own(models: ModelServer, recorded: Recorded) -> None:
    models.behaviour = Behaviour(logprobs="refused")
    client = cmerwatch.wrap(sync_client(models), request_logprobs=True)
    for model in ("one", "two", "one", "two"):
        client.chat.completions.create(model=model, messages=asking())
    assert [seen["model"] for seen in models.requests if seen.get("logprobs")] == ["one", "two"]
    assert len(recorded()) == 4


def test_a_refusal_of_logprobs_that_the_app_asked_for_is_the_apps(models: ModelServer, recorded: Recorded) -> None:
    models.behaviour = Behaviour(logprobs="refused")
    client = cmerwatch.wrap(sync_client(models), request_logprobs=True)
    with pytest.raises(openai.BadRequestError, match="logprobs"):
        client.chat.completions.create(model="m", messages=asking(), logprobs=True)
    assert len(models.requests) == 1


def test_an_app_that_says_no_to_logprobs_is_obeyed(models: ModelServer, recorded: Recorded) -> None:
    client = cmerwatch.wrap(sync_client(models), request_logprobs=True)
    client.chat.completions.create(model="m", messages=asking(), logprobs=False)
    assert models.requests[0]["logprobs"] is False
    assert recorded()[0]["confidence_status"] == "not_requested"


def test_a_call_without_a_picture_is_never_altered(models: ModelServer, recorded: Recorded) -> None:
    client = cmerwatch.wrap(sync_client(models), request_logprobs=True)
    apps.create(client, request(messages=[{"role": "user", "content": "Hello"}]))
    assert "logprobs" not in models.requests[0]


def test_an_error_after_the_retry_stands_for_itself(models: ModelServer, recorded: Recorded) -> None:
    models.behaviour = Behaviour(logprobs="refused", status=500)
    native = raised_by(sync_client(models))
    watched = raised_by(cmerwatch.wrap(sync_client(models), request_logprobs=True))
    assert [type(error) for error in watched] == [type(error) for error in native]
    assert [seen.get("logprobs") for seen in models.requests] == [None, True, None]
