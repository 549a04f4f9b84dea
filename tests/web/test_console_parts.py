"""The console's parts: hidden characters, addresses, words about checks, passages, its files and its ledger."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import orm

import cmerwatch_web
from cmerwatch import blobs, errors, models
from cmerwatch.cmer_series import CmerRow
from cmerwatch_web.console import assets, pages, passages, series, text, views, words
from cmerwatch_web.console.words import Judged
from tests import factories
from tests.web import seeded

FOLDER = Path(cmerwatch_web.__file__).parent
NOW = dt.datetime(2026, 11, 20, 10, 17, 5, 678_901, tzinfo=dt.UTC)


# --- hidden characters ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "character", ["\u202e", "\u2066", "\u200b", "\x00", "\x1b", "\r", "\u2028", "\ufeff", "\U000e0041"]
)
def test_characters_that_hide_or_reorder_text_become_visible(character: str) -> None:
    assert text.visible(f"a{character}b") == f"a⟨U+{ord(character):04X}⟩b"


@pytest.mark.parametrize(
    "plain", ["", "a\n\tb", "Grüße", "日本語", "עברית", "👩\u200d👩\u200d👧", "🏳\ufe0f\u200d🌈", "é"]
)
def test_ordinary_text_stays_as_it_is(plain: str) -> None:
    assert text.visible(plain) == plain


def test_a_flood_of_one_hidden_character_is_counted_not_repeated() -> None:
    assert text.visible("\u202e" * 5000) == "⟨U+202E ×5000⟩"


@given(st.text(max_size=200))
def test_nothing_hidden_survives_and_nothing_plain_is_lost(value: str) -> None:
    shown = text.visible(value)
    assert text.visible(shown) == shown
    assert "".join(p.text for p in text.pieces(value) if not p.is_hidden) == "".join(
        c for i, c in enumerate(value) if not text._is_hidden(c, value[i - 1] if i else "")
    )


# --- addresses -----------------------------------------------------------------------------------


@given(
    st.dictionaries(st.sampled_from(sorted(views.NAMES)), st.text(max_size=20), max_size=6),
    st.sampled_from([*views.WINDOWS, None]),
)
def test_a_link_leads_back_to_the_view_it_was_made_from(filters: dict[str, str], window: str | None) -> None:
    start = NOW - dt.timedelta(hours=3)
    made = views.View(start, NOW, window, tuple(filters.items()))
    read = views.read(dict(parse_qsl(urlsplit(made.link()).query, keep_blank_values=True)), NOW)
    assert read.chosen == filters
    assert read.window == window
    if window is None:
        assert (read.start, read.end) == (start, NOW)


def test_a_time_without_a_zone_is_utc_and_one_with_a_zone_is_moved() -> None:
    read = views.read({"from": "2026-11-20T10:00:00", "to": "2026-11-20T13:00:00+02:00"})
    assert (read.start.hour, read.end.hour) == (10, 11)


@pytest.mark.parametrize("path", ["/events?x=1", "/", "/a/b?c=%2F"])
def test_paths_on_this_site_are_kept(path: str) -> None:
    assert pages.local_path(path) == path


# --- words ---------------------------------------------------------------------------------------


def decided(**changes: object) -> Judged:
    values: dict[str, object] = {
        "state": "checked",
        "outcome": "scored",
        "confidence": 0.95,
        "score": 0.5,
        "n_claims": 1,
        "is_decided": True,
        "conf_threshold": 0.8,
        "sim_threshold": 0.05,
    }
    return Judged(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("it", "word", "tone"),
    [
        (decided(flagged=True, low=True, score=0.01), "Flagged", "bad"),
        (decided(), "Not flagged", "good"),
        (decided(low=True, score=0.01, confidence=0.5), "Not flagged", "quiet"),
        (decided(low=True, score=0.01, confidence=None), "Doubtful", "doubt"),
        (decided(is_decided=False, score=None), "Calibrating", "quiet"),
        (decided(is_decided=False), "Undecided", "doubt"),
        (decided(state="waiting"), "Waiting", "quiet"),
        (decided(state="quarantined"), "Quarantined", "doubt"),
        (decided(outcome="unscorable", is_decided=False), "Not scorable", "quiet"),
        (decided(outcome="invalid_image", is_decided=False), "Picture unreadable", "doubt"),
        (decided(state="waiting", awaits_pictures=True), "Waiting", "quiet"),
        (decided(outcome="invalid_image", is_decided=False, lacks_pictures=True), "Picture not fetched", "doubt"),
        (decided(outcome="model_error", is_decided=False), "Check failed", "doubt"),
    ],
)
def test_each_state_has_its_word_and_tone(it: Judged, word: str, tone: str) -> None:
    said = words.explain(it)
    assert (said.word, said.tone) == (word, tone)
    assert said.why.endswith(".")


def test_the_weakest_of_several_sentences_is_named_as_such() -> None:
    assert (
        "the weakest of its 4 sentences" in words.explain(decided(flagged=True, low=True, score=0.01, n_claims=4)).why
    )


@given(st.floats(0, 1), st.sampled_from([0.05, 0.8]))
def test_a_number_beside_its_threshold_never_rounds_onto_it(value: float, threshold: float) -> None:
    shown = words.number(value, threshold).lstrip("<>")
    if abs(value - threshold) > 1e-6:
        assert float(shown) != threshold
    assert value in (0, 1) or float(shown) not in (0, 1) or abs(value - round(value)) < 1e-6


def test_numbers_are_shown_in_one_way_however_small_they_are() -> None:
    shown = [words.number(value) for value in (0, 3.6e-7, 0.00003, 0.05, 0.9999999, 1)]
    assert shown == ["0.00", "<0.000001", "0.00003", "0.05", ">0.999999", "1.00"]


def test_every_reason_the_worker_gives_has_words_and_no_other_does() -> None:
    """The console and the worker do not know each other; the codes in the worker's sources are what they share."""
    root = Path(__file__).parents[2]
    worker, core = root / "worker" / "cmerwatch_worker", root / "cmerwatch"
    names = [worker / name for name in ("decode.py", "claims.py", "scoring.py", "runtime.py")]
    sources = "".join(path.read_text() for path in (*names, core / "image_urls.py", core / "fetches.py"))
    given = set(re.findall(r'"([a-z]+(?:_[a-z]+)*)"', sources))
    kinds = {"audit", "flagged", "low_similarity_unconfirmed"}
    assert set(words.REASONS) - kinds <= given
    final = set(re.findall(r'(?:Refused\(|reasons=\(|"truncated" if is_short else |[A-Z]+ = )"([a-z_]+)"', sources))
    assert {"too_narrow", "refusal", "embedding_not_a_number", "no_image"} <= final
    assert final <= set(words.REASONS)


def test_a_reason_without_words_shows_its_code() -> None:
    assert words.reason("blank_image").startswith("the picture is blank")
    assert words.reason("something_new") == "something new"


# --- points of the chart ------------------------------------------------------------------------


def hourly(n: int, hours: int = 192) -> list[CmerRow]:
    """n counted outputs in each hour, one in ten flagged."""
    counts = dict.fromkeys(series.COUNTED, 0) | {"n": n, "scored": n, "flagged": n // 10}
    return [
        CmerRow(
            start=NOW.replace(minute=0, second=0, microsecond=0) + i * dt.timedelta(hours=1),
            group={"model_version": "v1"},
            **counts,
            sim_hist=[0] * 400,
        )
        for i in range(hours)
    ]


@pytest.mark.parametrize(("n", "hours_per_point"), [(1000, 1), (50, 1), (30, 2), (10, 6), (3, 24), (0, 24)])
def test_points_widen_until_they_hold_enough_outputs_to_mean_something(n: int, hours_per_point: int) -> None:
    rows = hourly(n)
    view = views.View(rows[0].start, rows[-1].start + dt.timedelta(hours=1), "8d")
    made = series.make(rows, [], view, ["v1"])
    assert made.bin_seconds == hours_per_point * 3600
    assert sum(one.n for one in made.bins) == 192 * n


def test_a_short_window_keeps_at_least_a_dozen_points_however_few_outputs_there_are() -> None:
    rows = hourly(1, 24)
    view = views.View(rows[0].start, rows[-1].start + dt.timedelta(hours=1), "24h")
    assert len(series.make(rows, [], view, ["v1"]).bins) >= series.POINTS


# --- passages ------------------------------------------------------------------------------------


def claim(start: int, end: int, percentile: float | None = 0.5) -> dict[str, object]:
    return {"start": start, "end": end, "similarity": 0.2, "percentile": percentile}


@given(st.text(max_size=60), st.lists(st.tuples(st.integers(-5, 80), st.integers(-5, 80)), max_size=8))
def test_cutting_loses_and_doubles_nothing_whatever_the_spans(output: str, spans: list[tuple[int, int]]) -> None:
    assert "".join(part.text for part in passages.cut(output, [claim(*span) for span in spans])) == output


@pytest.mark.parametrize(
    ("percentile", "tint"),
    [(0.0, "t0"), (0.0099, "t0"), (0.01, "t1"), (0.0499, "t1"), (0.05, "t2"), (0.2, "t3"), (None, "tn")],
)
def test_the_tint_follows_the_percentile(percentile: float | None, tint: str) -> None:
    [part] = passages.cut("abc", [claim(0, 3, percentile)])
    assert part.claim is not None
    assert part.claim.tint == tint


def test_of_very_many_sentences_the_weakest_are_listed_in_the_order_of_the_text() -> None:
    n = passages.CLAIMS_SHOWN + 100
    spans = [claim(i, i + 1) | {"similarity": -i / n if i % 2 else i / n} for i in range(n)]
    parts = passages.cut("x" * n, spans)
    listed = passages.weakest(parts)
    numbers = [one.number for one in listed]
    assert len(listed) == passages.CLAIMS_SHOWN
    assert numbers == sorted(numbers)
    assert {number for number in range(1, n + 1) if number % 2 == 0} <= set(numbers)  # the negative ones
    assert numbers[0] == 1  # then the next smallest
    marked = passages.marked(parts, listed)
    assert "".join(part.text for part in marked) == "x" * n
    assert [part.claim for part in marked if part.claim] == listed


def test_a_token_without_a_logprob_is_shown_without_a_probability() -> None:
    assert passages.strip(["a", "b"], [None, -0.1])[0].probability is None
    assert passages.strip(None, None) == []


# --- files and templates -------------------------------------------------------------------------


def test_a_static_file_is_named_by_its_content_and_kept_for_a_year(http: TestClient) -> None:
    path = assets.url("app.css")
    answer = http.get(path)
    assert re.fullmatch(r"/static/app\.[0-9a-f]{12}\.css", path)
    assert "immutable" in answer.headers["cache-control"]
    assert answer.headers["content-type"].startswith("text/css")


@pytest.mark.parametrize("name", ["app.css", "..%2fapp.py", "app.000000000000.css"])
def test_only_known_static_files_are_served(http: TestClient, name: str) -> None:
    assert http.get(f"/static/{name}").status_code == 404


TEMPLATES = sorted((FOLDER / "templates").glob("*.html"))


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_templates_hold_nothing_the_content_policy_forbids_and_nothing_unescaped(path: Path) -> None:
    source = path.read_text()
    assert not re.search(r"\sstyle\s*=", source)
    assert not re.search(r"\son[a-z]+\s*=", source)
    assert not re.search(r"<script(?![^>]*\ssrc=)", source)
    assert not re.search(r"\|\s*safe\b|autoescape|javascript:", source)
    assert not re.search(r"""(?:src|href|action)=["']https?://""", source)


def test_only_the_chart_builder_marks_text_as_safe() -> None:
    marked = [
        str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.py") if re.search(r"Markup\(", path.read_text())
    ]
    assert marked == ["charts.py"]


def test_the_stylesheet_stays_within_what_one_person_reads() -> None:
    assert len((FOLDER / "static" / "app.css").read_text().splitlines()) <= 600


def test_a_bad_window_names_itself() -> None:
    with pytest.raises(errors.Invalid, match="window"):
        views.read({"window": "7"})


# --- the ledger ----------------------------------------------------------------------------------


def test_the_ledger_says_that_it_balances(
    console: TestClient, session: orm.Session, blob_store: blobs.BlobStore, project: models.Project
) -> None:
    seeded.event(session, blob_store, project.id)
    seeded.check(session, seeded.scored(0.3, 0.5))
    seeded.event(session, blob_store, project.id)
    session.commit()
    page = console.get("/ledger?window=1h").text
    assert "The books balance" in page
    assert "Every one of the 2 events" in page


def test_the_ledger_says_by_how_much_it_does_not(
    console: TestClient, session: orm.Session, blob_store: blobs.BlobStore, project: models.Project
) -> None:
    seeded.event(session, blob_store, project.id)
    session.query(models.Work).delete()  # an event that is nowhere: what the ledger is for
    session.commit()
    page = console.get("/ledger?window=1h").text
    assert "1 hour does not balance" in page
    assert "differ by 1" in page


def test_a_long_ledger_is_folded_into_days_that_open(
    console: TestClient, session: orm.Session, blob_store: blobs.BlobStore, project: models.Project
) -> None:
    seeded.event(session, blob_store, project.id)
    session.commit()
    page = console.get("/ledger?window=8d").text
    assert "Day (UTC)" in page
    assert "by the day: open one for its hours" in page
    [link] = re.findall(r'href="(/ledger\?from=[^"]+)"', page)
    assert "Hour (UTC)" in console.get(link.replace("&amp;", "&")).text


def test_the_ledger_counts_a_day_unless_asked_for_more_and_says_which(
    console: TestClient, session: orm.Session, project: models.Project
) -> None:
    now = dt.datetime.now(dt.UTC).replace(minute=0, second=0, microsecond=0)
    factories.ingest(session, project.id, now - dt.timedelta(hours=30))
    session.commit()
    page = console.get("/ledger").text
    assert re.search(r'href="/ledger\?window=24h" aria-current="true"', page)
    assert f'<time datetime="{(now - dt.timedelta(hours=24)).isoformat()}">' in page
    assert "Every one of the 0 events" in page
    assert "Every one of the 1 events" in console.get("/ledger?window=8d").text


def test_a_ledger_that_cannot_be_counted_in_time_says_so_and_offers_the_other_windows(
    console: TestClient, session: orm.Session, project: models.Project
) -> None:
    factories.ingest(session, project.id)
    factories.slow_events(session)
    session.commit()
    answer = console.get("/ledger?window=8d")
    assert answer.status_code == 200
    assert "Not counted" in answer.text
    assert "balance" not in answer.text
    assert "No events" not in answer.text
    assert 'href="/ledger?window=1h"' in answer.text
