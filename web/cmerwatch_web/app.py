"""The web process: routers, middleware, what they share. `uvicorn --factory cmerwatch_web.app:create_app` runs it."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import AsyncIterator

from fastapi import FastAPI

from cmerwatch import blobs, db, queue, settings
from cmerwatch_web import console, errors, security
from cmerwatch_web.api import alerts, channels, cmer, events, health, images, intake, ledger, policies, reviews, sink

STATEMENT_TIMEOUT_MS = 10_000  # a locked table answers 503 by then, before every thread waits for it


def create_app(configuration: settings.Settings | None = None) -> FastAPI:
    """The whole application. It connects to nothing before its start (lifespan)."""
    configuration = configuration or settings.current()
    configuration.require_secret()
    app = FastAPI(
        title="cmerwatch",
        description="Hallucination monitoring for vision-language-model apps.",
        lifespan=_lifespan,
        docs_url=None,  # the stock page loads scripts from elsewhere, which our content policy forbids
        redoc_url=None,
        openapi_url="/openapi.json",
        telemetry={"tracing": False, "metrics": False, "logs": False},  # /metrics is ours; this asks at every request
    )
    app.state.settings = configuration
    app.state.blobs = blobs.FolderStore(configuration.blob_dir)
    app.state.intake = intake.Intake(app.state)
    for part in (events, images, cmer, ledger, policies, reviews, alerts, channels, health):
        app.include_router(part.router)
    if configuration.demo_sink:
        app.include_router(sink.router)
    console.install(app)
    errors.install(app)
    # The last one added is the outermost.
    app.add_middleware(security.BodyLimits, limit=configuration.max_body_bytes)
    app.add_middleware(errors.LastResort)
    app.add_middleware(security.SecurityHeaders, https=configuration.public_url.startswith("https://"))
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    configuration: settings.Settings = app.state.settings
    engine = db.configure(configuration.database_url, statement_timeout_ms=STATEMENT_TIMEOUT_MS)
    queue.configure(configuration)
    gc.freeze()  # modules and routes live as long as the process: walking them again and again is what made tails long
    try:
        yield
    finally:
        queue.close()
        engine.dispose()
