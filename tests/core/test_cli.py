"""The command line against a real database; the whole stack is in tests/path/test_demo.py."""

from __future__ import annotations

import datetime as dt
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
import typer.testing
import yaml
from sqlalchemy import orm

from cmerwatch import (
    access,
    addresses,
    cli,
    cmer_series,
    db,
    demo,
    demo_data,
    doctor,
    embedded,
    errors,
    ids,
    images,
    migrate,
    models,
    partitions,
    settings,
)
from tests import factories, stack

REPOSITORY = Path(__file__).parents[2]
TARGETS = "CMERWATCH_ALLOW_PRIVATE_TARGETS"


@pytest.fixture
def run(committed: str, configured: Callable[..., settings.Settings]) -> Callable[..., str]:
    """Call the command against a database of this test's own; returns what it printed on stdout."""
    configured(database_url=committed, public_url="https://watch.example")
    bind = db.SessionLocal.kw["bind"]

    def call(*arguments: str, typed: str = "") -> str:
        result = typer.testing.CliRunner().invoke(cli.app, arguments, input=typed, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        db.SessionLocal.configure(bind=bind)  # the command brought, and closed, an engine of its own
        return result.stdout.strip()

    return call


def test_migrate_makes_tables_and_the_partitions_of_the_days_ahead(
    servers: stack.Shared, configured: Callable[..., settings.Settings]
) -> None:
    url = servers.empty("cli_migrate")
    try:
        configured(database_url=url)
        result = typer.testing.CliRunner().invoke(cli.app, ["migrate"], catch_exceptions=False)
        assert result.stdout == f"database at revision {migrate.head()}\n"
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        with engine.connect() as connection:
            assert partitions.days_ahead(connection) >= 8
    finally:
        servers.drop("cli_migrate")


def test_a_key_made_here_opens_its_project_with_ingest_and_read_alone(run: Callable[..., str]) -> None:
    run("project", "acme")
    key = run("key", "create", "--project", "acme")
    with db.transaction() as session:
        principal = access.principal_of_key(session, f"Bearer {key}")
    assert principal.project_slug == "acme"
    assert principal.scopes == {"ingest", "read"}


def test_a_revoked_key_opens_nothing(run: Callable[..., str]) -> None:
    run("project", "acme")
    key = run("key", "create", "--project", "acme", "--scope", "ingest")
    run("key", "revoke", key.split("_")[1], "--project", "acme")
    with db.transaction() as session, pytest.raises(errors.Unauthenticated, match="revoked"):
        access.principal_of_key(session, f"Bearer {key}")


def test_a_leaked_key_is_revoked_as_it_was_found_and_not_said_again(run: Callable[..., str]) -> None:
    run("project", "acme")
    key = run("key", "create", "--project", "acme", "--scope", "ingest")
    assert run("key", "revoke", key, "--project", "acme") == f"key {key.split('_')[1]} revoked"
    with db.transaction() as session, pytest.raises(errors.Unauthenticated, match="revoked"):
        access.principal_of_key(session, f"Bearer {key}")


def test_a_review_key_needs_the_person_it_acts_as(run: Callable[..., str]) -> None:
    run("project", "acme")
    run("user", "create", "ann", "--project", "acme", "--role", "reviewer")
    with pytest.raises(errors.Invalid, match="name the user"):
        run("key", "create", "--project", "acme", "--scope", "review")
    key = run("key", "create", "--project", "acme", "--scope", "review", "--user", "ann")
    with db.transaction() as session:
        assert access.principal_of_key(session, f"Bearer {key}").user_id is not None


def test_a_person_gets_a_link_that_signs_in_once(run: Callable[..., str]) -> None:
    run("project", "acme")
    first = run("user", "create", "ann", "--project", "acme", "--role", "lead")
    second = run("user", "link", "ann")
    assert first.startswith("https://watch.example/sign-in/")
    assert first != second
    token = second.rsplit("/", 1)[1]
    with db.transaction() as session:
        assert access.use_sign_in_link(session, token).login == "ann"
    with db.transaction() as session, pytest.raises(errors.Unauthenticated, match="already used"):
        access.use_sign_in_link(session, token)


def test_a_password_is_set_from_a_pipe_and_is_neither_said_nor_logged(run: Callable[..., str]) -> None:
    run("project", "acme")
    run("user", "create", "ann", "--project", "acme")
    said = run("user", "password", "ann", typed="correct horse battery\n")
    assert "correct horse" not in said
    with db.transaction() as session:
        assert access.verify_password(session, "ann", "correct horse battery").login == "ann"
        assert "correct horse" not in repr([entry.details for entry in session.scalars(sa.select(models.AuditEntry))])
    with pytest.raises(errors.Invalid, match="use 12 to 256"):
        run("user", "password", "ann", typed="short\n")
    with pytest.raises(errors.NotFound):
        run("user", "password", "nobody", typed="correct horse battery\n")


def test_people_are_listed_disabled_and_let_in_again_and_the_last_admin_stays(run: Callable[..., str]) -> None:
    run("project", "acme")
    run("user", "create", "ann", "--project", "acme", "--role", "admin")
    run("user", "create", "bob", "--project", "acme")
    run("user", "disable", "bob")
    assert run("user", "list", "--project", "acme").splitlines() == ["ann\tadmin\tlink only", "bob\tviewer\tdisabled"]
    run("user", "enable", "bob")
    assert "bob\tviewer\tlink only" in run("user", "list", "--project", "acme")
    with pytest.raises(errors.Conflict, match="last admin"):
        run("user", "disable", "ann")


def test_what_is_done_here_stands_in_the_audit_log_without_secrets(run: Callable[..., str]) -> None:
    run("project", "acme")
    key = run("key", "create", "--project", "acme")
    link = run("user", "create", "ann", "--project", "acme")
    with db.transaction() as session:
        entries = session.scalars(sa.select(models.AuditEntry).order_by(models.AuditEntry.at)).all()
        assert [entry.action for entry in entries] == ["project.create", "key.create", "user.create"]
        written = repr([(entry.target, entry.details) for entry in entries])
    assert key.split("_")[2] not in written
    assert link.rsplit("/", 1)[1] not in written


def test_replay_gives_quarantined_events_of_that_project_a_fresh_start(run: Callable[..., str]) -> None:
    run("project", "acme")
    run("project", "other")
    with db.transaction() as session:
        for slug in ("acme", "acme", "other"):
            project_id = access.project_of_slug(session, slug).id
            now = dt.datetime.now(dt.UTC)
            session.add(
                models.Work(
                    event_id=ids.uuid7(), project_id=project_id, bucket=now, state=models.QUARANTINED, attempts=4
                )
            )
    assert run("replay", "--project", "acme") == "2 quarantined events wait for a worker again"
    with db.transaction() as session:
        found = session.execute(sa.select(models.Work.state, models.Work.attempts)).all()
    assert sorted(tuple(row) for row in found) == [(models.READY, 0)] * 2 + [(models.QUARANTINED, 4)]


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The real command in a process of its own, seeing no CMERWATCH_* but these."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("CMERWATCH_")}
    return subprocess.run(
        [sys.executable, "-m", "cmerwatch.cli", *arguments],
        env=plain | environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize("name", ["up", "demo"])
def test_production_refuses_the_demo_checker_before_anything_starts(name: str, tmp_path: Path) -> None:
    refused = command(
        name, "--data-dir", str(tmp_path / "data"), CMERWATCH_ENVIRONMENT="production", CMERWATCH_CHECKER="demo"
    )
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert "production refuses the demo checker" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", ["up", "demo"])
def test_a_port_that_is_taken_is_refused_before_a_folder_is_made(name: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = command(name, "--port", str(port), "--data-dir", str(tmp_path / "data"))
    assert refused.returncode == 2
    assert f"Port {port} on 127.0.0.1 is taken. Choose another with --port." in refused.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("given", ["", "10.0.0.0/8, alerts.internal:8443"])
def test_the_demo_adds_its_sink_to_the_private_targets_it_was_given(
    given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (demo.environment(1, "") | {TARGETS: given}).items():  # all that it sets is put back afterwards
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cli, "run_stack", lambda *_, **__: None)
    cli.demo_command(port=4242)
    told, before = addresses.parse_allow_list(os.environ[TARGETS]), addresses.parse_allow_list(given)
    assert told.networks == before.networks
    assert told.places == before.places | {("127.0.0.1", 4242)}


def test_a_bad_setting_stops_the_start_by_its_name() -> None:
    refused = command("up", CMERWATCH_LEASE_SECONDS="soon")
    assert refused.returncode == 2
    assert "CMERWATCH_LEASE_SECONDS" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_folder_no_stack_ran_on_is_said(tmp_path: Path) -> None:
    refused = command("user", "link", "ann", "--data-dir", str(tmp_path))
    assert refused.returncode == 2
    assert f"No stack ever ran on {tmp_path}" in refused.stderr


def test_a_database_that_is_not_migrated_is_refused_with_the_command_that_helps(servers: stack.Shared) -> None:
    url = servers.empty("cli_bare")
    try:
        refused = command("project", "acme", CMERWATCH_DATABASE_URL=url, CMERWATCH_SECRET_KEY="x" * 32)
        assert refused.returncode == 2
        assert "Run: cmerwatch migrate" in refused.stderr
    finally:
        servers.drop("cli_bare")


def test_the_usual_port_is_left_to_whoever_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "is_listening", lambda port: False)
    assert cli.choose_port(None) == cli.DEFAULT_PORT
    monkeypatch.setattr(embedded, "is_listening", lambda port: True)
    assert cli.choose_port(None) not in (0, cli.DEFAULT_PORT)
    assert cli.choose_port(4242) == 4242
    assert cli.choose_port(0) != 0


def test_the_doctors_picture_is_one_the_server_accepts() -> None:
    header = images.inspect(doctor.red_circle(), images.Limits())
    assert (header.format, header.width, header.height) == ("PNG", doctor.SIDE, doctor.SIDE)


Answers = dict[str, tuple[int, object]]


@pytest.fixture
def bodies() -> list[bytes]:
    """What was sent to `server`."""
    return []


@pytest.fixture
def server(bodies: list[bytes]) -> Iterator[Callable[[Answers], str]]:
    """A server that answers as told: the doctor must also understand broken ones."""
    running: list[http.server.ThreadingHTTPServer] = []

    def start(answers: Answers) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                bodies.append(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
                status, body = answers[self.path]
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_POST = do_GET

            def log_message(self, *_: object) -> None: ...

        made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        running.append(made)
        threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return f"http://127.0.0.1:{made.server_address[1]}"

    yield start
    for one in running:
        one.shutdown()
        one.server_close()


WELL: Answers = {
    "/healthz": (200, {}),
    "/readyz": (200, {}),
    "/v1/events": (202, {"results": [{"id": "e1", "status": "accepted"}]}),
    "/v1/events/e1": (
        200,
        {
            "state": "checked",
            "check": {"outcome": "scored", "checker": "demo", "score": 0.5},
            "decision": {"policy_version": 3},
        },
    ),
}


def undecided(why: str, score: float | None) -> tuple[int, object]:
    check = {"outcome": "scored", "checker": "siglip", "score": score}
    return 200, {"state": "checked", "check": check, "decision": None, "undecided": why}


def refusal(message: str) -> dict[str, object]:
    return {"error": {"code": "x", "message": message, "details": {}}}


def test_the_doctor_follows_an_event_to_its_check(server: Callable[[Answers], str]) -> None:
    steps = list(doctor.examine(server(WELL), "key"))
    assert [step.is_ok for step in steps] == [True] * 6
    assert steps[-2].said.startswith("scored by demo after")
    assert steps[-1].said == "by policy 3"


def test_a_checker_that_calibrates_is_no_fault_to_the_doctor(server: Callable[[Answers], str]) -> None:
    steps = list(doctor.examine(server(WELL | {"/v1/events/e1": undecided("the checker is calibrating", None)}), "key"))
    assert steps[-1].is_ok
    assert steps[-1].said == "not yet: the checker is calibrating"


def test_the_doctors_event_is_in_no_cmer_no_alert_window_and_no_queue(
    session: orm.Session, project: models.Project, server: Callable[[Answers], str], bodies: list[bytes]
) -> None:
    list(doctor.examine(server(WELL), "key"))
    [sent] = [json.loads(body) for body in bodies if body]
    assert "confidence" not in sent
    occurred = dt.datetime.fromisoformat(sent["occurred_at"])
    factories.ingest(session, project.id, endpoint=sent["endpoint"], confidence=None, occurred_at=occurred)
    factories.check_all(session, 0.01, audit_rate=1.0)
    now = dt.datetime.now(dt.UTC)
    [row] = cmer_series.query(session, project.id, now - dt.timedelta(hours=2), now, "all")
    assert (row.scored, row.n, row.flagged) == (1, 0, 0)
    assert session.scalars(sa.select(models.Event.is_late)).one()
    assert session.query(models.ReviewItem).count() == 0


@pytest.mark.parametrize(
    ("path", "answer", "step", "said"),
    [
        ("/healthz", (200, b"<html>"), "reach the server", "Is this a cmerwatch server?"),
        ("/healthz", (404, b"<html>\x1b[31m"), "reach the server", "answered 404: '<html>\\x1b[31m'"),
        ("/readyz", (503, refusal("no database")), "ask whether it is ready", "answered 503: no database"),
        ("/v1/events", (401, refusal("not known")), "send a test event", "answered 401: not known"),
        ("/v1/events", (200, {}), "send a test event", "answered 200 instead of 202"),
        ("/v1/events/e1", (403, refusal("lacks read")), "read it back", "answered 403: lacks read"),
        ("/v1/events/e1", (200, {"state": "waiting"}), "have it checked", "no worker takes events"),
        ("/v1/events/e1", (200, {"state": "quarantined"}), "have it checked", "state quarantined"),
        (
            "/v1/events/e1",
            (200, {"state": "checked", "check": {"outcome": "model_error"}}),
            "have it checked",
            "outcome model_error",
        ),
        (
            "/v1/events/e1",
            undecided("policy 3 is a fixed cosine and checker siglip has a logit bias: choose auto", 0.5),
            "have it decided",
            "undecided: policy 3 is a fixed cosine and checker siglip has a logit bias: choose auto",
        ),
    ],
)
def test_the_doctor_names_the_step_that_fails(
    server: Callable[[Answers], str], path: str, answer: tuple[int, object], step: str, said: str
) -> None:
    steps = list(doctor.examine(server(WELL | {path: answer}), "key", check_seconds=0))
    assert [one.is_ok for one in steps] == [True] * (len(steps) - 1) + [False]
    assert steps[-1].name == step
    assert said in steps[-1].said


@pytest.mark.parametrize(
    "url", ["", "--api-key", "file:///etc", "http://127.0.0.1:1", "http://127.0.0.1:99999", "http://["]
)
def test_an_address_that_is_no_server_is_a_failed_step_and_no_traceback(url: str) -> None:
    (step,) = doctor.examine(url, "key")
    assert (step.name, step.is_ok) == ("reach the server", False)


def test_a_redirect_is_told_and_not_followed_with_the_key(server: Callable[[Answers], str]) -> None:
    (step,) = doctor.examine(server(WELL | {"/healthz": (302, {}), "/elsewhere": (200, {})}), "key")
    assert not step.is_ok
    assert "answered 302" in step.said


def test_a_key_that_cannot_stand_in_a_header_is_a_failed_step(server: Callable[[Answers], str]) -> None:
    (step,) = doctor.examine(server(WELL), "key\n")
    assert not step.is_ok


def test_compose_runs_commands_this_command_line_has_and_settings_that_exist() -> None:
    services = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())["services"]
    known = set(settings.Settings.model_fields)
    ours = [one for one in services.values() if one.get("command", [""])[0] == "cmerwatch"]
    assert len(ours) == 4
    for service in ours:
        name, *options = service["command"][1:]
        assert typer.testing.CliRunner().invoke(cli.app, [name, "--help"]).exit_code == 0
        assert all(option in ("--host", "--port") for option in options if option.startswith("--"))
        told = service.get("environment", {})
        assert {key.removeprefix("CMERWATCH_").lower() for key in told} <= known
        assert (REPOSITORY / service["build"]["dockerfile"]).exists()


def test_the_demos_events_lie_in_the_eight_days_before_the_last_closed_bucket() -> None:
    ages = [event.age_seconds for event in demo_data.recording()]
    assert max(ages) <= dt.timedelta(days=demo.DAYS).total_seconds()
    assert min(ages) > 0
