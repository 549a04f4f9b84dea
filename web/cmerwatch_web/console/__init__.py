"""The console: server-rendered pages for people. `router` is all the app needs to include."""

import fastapi

router = fastapi.APIRouter(include_in_schema=False)
