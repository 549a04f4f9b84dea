"""Make docs/img/*.png again: start the demo, sign in by its link, photograph the pages in the system's Chromium."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

IMAGES = Path(__file__).parent.parent / "docs" / "img"
WIDE, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}


def main() -> None:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        sys.exit("There is no Chromium on the PATH: apt-get install chromium")
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        demo = start_demo(Path(folder) / "demo")
        try:
            ready = json.loads(demo.stdout.readline() if demo.stdout else "")
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
                photograph(browser, ready["url"], ready["sign_in_url"], worst_alert(ready))
                browser.close()
        finally:
            demo.send_signal(signal.SIGTERM)
            demo.wait(60)


def start_demo(folder: Path) -> subprocess.Popen[str]:
    """The demo on a free port; the first line of its stdout is its `--json` object."""
    command = [sys.executable, "-m", "cmerwatch.cli", "demo", "--json", "--no-browser", "--port", "0"]
    return subprocess.Popen([*command, "--data-dir", str(folder)], stdout=subprocess.PIPE, text=True)


def worst_alert(ready: dict[str, str]) -> str:
    """The id of the critical alert about the regressed version."""
    request = urllib.request.Request(
        ready["url"] + "/v1/alerts", headers={"Authorization": f"Bearer {ready['api_key']}"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        rows = json.load(answer)["rows"]
    found = [row["id"] for row in rows if row["severity"] == "critical" and "model_version" in row["slice"]]
    return str(found[0])


def photograph(browser: Browser, url: str, link: str, alert: str) -> None:
    state = sign_in(browser, url, link)
    for scheme, name in (("light", "overview"), ("dark", "overview-dark")):
        page = open_page(browser, state, scheme, WIDE)
        page.goto(url)
        save(page, name)
    page = open_page(browser, state, "light", WIDE)
    page.goto(f"{url}/events?show=flagged&window=24h")
    save(page, "events", whole=False)
    page.locator(".event-row .line a").first.click()
    save(page, "event")
    page.goto(f"{url}/review")
    page.get_by_role("button", name="Start reviewing").click()
    save(page, "review")
    page.goto(f"{url}/alerts/{alert}")
    save(page, "alert")
    page = open_page(browser, state, "dark", PHONE)
    page.goto(f"{url}/?window=24h")
    save(page, "overview-phone", whole=False)


def sign_in(browser: Browser, url: str, link: str) -> Path:
    context = browser.new_context()
    page = context.new_page()
    page.goto(link)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{url}/")
    path = Path(tempfile.mkdtemp()) / "state.json"
    context.storage_state(path=path)
    context.close()
    return path


def open_page(browser: Browser, state: Path, scheme: str, size: dict[str, int]) -> Page:
    return browser.new_context(storage_state=state, color_scheme=scheme, viewport=size).new_page()  # type: ignore[arg-type]


def save(page: Page, name: str, whole: bool = True) -> None:
    page.wait_for_load_state("networkidle")
    path = IMAGES / f"{name}.png"
    page.screenshot(path=path, full_page=whole)
    print(f"{path} ({path.stat().st_size // 1024} KB)")


if __name__ == "__main__":
    main()
