"""Every setting: environment variables with the prefix CMERWATCH_; a bad value stops the start by name."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any, Literal

import pydantic
import pydantic_settings

from cmerwatch import addresses, errors

MIN_SECRET = 32


class Settings(pydantic_settings.BaseSettings):
    """Each field is `CMERWATCH_<NAME>`; secrets may be read from the file named by `CMERWATCH_<NAME>_FILE`."""

    model_config = pydantic_settings.SettingsConfigDict(env_prefix="CMERWATCH_", extra="ignore")

    database_url: str = pydantic.Field(
        "postgresql://localhost/cmerwatch", description="Postgres, the one source of truth."
    )
    redis_url: str = pydantic.Field("", description="Hints only; empty uses a folder in `data_dir` as broker.")
    data_dir: Path = pydantic.Field(Path(".cmerwatch"), description="Blobs, secrets and the folder broker.")
    # Not free text: a "prod" that nobody refuses would let the demo checker score real traffic.
    environment: Literal["development", "staging", "production"] = pydantic.Field(
        "development", description="`development`, `staging` or `production`; production refuses the demo checker."
    )
    checker: str = pydantic.Field(
        "openclip:ViT-B-32-256:datacomp_s34b_b86k",
        description="`demo`, `bundle:/path`, `openclip:MODEL:TAG` or `openclip-local:CONFIG:WEIGHTS`.",
    )
    public_url: str = pydantic.Field("http://127.0.0.1:8383", description="Where people reach the console.")
    secret_key: pydantic.SecretStr = pydantic.Field(
        pydantic.SecretStr(""),
        description="Peppers API keys; at least 32 characters. `up` and `demo` make one on their first start.",
    )
    max_body_bytes: int = pydantic.Field(32 << 20, ge=1 << 10, description="Largest request body.")
    max_image_bytes: int = pydantic.Field(10 << 20, ge=1 << 10, description="Largest single image.")
    max_image_pixels: int = pydantic.Field(25_000_000, ge=64, description="Largest width x height.")
    max_image_side: int = pydantic.Field(16_384, ge=8, description="Largest width or height.")
    max_text_chars: int = pydantic.Field(200_000, ge=100, description="Largest prompt or output.")
    lease_seconds: int = pydantic.Field(30, ge=1, description="How long a worker may hold an event unseen.")
    poll_seconds: float = pydantic.Field(2.0, gt=0, description="How often workers look without a hint.")
    batch_size: int = pydantic.Field(256, ge=1, le=4096, description="Events a worker claims at once.")
    decode_processes: int = pydantic.Field(
        0, ge=0, le=64, description="Sacrificial image decoders per worker; 0: one less than there are cores, 2 to 16."
    )
    watchdog_seconds: int = pydantic.Field(60, ge=5, description="A worker without progress for this long exits.")
    audit_rate: float = pydantic.Field(
        0.02, ge=0, le=1, description="Share of unflagged events drawn at random for review."
    )
    contrast: bool = pydantic.Field(
        False, description="Compare each claim with edits of itself too: ten times the texts, and calibrates anew."
    )
    judge_url: str = pydantic.Field(
        "", description="Base URL of an OpenAI-compatible server that judges suspicious claims; empty asks nobody."
    )
    judge_model: str = pydantic.Field(
        "", validate_default=True, description="The vision-language model it is asked for."
    )
    judge_api_key: pydantic.SecretStr = pydantic.Field(pydantic.SecretStr(""), description="Its key, if it wants one.")
    judge_below: float | None = pydantic.Field(
        None, ge=0, le=1, description="Scores below this are judged; empty judges what the policy calls low."
    )
    judge_claims: int = pydantic.Field(8, ge=1, le=64, description="Claims asked about per event, the weakest first.")
    judge_daily_calls: int = pydantic.Field(1000, ge=1, description="Most questions asked per day (UTC).")
    judge_daily_tokens: int = pydantic.Field(
        2_000_000, ge=1, description="No more questions on a day (UTC) that used this many tokens."
    )
    judge_timeout_seconds: float = pydantic.Field(20.0, gt=0, le=300, description="How long one answer may take.")

    @pydantic.field_validator("judge_url")
    @classmethod
    def _http(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://, such as http://127.0.0.1:8000/v1")
        return value

    @pydantic.field_validator("judge_model")
    @classmethod
    def _named(cls, value: str, info: pydantic.ValidationInfo) -> str:
        if info.data.get("judge_url") and not value:
            raise ValueError("is empty and CMERWATCH_JUDGE_URL is set; name the model to ask, or unset the URL")
        return value

    @pydantic.field_validator("judge_below", mode="before")
    @classmethod
    def _nothing(cls, value: object) -> object:
        return None if value == "" else value

    secret_key_previous: pydantic.SecretStr = pydantic.Field(
        pydantic.SecretStr(""),
        description="The secret key before the present one: what was sealed under it can still be opened.",
    )
    allow_private_targets: str = pydantic.Field(
        "",
        description="Networks and host:port pairs, separated by commas, that channels, and listed hosts of pictures, "
        "may reach besides public https.",
    )
    fetch_images: str = pydantic.Field(
        "",
        description="Where pictures sent as URLs may be fetched: empty nowhere, `public` any public https address, "
        "or hosts such as `cdn.example.com`, `*.example.net` or `host:port`, separated by commas.",
    )
    demo_sink: bool = pydantic.Field(
        False, description="A receiver at /sink that shows what channels send; only the demo sets it."
    )

    @pydantic.field_validator("database_url")
    @classmethod
    def _postgres(cls, value: str) -> str:
        if not value.startswith(("postgresql://", "postgresql+psycopg://")):
            raise ValueError("must begin with postgresql://")
        return value

    @pydantic.field_validator("secret_key")
    @classmethod
    def _long_enough(cls, value: pydantic.SecretStr) -> pydantic.SecretStr:
        if 0 < len(value.get_secret_value()) < MIN_SECRET:
            raise ValueError(f"must have at least {MIN_SECRET} characters; `openssl rand -base64 48` makes one")
        return value

    @pydantic.field_validator("allow_private_targets")
    @classmethod
    def _readable(cls, value: str) -> str:
        addresses.parse_allow_list(value)
        return value

    @pydantic.field_validator("fetch_images")
    @classmethod
    def _hosts(cls, value: str) -> str:
        addresses.parse_hosts(value)
        return value

    @property
    def picture_hosts(self) -> addresses.Hosts:
        return addresses.parse_hosts(self.fetch_images)

    @property
    def allowed_targets(self) -> addresses.AllowList:
        return addresses.parse_allow_list(self.allow_private_targets)

    @property
    def blob_dir(self) -> Path:
        return self.data_dir / "blobs"

    def require_secret(self) -> None:
        """Raises StartRefused: keys hashed without a secret could be forged by whoever reads the table."""
        if not self.secret_key.get_secret_value():
            raise errors.StartRefused(
                "CMERWATCH_SECRET_KEY is empty. Set it, or CMERWATCH_SECRET_KEY_FILE, "
                f"to at least {MIN_SECRET} random characters, the same for every process."
            )


def _with_secret_files(environ: dict[str, str]) -> dict[str, Any]:
    """`CMERWATCH_X_FILE=/run/secrets/x` means CMERWATCH_X; a missing file is an error, not an empty secret."""
    found: dict[str, Any] = {}
    for name in Settings.model_fields:
        path = environ.get(f"CMERWATCH_{name.upper()}_FILE")
        if path:
            try:
                found[name] = Path(path).read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
                raise errors.StartRefused(
                    f"CMERWATCH_{name.upper()}_FILE names {path!r}, which cannot be read ({why}). "
                    f"Create the file or set CMERWATCH_{name.upper()}."
                ) from error
    return found


def read(**overrides: Any) -> Settings:
    """Settings from the environment; raises StartRefused naming each bad variable."""
    try:
        return Settings(**(_with_secret_files(dict(os.environ)) | overrides))
    except pydantic.ValidationError as error:
        problems = "; ".join(
            f"CMERWATCH_{str(e['loc'][0]).upper() if e['loc'] else '?'}: {e['msg']}" for e in error.errors()
        )
        raise errors.StartRefused(f"Settings are not valid: {problems}.") from None


@functools.cache
def current() -> Settings:
    return read()
