"""The commands about projects, keys and people, on the database of CMERWATCH_* or of a stack that runs here."""

from __future__ import annotations

import contextlib
import getpass
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy import orm

from cmerwatch import access, checks, db, embedded, migrate, people, projects, settings

key_app = typer.Typer(no_args_is_help=True, help="API keys of a project.")
user_app = typer.Typer(no_args_is_help=True, help="People who sign in to the console.")

StackFolder = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", help="The folder of a running stack; else CMERWATCH_DATABASE_URL, or the one below .cmerwatch."
    ),
]


def configured_for(stack_folder: Path | None = None) -> settings.Settings:
    """The settings of CMERWATCH_*, or of a running stack's folder, with the secret that peppers keys."""
    if stack_folder is None and not any(name.startswith("CMERWATCH_DATABASE_URL") for name in os.environ):
        stack_folder = embedded.running_folder()
    if stack_folder is not None:
        embedded.use(embedded.environment_of(stack_folder))
    configured = settings.current()
    if not configured.secret_key.get_secret_value():
        path = configured.data_dir.absolute() / "secrets" / "secret_key"
        embedded.secret(path)
        embedded.use({"CMERWATCH_SECRET_KEY_FILE": str(path)})
    migrate.check(configured.database_url)
    return settings.current()


@contextlib.contextmanager
def connected(stack_folder: Path | None) -> Iterator[orm.Session]:
    """One transaction on that database, committed when the block ends well."""
    engine = db.configure(configured_for(stack_folder).database_url, pool_size=1)
    try:
        with db.transaction() as session:
            yield session
    finally:
        engine.dispose()


def project(slug: str, name: str = "", data_dir: StackFolder = None) -> None:
    """Make a project: what keys, people, events and images belong to."""
    with connected(data_dir) as session:
        made = projects.create(session, slug, name or slug)
        access.audit(session, "cli", "project.create", slug, made.id)
    print(f"project {slug} made")


def replay(
    project: Annotated[str, typer.Option(help="Slug of the project.")],
    data_dir: StackFolder = None,
) -> None:
    """Try quarantined events again, once the cause is mended."""
    with connected(data_dir) as session:
        owner = access.project_of_slug(session, project)
        count = checks.replay(session, owner.id)
        access.audit(session, "cli", "events.replay", project, owner.id, count=count)
    print(f"{count} quarantined events wait for a worker again")


@key_app.command("create")
def create_key(
    project: Annotated[str, typer.Option(help="Slug of the project.")],
    name: Annotated[str, typer.Option(help="What the key is for.")] = "key",
    scope: Annotated[list[str] | None, typer.Option(help="ingest, read, review, admin; repeat for several.")] = None,
    user: Annotated[str, typer.Option(help="Login a key with the scope review acts as.")] = "",
    data_dir: StackFolder = None,
) -> None:
    """Print a new API key; it is never shown again."""
    scopes = scope or list(projects.KEY_SCOPES)
    with connected(data_dir) as session:
        owner = access.project_of_slug(session, project)
        acts_as = projects.user_of_login(session, user).id if user else None
        key = access.create_key(session, owner.id, name, scopes, acts_as)
        access.audit(session, "cli", "key.create", key.split("_")[1], owner.id, scopes=scopes, name=name)
    print(key)


@key_app.command("revoke")
def revoke_key(
    key: Annotated[str, typer.Argument(help="The whole key, or its id: the part between the two underscores.")],
    project: Annotated[str, typer.Option(help="Slug of the project.")],
    data_dir: StackFolder = None,
) -> None:
    """End a key at once."""
    key_id = key.removeprefix("cmw_").split("_")[0]  # a leaked key is at hand as a whole; its secret stays unsaid
    with connected(data_dir) as session:
        owner = access.project_of_slug(session, project)
        access.revoke_key(session, owner.id, key_id)
        access.audit(session, "cli", "key.revoke", key_id, owner.id)
    print(f"key {key_id} revoked")


@user_app.command("create")
def create_user(
    login: str,
    project: Annotated[str, typer.Option(help="Slug of the project.")],
    role: Annotated[str, typer.Option(help="viewer, reviewer, lead, engineer or admin.")] = "viewer",
    name: str = "",
    data_dir: StackFolder = None,
) -> None:
    """Make a person, or let one of another project join, and print a one-time sign-in link for them."""
    with connected(data_dir) as session:
        owner = access.project_of_slug(session, project)
        made, is_new = people.add(session, owner.id, login.strip(), name or login, role)
        access.audit(session, "cli", "user.create" if is_new else "user.join", made.login, owner.id, role=role)
        link = projects.sign_in_link(session, settings.current().public_url, made.login)
    print(link)


@user_app.command("link")
def link_user(login: str, data_dir: StackFolder = None) -> None:
    """Print a fresh one-time sign-in link."""
    with connected(data_dir) as session:
        link = projects.sign_in_link(session, settings.current().public_url, login)
        access.audit(session, "cli", "user.link", login)
    print(link)


@user_app.command("password")
def set_password(login: str, data_dir: StackFolder = None) -> None:
    """Set a password, typed at a prompt or read from a pipe; never an argument, which every process could see."""
    password = getpass.getpass("New password: ") if sys.stdin.isatty() else sys.stdin.readline().rstrip("\r\n")
    with connected(data_dir) as session:
        people.set_password(session, projects.user_of_login(session, login).id, password)
        access.audit(session, "cli", "user.password", login)
    print(f"{login} has a new password; every session and sign-in link of theirs ended")


@user_app.command("disable")
def disable_user(login: str, data_dir: StackFolder = None) -> None:
    """End every session, link and key of a person, in all projects."""
    with connected(data_dir) as session:
        people.disable(session, projects.user_of_login(session, login).id)
        access.audit(session, "cli", "user.disable", login)
    print(f"{login} is disabled")


@user_app.command("enable")
def enable_user(login: str, data_dir: StackFolder = None) -> None:
    """Let a disabled person in again."""
    with connected(data_dir) as session:
        people.enable(session, projects.user_of_login(session, login).id)
        access.audit(session, "cli", "user.enable", login)
    print(f"{login} may sign in again")


@user_app.command("list")
def list_users(
    project: Annotated[str, typer.Option(help="Slug of the project.")], data_dir: StackFolder = None
) -> None:
    """Logins, roles and how they sign in."""
    with connected(data_dir) as session:
        for one in people.members(session, access.project_of_slug(session, project).id):
            state = "disabled" if one.disabled_at else "password" if one.has_password else "link only"
            print(f"{one.login}\t{one.role}\t{state}")
