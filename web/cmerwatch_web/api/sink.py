"""POST /sink/...: the demo's stand-in for Slack, PagerDuty and a webhook's receiver, which keeps what it is sent."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.concurrency import run_in_threadpool

from cmerwatch import db, errors, sink

router = APIRouter(prefix="/sink", include_in_schema=False)

MAX_BYTES = 512_000  # PagerDuty's limit, the largest of the three


@router.post("/{project}/{kind}")
async def post_message(request: Request, project: str, kind: str) -> Response:
    """Answers as the real service does."""
    body = await request.body()
    if len(body) > MAX_BYTES:
        raise errors.TooLarge(f"The body is over the limit of {MAX_BYTES} bytes.", field="body", limit=MAX_BYTES)
    await run_in_threadpool(_store, project, kind, dict(request.headers), body)
    if kind == "slack":
        return PlainTextResponse("ok")
    if kind == "pagerduty":
        return JSONResponse({"status": "success", "message": "Event processed"}, 202)
    return Response(status_code=204)


def _store(project: str, kind: str, headers: dict[str, str], body: bytes) -> None:
    with db.transaction() as session:
        sink.store(session, project, kind, headers, body)
