"""Keys, passwords, sign-in links, console sessions, roles: who is asking, and the one authorize()."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import re
import secrets
import string
import threading
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import argon2
import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import errors, ids, models, names, settings

SCOPES = ("ingest", "read", "review", "admin")
IDLE = dt.timedelta(minutes=30)
ABSOLUTE = dt.timedelta(hours=12)
USE_NOTED = dt.timedelta(hours=1)
MIN_PASSWORD, MAX_PASSWORD = 12, 256

# What a role may do. review: work the queue; lead: see and reassign others' reviews; policies: change thresholds;
# alerts: change rules and channels; silence: ask for quiet; operate: replay the quarantined; admin: keys and people.
ROLE_ACTIONS: dict[str, frozenset[str]] = {
    "viewer": frozenset({"read"}),
    "reviewer": frozenset({"read", "review"}),
    "lead": frozenset({"read", "review", "lead", "policies", "silence"}),
    "engineer": frozenset({"read", "review", "policies", "alerts", "silence", "operate"}),
    "admin": frozenset({"read", "review", "lead", "policies", "alerts", "silence", "operate", "admin"}),
}

# What a key's scope allows. A key that acts as a person may never do more than that person.
SCOPE_ACTIONS: dict[str, frozenset[str]] = {
    "ingest": frozenset({"ingest"}),
    "read": frozenset({"read"}),
    "review": frozenset({"review"}),
    "admin": frozenset({"lead", "policies", "alerts", "silence", "operate", "admin"}),
}

MAX_SLUG = 64
_SLUG = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_SLUG - 1}}}")

_BASE62 = string.digits + string.ascii_letters
_hasher = argon2.PasswordHasher()
# Each hash takes 64 MiB while it runs, and strangers may ask for as many at once as the server has threads.
_hashing = threading.BoundedSemaphore(4)
# Verified when the login is unknown, so that an unknown login takes as long as a wrong password.
_NOBODY = _hasher.hash(secrets.token_hex(16))


@dataclass(frozen=True, slots=True)
class Principal:
    """Whoever is asking: an API key or a signed-in person, always within one project."""

    project_id: uuid.UUID
    project_slug: str
    actor: str
    scopes: frozenset[str]
    user_id: uuid.UUID | None = None
    role: str | None = None

    @property
    def is_person(self) -> bool:
        """Signed in, rather than a key: keys alone have scopes."""
        return self.actor.startswith("user:")

    def may(self, action: str) -> bool:
        """For a page that shows only the buttons that would work; the route still authorizes."""
        try:
            authorize(self, action)
        except errors.Forbidden:
            return False
        return True


def authorize(principal: Principal, action: str) -> None:
    """Raises Forbidden unless the key's scopes allow the action, and the role of the person who acts does too."""
    if not principal.is_person and not any(action in SCOPE_ACTIONS[scope] for scope in principal.scopes):
        scope = next((name for name, actions in SCOPE_ACTIONS.items() if action in actions), action)
        have = ", ".join(sorted(principal.scopes)) or "none"
        raise errors.Forbidden(
            f"This key lacks the scope {scope!r} (it has: {have}); use a key made with it.", scope=scope
        )
    is_of_no_role = action == "ingest" and not principal.is_person
    if principal.role is not None and action not in ROLE_ACTIONS[principal.role] and not is_of_no_role:
        roles = " or ".join(role for role in models.ROLES if action in ROLE_ACTIONS[role])
        needed = f"the role {roles}" if roles else f"a key with the scope {action}"
        raise errors.Forbidden(f"This needs {needed}; your role is {principal.role}. Ask an admin of this project.")


# Projects and keys


def create_project(session: orm.Session, slug: str, name: str | None = None) -> models.Project:
    """Raises Invalid for a slug that would not stand as it is in addresses and commands, Conflict when it is taken."""
    if not _SLUG.fullmatch(slug):
        raise errors.Invalid(
            f"slug {slug!r} must be 1 to {MAX_SLUG} letters, digits, dots, hyphens or underscores and begin with a "
            "letter or digit; the name may hold anything.",
            field="slug",
            limit=MAX_SLUG,
        )
    if session.scalar(sa.select(models.Project.id).where(models.Project.slug == slug)):
        raise errors.Conflict(f"There is already a project {slug!r}.", field="slug")
    project = models.Project(id=ids.uuid7(), slug=slug, name=name or slug)
    session.add(project)
    session.flush()
    return project


def project_of_slug(session: orm.Session, slug: str) -> models.Project:
    project = session.scalar(sa.select(models.Project).where(models.Project.slug == slug))
    if project is None:
        raise errors.NotFound(f"There is no project {slug!r}.")
    return project


def create_key(
    session: orm.Session,
    project_id: uuid.UUID,
    name: str,
    scopes: Sequence[str],
    user_id: uuid.UUID | None = None,
    expires_at: dt.datetime | None = None,
) -> str:
    """A new key in plain text, which is never shown again: `cmw_<id>_<secret><checksum>`.

    The checksum lets scanners and clients recognise a mistyped or leaked key without asking the server.
    """
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not scopes:
        raise errors.Invalid(f"scopes must be among {', '.join(SCOPES)}; got {list(scopes)}", field="scopes")
    if "review" in scopes and user_id is None:
        raise errors.Invalid("a key with the scope review acts as one named user; name the user", field="user")
    if user_id is not None and session.get(models.Membership, (project_id, user_id)) is None:
        raise errors.Invalid("the user a key acts as must be a member of its project; add them first", field="user")
    public, secret = _random(8), _random(32)
    session.add(
        models.ApiKey(
            id=public,
            project_id=project_id,
            name=names.label(name, limit=100),
            secret_hash=_pepper(secret),
            scopes=list(scopes),
            user_id=user_id,
            expires_at=expires_at,
        )
    )
    session.flush()
    return f"cmw_{public}_{secret}{_checksum(public + secret)}"


def principal_of_key(session: orm.Session, authorization: str | None) -> Principal:
    """The principal of an `Authorization: Bearer` header. Raises Unauthenticated; says nothing about why."""
    public, secret = _split(authorization)
    row = session.execute(
        sa.select(models.ApiKey, models.Project.slug, models.User.disabled_at, models.Membership.role)
        .join(models.Project, models.Project.id == models.ApiKey.project_id)
        .outerjoin(models.User, models.User.id == models.ApiKey.user_id)
        .outerjoin(
            models.Membership,
            sa.and_(
                models.Membership.user_id == models.ApiKey.user_id,
                models.Membership.project_id == models.ApiKey.project_id,
            ),
        )
        .where(models.ApiKey.id == public)
    ).first()
    now = dt.datetime.now(dt.UTC)
    if row is None or not hmac.compare_digest(row.ApiKey.secret_hash, _pepper(secret)):
        raise errors.Unauthenticated("This API key is not known. Send a valid one as `Authorization: Bearer <key>`.")
    key = row.ApiKey
    is_over = key.expires_at is not None and key.expires_at <= now
    is_without_person = key.user_id is not None and row.role is None  # who it acts as has left the project
    if key.revoked_at is not None or row.disabled_at is not None or is_over or is_without_person:
        raise errors.Unauthenticated("This API key was revoked or has expired. Ask for a new one.")
    if key.last_used_at is None or now - key.last_used_at > USE_NOTED:
        _note_use(session, key.id)
    return Principal(key.project_id, row.slug, f"key:{key.id}", frozenset(key.scopes), key.user_id, row.role)


def _note_use(session: orm.Session, key_id: str) -> None:
    """Where another request is noting it, or holds the row for a change, that is enough: none waits for a key's row."""
    free = sa.select(models.ApiKey.id).where(models.ApiKey.id == key_id).with_for_update(skip_locked=True)
    session.execute(
        sa.update(models.ApiKey).where(models.ApiKey.id.in_(free)).values(last_used_at=sa.func.now()),
        execution_options={"synchronize_session": False},
    )


def keys(session: orm.Session, project_id: uuid.UUID) -> Sequence[tuple[models.ApiKey, str | None]]:
    """Every key of a project with the login it acts as, the newest first."""
    rows = session.execute(
        sa.select(models.ApiKey, models.User.login)
        .outerjoin(models.User, models.User.id == models.ApiKey.user_id)
        .where(models.ApiKey.project_id == project_id)
        .order_by(models.ApiKey.created_at.desc(), models.ApiKey.id)
    )
    return [(row.ApiKey, row.login) for row in rows]


def revoke_key(session: orm.Session, project_id: uuid.UUID, key_id: str) -> None:
    key = session.get(models.ApiKey, key_id)
    if key is None or key.project_id != project_id:
        raise errors.NotFound(f"There is no key {key_id!r} in this project.")
    key.revoked_at = key.revoked_at or dt.datetime.now(dt.UTC)
    session.flush()


def _split(authorization: str | None) -> tuple[str, str]:
    scheme, _, token = (authorization or "").strip().partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise errors.Unauthenticated("No API key was sent. Send one as `Authorization: Bearer <key>`.")
    parts = token.strip().split("_")
    if len(parts) != 3 or parts[0] != "cmw" or not parts[1].isalnum() or len(parts[2]) != 38:
        raise errors.Unauthenticated("This does not look like a cmerwatch key (cmw_<id>_<secret>). Check for a typo.")
    secret, checksum = parts[2][:-6], parts[2][-6:]
    if not hmac.compare_digest(_checksum(parts[1] + secret).encode(), checksum.encode()):
        raise errors.Unauthenticated("This API key is mistyped: its checksum does not match. Copy it again.")
    return parts[1], secret


def _random(length: int) -> str:
    return "".join(secrets.choice(_BASE62) for _ in range(length))


def _checksum(text: str) -> str:
    value, digits = zlib.crc32(text.encode()), ""
    for _ in range(6):
        value, digit = divmod(value, 62)
        digits += _BASE62[digit]
    return digits


def _pepper(secret: str) -> bytes:
    """A fast keyed hash is enough for a secret of 190 random bits; the pepper keeps a stolen table useless."""
    return hmac.digest(settings.current().secret_key.get_secret_value().encode(), secret.encode(), "sha256")


# People


def create_user(
    session: orm.Session, project_id: uuid.UUID, login: str, name: str, role: str, password: str | None = None
) -> models.User:
    """Raises Invalid for an unknown role, a password or name out of bounds, Conflict for a login in use."""
    login, name = names.login(login), names.label(name)
    if role not in models.ROLES:
        raise errors.Invalid(f"role is {role!r}; it must be one of {', '.join(models.ROLES)}", field="role")
    if session.scalar(sa.select(models.User.id).where(models.User.login == login)):
        raise errors.Conflict(f"The login {login!r} is already in use.", field="login")
    user = models.User(id=ids.uuid7(), login=login, name=name, password_hash=password and hash_password(password))
    session.add(user)
    session.flush()
    session.add(models.Membership(project_id=project_id, user_id=user.id, role=role))
    session.flush()
    return user


def hash_password(password: str) -> str:
    require_password_length(password)
    with _hashing:
        return _hasher.hash(_bytes(password))


def require_password_length(password: str) -> None:
    """Raises Invalid naming the limits; the password itself is never repeated."""
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise errors.Invalid(
            f"password has {len(password)} characters; use {MIN_PASSWORD} to {MAX_PASSWORD}", field="password"
        )


def _bytes(text: str) -> bytes:
    """A form may hold halves of surrogate pairs, which plain UTF-8 refuses."""
    return text.encode("utf-8", "surrogatepass")


def verify_password(session: orm.Session, login: str, password: str) -> models.User:
    """Raises the same Unauthenticated, after the same work, for a wrong password and for an unknown login."""
    named = login.encode("utf-8", "replace").decode().replace("\0", "?")  # what Postgres cannot hold is nobody's login
    user = session.scalar(sa.select(models.User).where(models.User.login == named, models.User.disabled_at.is_(None)))
    known = user is not None and user.password_hash is not None and len(password) <= MAX_PASSWORD and named == login
    try:
        with _hashing:
            stored = user.password_hash if user and user.password_hash else _NOBODY
            _hasher.verify(stored, _bytes(password[:MAX_PASSWORD]))
    except argon2.exceptions.VerificationError:
        known = False
    if user is None or not known:
        raise errors.Unauthenticated("Login or password is wrong.")
    return user


def create_sign_in_link(
    session: orm.Session, user_id: uuid.UUID, lifetime: dt.timedelta = dt.timedelta(hours=24)
) -> str:
    """The token of a one-time link; only its hash is kept."""
    token = secrets.token_urlsafe(32)
    session.add(
        models.SignInLink(token_hash=token_hash(token), user_id=user_id, expires_at=dt.datetime.now(dt.UTC) + lifetime)
    )
    session.flush()
    return token


def use_sign_in_link(session: orm.Session, token: str) -> models.User:
    """Consume the link: one conditional UPDATE, so that of two clicks at once only one signs in."""
    link = sa.update(models.SignInLink).where(
        models.SignInLink.token_hash == token_hash(token),
        models.SignInLink.used_at.is_(None),
        models.SignInLink.expires_at > sa.func.now(),
    )
    user_id = session.scalar(link.values(used_at=sa.func.now()).returning(models.SignInLink.user_id))
    user = session.get(models.User, user_id) if user_id else None
    if user is None or user.disabled_at is not None:
        raise errors.Unauthenticated(
            "This sign-in link was already used or has expired. Make a new one with `cmerwatch user link`."
        )
    return user


def open_console_session(session: orm.Session, user_id: uuid.UUID) -> str:
    """A new cookie value of 256 bits; only its hash is kept. A fresh one at every sign-in."""
    token = secrets.token_urlsafe(32)
    session.add(
        models.ConsoleSession(
            token_hash=token_hash(token), user_id=user_id, expires_at=dt.datetime.now(dt.UTC) + ABSOLUTE
        )
    )
    session.flush()
    return token


def principal_of_cookie(session: orm.Session, cookie: str | None, project_slug: str | None = None) -> Principal:
    """The signed-in person, in the project named or their first one. Raises Unauthenticated (idle 30 min, 12 h)."""
    now = dt.datetime.now(dt.UTC)
    row = session.execute(_signed_in(token_hash(cookie or ""), project_slug)).first()
    if not cookie or row is None or row.expires_at <= now or row.last_seen_at <= now - IDLE:
        raise errors.Unauthenticated("Your session has ended. Sign in again.")
    if now - row.last_seen_at > dt.timedelta(minutes=1):  # not a write on every page view
        seen = sa.update(models.ConsoleSession).where(models.ConsoleSession.token_hash == token_hash(cookie))
        session.execute(seen.values(last_seen_at=now))
    return Principal(
        row.project_id, row.slug, f"user:{row.login}", frozenset(ROLE_ACTIONS[row.role]), row.user_id, row.role
    )


def _signed_in(token_hash: bytes, project_slug: str | None) -> sa.Select[*tuple[Any, ...]]:
    statement = (
        sa.select(
            models.ConsoleSession.user_id,
            models.ConsoleSession.expires_at,
            models.ConsoleSession.last_seen_at,
            models.User.login,
            models.Membership.role,
            models.Membership.project_id,
            models.Project.slug,
        )
        .join(models.User, models.User.id == models.ConsoleSession.user_id)
        .join(models.Membership, models.Membership.user_id == models.User.id)
        .join(models.Project, models.Project.id == models.Membership.project_id)
        .where(models.ConsoleSession.token_hash == token_hash, models.User.disabled_at.is_(None))
        .order_by(models.Project.created_at, models.Project.id)
    )
    return statement if project_slug is None else statement.where(models.Project.slug == project_slug)


def close_console_session(session: orm.Session, cookie: str) -> None:
    session.execute(sa.delete(models.ConsoleSession).where(models.ConsoleSession.token_hash == token_hash(cookie)))


def token_hash(token: str) -> bytes:
    """256 random bits need no slow hash."""
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


def audit(
    session: orm.Session, actor: str, action: str, target: str, project_id: uuid.UUID | None = None, **details: Any
) -> None:
    """Append to the audit log. Never pass prompts, outputs, keys or links: the log is kept and exported."""
    session.add(
        models.AuditEntry(
            id=ids.uuid7(), project_id=project_id, actor=actor, action=action, target=target, details=details
        )
    )
    session.flush()
