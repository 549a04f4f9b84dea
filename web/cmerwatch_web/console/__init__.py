"""The console: server-rendered pages for people. `install` is all the app needs to call."""

import fastapi
from fastapi import Depends

from cmerwatch_web.console import (
    account,
    alert_rules,
    alerts,
    assets,
    audit,
    auth,
    channels,
    events,
    joining,
    keys,
    ledger,
    overview,
    pages,
    policies,
    review,
    review_lists,
    settings,
    sink,
    throttle,
    users,
    visibility,
)

router = fastapi.APIRouter(include_in_schema=False, dependencies=[Depends(pages.refuse_foreign_forms)])
for part in (
    assets,
    auth,
    overview,
    events,
    alert_rules,  # before alerts, whose /alerts/{alert} would take its paths
    alerts,
    review_lists,
    review,
    ledger,
    settings,
    account,
    keys,
    users,
    joining,
    audit,
    policies,
    channels,
    visibility,
    sink,
):
    router.include_router(part.router)


def install(app: fastapi.FastAPI) -> None:
    """Add the pages and how their refusals are answered."""
    pages.install(app)
    auth.install(app)
    app.state.tries = throttle.Throttle()
    app.include_router(router)
