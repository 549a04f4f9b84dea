"""What docs/security.md tells receivers to run does verify what we send."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path
from typing import Any

from cmerwatch.notify import webhook
from cmerwatch.notify.kind import Message
from tests import alerting

PAGE = Path(__file__).parents[2] / "docs" / "security.md"


def test_the_verifier_on_the_page_takes_our_messages_and_no_others() -> None:
    [code] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    verify = names["verify"]
    now = dt.datetime.now(dt.UTC)
    old = {"url": "https://hooks.example.com/", "secret": webhook.make_secret()}
    config = webhook.rotated(old, now)
    request = webhook.request(Message("message-1", alerting.notice()), config, now)
    assert verify(config["secret"], request.headers, request.body)
    assert verify(old["secret"], request.headers, request.body)
    assert not verify(webhook.make_secret(), request.headers, request.body)
    assert not verify(config["secret"], request.headers, request.body + b" ")
    late = webhook.request(Message("message-1", alerting.notice()), config, now - dt.timedelta(minutes=6))
    assert not verify(config["secret"], late.headers, late.body)
