"""The `cmerwatch` command: the whole product on one machine, its parts one by one, and first aid."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

try:
    import sqlalchemy  # noqa: F401 - asked for here, so that its absence is told in words
    import typer
except ModuleNotFoundError:  # the base install is the SDK alone
    sys.exit("cmerwatch: the command line needs the server parts: pip install 'cmerwatch[demo]'")

from cmerwatch import blobs, cli_accounts, db, demo, doctor, embedded, errors, migrate, partitions, projects, settings

DEFAULT_PORT = 8383
STALL_SECONDS = 180.0
TELL_SECONDS = 30.0

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(cli_accounts.key_app, name="key")
app.add_typer(cli_accounts.user_app, name="user")
app.command()(cli_accounts.project)
app.command()(cli_accounts.replay)

Show = Callable[[int, int], None]  # done, of how many
Port = Annotated[int | None, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")]
Folder = Annotated[Path | None, typer.Option("--data-dir", help="Where everything is kept.")]
Browser = Annotated[bool, typer.Option(help="Open the console in a browser.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object when ready.")]


def main() -> None:
    """Refusals end with status 2 and one sentence on stderr, never a traceback."""
    try:
        app()
    except errors.CmerwatchError as error:
        sys.exit(_complain(error))


def _complain(error: errors.CmerwatchError) -> int:
    say(error.message)
    return 2


def say(line: str) -> None:
    """Progress and complaints; stdout is for results."""
    print(f"cmerwatch: {line}", file=sys.stderr, flush=True)


# The stack on one machine


@app.command("demo")
def demo_command(port: Port = None, data_dir: Folder = None, browser: Browser = True, as_json: AsJson = False) -> None:
    """A filled console: a recorded run of a real model, every event checked by the real worker. Ctrl-C stops it."""
    folder = embedded.DataFolder(data_dir or embedded.default_folder("demo"))
    chosen = choose_port(port)
    os.environ.update(demo.environment(chosen, settings.read().allow_private_targets))
    first = (demo.PROJECT, "Demo", demo.PROJECT)
    run_stack(folder, chosen, first, fill_demo, watch_demo, browser=browser, as_json=as_json)


@app.command()
def up(port: Port = None, data_dir: Folder = None, browser: Browser = False, as_json: AsJson = False) -> None:
    """The same stack without seeded data, with the checker of CMERWATCH_CHECKER. Ctrl-C stops it."""
    folder = embedded.DataFolder(data_dir or embedded.default_folder("up"))
    first = ("default", "Default", "admin")
    run_stack(
        folder, choose_port(port), first, lambda machine: None, lambda machine: {}, browser=browser, as_json=as_json
    )


def run_stack(
    folder: embedded.DataFolder,
    port: int,
    first: tuple[str, str, str],
    fill: Callable[[embedded.Machine], None],
    finish: Callable[[embedded.Machine], dict[str, str]],
    *,
    browser: bool,
    as_json: bool,
) -> None:
    """Start everything, fill it, print one line, run until SIGINT or SIGTERM.

    `first`: slug, name, login. `finish` runs once the web server answers; what it returns is printed too.
    """
    refuse_demo_checker_in_production()
    embedded.require_free(port, folder)
    folder.open()
    stack = embedded.Stack(say)
    try:
        with stack.running():
            machine = embedded.open_machine(stack, folder, port, say)
            say("starting the worker")
            machine.start_worker()
            fill(machine)
            say("starting the web server")
            machine.start_web()
            announce(machine, *first, finish(machine), as_json=as_json)
            if browser:
                open_browser(machine.url)
            stack.watch()
    finally:
        folder.close()


def refuse_demo_checker_in_production() -> None:
    """Before anything starts; the worker refuses again, for it also sees what a bundle says of itself."""
    configured = settings.read()
    if configured.environment == "production" and configured.checker == "demo":
        raise errors.StartRefused(
            "CMERWATCH_ENVIRONMENT=production refuses the demo checker, which knows drawn scenes only. "
            "Set CMERWATCH_CHECKER, for example to openclip:ViT-B-32-256:datacomp_s34b_b86k, or unset the environment."
        )


def choose_port(wanted: int | None) -> int:
    """The one asked for; without a wish the usual one if it is free."""
    if wanted is None:
        return embedded.free_port() if embedded.is_listening(DEFAULT_PORT) else DEFAULT_PORT
    return wanted or embedded.free_port()


def fill_demo(machine: embedded.Machine) -> None:
    """Lay the recording and wait until the worker has looked at all of it."""
    store = blobs.FolderStore(settings.current().blob_dir)
    with bar("laying events", machine) as show:
        demo.seed(machine.engine, store, show)
    with bar("checking events", machine) as show:
        wait_until_checked(machine, show)


def watch_demo(machine: embedded.Machine) -> dict[str, str]:
    """Let the rules look at what is laid and wait until the sink was told; who may review, and the webhook's secret."""
    with db.transaction() as session:
        secret = demo.watch(session, machine.url)
        project = demo.ensure_project(session)
        reviewer = projects.ensure_user(session, project, demo.REVIEWER, "Reviewer", "reviewer")
        kept_in = machine.folder.path / "secrets" / "reviewer_api_key"
        key = projects.ensure_key(session, project, kept_in, "reviewer", ["review"], reviewer.id)
    wait_until_told(machine)
    return {"reviewer_api_key": key, "webhook_secret": secret}


def wait_until_told(machine: embedded.Machine) -> None:
    """The console is of use without them, so a channel that stays silent delays the start no longer than this."""
    total = demo.untold()
    give_up = time.monotonic() + TELL_SECONDS
    with bar("sending alerts", machine) as show:

        def is_done() -> bool:
            left = demo.untold()
            show(total - left, total)
            return left == 0 or time.monotonic() > give_up

        if total:
            machine.stack.watch(until=is_done)
    if left := demo.untold():
        say(f"{left} messages of alerts are not delivered yet; {machine.url}/settings/channels says why")


def wait_until_checked(machine: embedded.Machine, show: Show) -> None:
    """Raises StartRefused when the worker, started again whenever it ends, gets nowhere."""
    total = left = demo.waiting()
    moved_at = time.monotonic()

    def is_done() -> bool:
        nonlocal left, moved_at
        waiting = demo.waiting()
        if waiting < left:
            left, moved_at = waiting, time.monotonic()
        if time.monotonic() - moved_at > STALL_SECONDS:
            raise errors.StartRefused(
                f"{waiting} events wait and the worker finished none for {STALL_SECONDS:g} s; "
                f"its log is {machine.folder.log('worker')}."
            )
        show(total - waiting, total)
        return waiting == 0

    machine.stack.watch(until=is_done)


@contextlib.contextmanager
def bar(label: str, machine: embedded.Machine) -> Iterator[Show]:
    """A progress bar on stderr; off a terminal one line per quarter. Its updates raise Stopped when asked to stop."""
    is_terminal, said = sys.stderr.isatty(), -1

    def show(done: int, total: int) -> None:
        nonlocal said
        if machine.stack.is_stopping:
            raise embedded.Stopped
        if is_terminal:
            filled = 30 * done // max(total, 1)
            line = f"\r{label:15} [{'#' * filled}{' ' * (30 - filled)}] {done}/{total}"
            print(line, end="", file=sys.stderr, flush=True)
        elif total and 4 * done // total > said:
            said = 4 * done // total
            say(f"{label}: {done}/{total}")

    try:
        yield show
    finally:
        if is_terminal:
            print(file=sys.stderr)


def announce(
    machine: embedded.Machine, slug: str, name: str, login: str, more: dict[str, str], *, as_json: bool
) -> None:
    """The one line on stdout."""
    with db.transaction() as session:
        project = projects.ensure(session, slug, name, login)
        api_key = projects.ensure_key(session, project, machine.folder.path / "secrets" / "api_key")
        link = projects.sign_in_link(session, machine.url, login)
    if as_json:
        ready = {"url": machine.url, "sign_in_url": link, "api_key": api_key, **more, "pid": os.getpid()}
        print(json.dumps(ready), flush=True)
    else:
        print(f"ready: {machine.url}  sign in once: {link}  API key: {api_key}", flush=True)


def open_browser(url: str) -> None:
    """Only where there is a screen: a text browser would take over this terminal."""
    has_screen = sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if has_screen and sys.stderr.isatty():
        quiet = subprocess.DEVNULL
        command = [sys.executable, "-m", "webbrowser", url]
        subprocess.Popen(command, start_new_session=True, stdin=quiet, stdout=quiet, stderr=quiet)


# Its parts, one process each


@app.command()
def web(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = DEFAULT_PORT,
) -> None:
    """The HTTP server alone. Settings are CMERWATCH_*."""
    cli_accounts.configured_for()
    command = embedded.web_command(host, port)
    os.execv(command[0], command)


@app.command()
def worker() -> None:
    """One worker alone; start as many as you like on any host. Settings are CMERWATCH_*."""
    command = embedded.worker_command()
    os.execv(command[0], command)


@app.command(
    "checker",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
def checker_command(context: typer.Context) -> None:
    """Checkers: list, download, export, calibrate and evaluate what looks at images."""
    # A process of the worker's package, which the core never imports.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "cmerwatch_worker.commands", *context.args])


@app.command("migrate")
def migrate_command() -> None:
    """Bring the database to the tables this version needs, and make the partitions of the days ahead."""
    url = settings.current().database_url
    migrate.upgrade(url)
    engine = db.configure(url)
    partitions.ensure_ahead(engine)
    engine.dispose()
    print(f"database at revision {migrate.head()}")


@app.command("doctor")
def doctor_command(
    url: Annotated[str, typer.Option(help="Where cmerwatch runs.")] = f"http://127.0.0.1:{DEFAULT_PORT}",
    api_key: Annotated[
        str, typer.Option(envvar="CMERWATCH_API_KEY", help="A key with the scopes ingest and read.")
    ] = "",
) -> None:
    """Send a test event, follow it to its check, and name the step that fails."""
    for step in doctor.examine(url, api_key):
        print(f"{'ok    ' if step.is_ok else 'FAILED'} {step.name}: {step.said}")
        if not step.is_ok:
            raise typer.Exit(1)


if __name__ == "__main__":
    main()
