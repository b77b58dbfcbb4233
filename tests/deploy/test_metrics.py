"""The table of metrics against what a running application exports, both ways."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from scrape import Scrape, scrape
from served_app import ServedApp, wait_for

from deploy.metrics.table import COMMON_TAGS, METRICS, PREFIX, all_metrics

ROOT = Path(__file__).resolve().parents[2]
SUFFIXES = ("_bucket", "_sum", "_count")


def mismatch(scraped: Iterable[str]) -> set[str]:
    """Names that only the table has, or only the scrape."""
    documented = set()
    for one in all_metrics():
        suffixes = SUFFIXES if one.kind == "histogram" else ("",)
        documented |= {one.exported_name + suffix for suffix in suffixes}
    return documented ^ set(scraped)


@pytest.fixture(scope="module")
def scraped(app: ServedApp) -> Scrape:
    """After a picture twice, an answer of several steps, and a path that does not exist."""
    png = (ROOT / "smart_serve/bundled/example.png").read_bytes()
    url = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    picture = {"type": "image_url", "image_url": {"url": url}}
    question = {"type": "text", "text": "Describe the picture."}
    for _ in range(2):
        messages = [{"role": "user", "content": [picture, question]}]
        # `smart` does not draft where it does not pay.
        policy = {"policy": "chain:3"}
        answer = app.ask(messages=messages, max_tokens=40, speculation=policy)
        assert answer.status_code == 200
    assert httpx.get(f"{app.url}/nothing-here").status_code == 404
    app.wait_until_idle()
    with suppress(AssertionError):  # `test_every_documented_name` says which are amiss.
        wait_for(lambda: not mismatch(scrape().names))
    # The newest counts may still be on their way.
    wait_for(lambda: scrape().sum("inter_token_seconds_count") >= 2)
    wait_for(lambda: scrape().sum("cached_tokens_total") > 16)
    wait_for(lambda: scrape().sum("drafter_drafts_total") >= 1)
    return scrape()


@pytest.mark.serve
def test_every_documented_name_is_exported_and_no_other(scraped: Scrape) -> None:
    assert mismatch(scraped.names) == set()


def test_a_name_too_few_or_too_many_would_be_seen() -> None:
    names = {name for name in mismatch(()) if "wire" not in name}
    assert mismatch(names) == {f"ray_{PREFIX}drafter_wire_seconds"}
    assert mismatch({*mismatch(()), "ray_smart_serve_other"}) == {"ray_smart_serve_other"}


@pytest.mark.serve
def test_every_series_has_the_tags_that_are_documented(scraped: Scrape) -> None:
    for part, metrics in METRICS.items():
        for one in metrics:
            suffix = {"histogram": "_count", "counter": "_total", "gauge": ""}[one.kind]
            for series in scraped.of(one.name + suffix):
                wanted = {*COMMON_TAGS[part], *one.tags, "application", "deployment", "replica"}
                assert {tag for tag in wanted if not series.tags.get(tag)} == set(), series
                assert series.tags["deployment"].startswith(part)


@pytest.mark.serve
def test_the_values_are_sane(scraped: Scrape) -> None:
    tokens = scraped.sum("tokens_total")
    accepted = scraped.sum("draft_tokens_total", outcome="accepted")
    assert tokens >= 20
    assert 0 < accepted < tokens
    assert scraped.sum("judged_tokens_total") <= accepted
    assert 0 < scraped.sum("drafted_steps_total") <= scraped.sum("steps_total")
    assert scraped.sum("tree_depth_total") >= scraped.sum("drafted_steps_total")
    assert scraped.sum("cached_tokens_total") < scraped.sum("prompt_tokens_total")
    assert scraped.sum("kept_pictures_total") >= 1
    assert scraped.sum("pictures_total", source="encoded") >= 1
    assert scraped.sum("http_requests_total", route="/v1/chat/completions", status="200") >= 2
    assert scraped.sum("http_requests_total", status="404") >= 1
    for part in ("draft", "wire", "verify", "controller", "other"):
        assert scraped.sum("step_seconds_total", part=part) > 0, part
    measured, predicted = (
        scraped.sum("measured_seconds_total"),
        scraped.sum("predicted_seconds_total"),
    )
    assert 0.1 < predicted / measured < 10
    assert {one.tags["device_type"] for one in scraped.of("running")} == {"cpu"}
    assert {one.tags["pool"] for one in scraped.of("first_token_seconds_sum")} == {"default"}
    assert 0 < scraped.sum("first_token_seconds_sum") < 600
    drafts = scraped.sum("drafter_drafts_total")
    assert 1 <= drafts <= scraped.sum("drafter_questions_total")
    assert drafts <= scraped.sum("drafter_sequences_total")


@pytest.mark.serve
def test_gauges_are_those_of_the_engine(scraped: Scrape, app: ServedApp) -> None:
    blocks = app.blocks()
    (newest,) = {
        one.tags["replica"]
        for one in scraped.of("plan_epoch")
        if one.value == max(one.value for one in scraped.of("plan_epoch"))
    }
    assert scraped.sum("kv_blocks", replica=newest) == blocks["total"]
    assert scraped.sum("kv_blocks", replica=newest, state="held") == 0
    assert scraped.sum("running", replica=newest) == 0
    assert scraped.sum("drafter_connected", replica=newest) == 1
    assert scraped.sum("drafter_leases") >= 1


def test_names_follow_prometheus() -> None:
    names = [one.name for one in all_metrics()]
    assert len(set(names)) == len(names)
    for one in all_metrics():
        assert (one.unit == "seconds") == one.name.endswith("_seconds"), one.name
        assert (one.kind == "histogram") == bool(one.bounds), one.name
