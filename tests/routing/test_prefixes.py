from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from smart_serve.messages import ImageSpan
from smart_serve.routing.prefixes import MAX_REMEMBERED, RecentPrefixes, prefix_keys

PICTURE = ImageSpan(start=3, length=576, content_hash="sha-of-a-picture")


def names(tokens: list[int], *spans: ImageSpan) -> dict[int, int]:
    return {key.num_tokens: key.name for key in prefix_keys(tokens, spans)}


@settings(deadline=None)
@given(st.lists(st.integers(0, 31_999), max_size=600), st.integers(0, 600))
def test_prompts_agree_on_what_they_share_and_on_no_more(tokens: list[int], cut: int) -> None:
    other = [*tokens[:cut], *(token + 1 for token in tokens[cut:])]
    mine, theirs = names(tokens), names(other)
    assert mine.keys() == theirs.keys()
    for length in mine:
        assert (mine[length] == theirs[length]) == (length <= cut or cut >= len(tokens))


@settings(deadline=None)
@given(st.integers(32, 5000))
def test_a_name_covers_two_thirds_of_what_is_shared(shared: int) -> None:
    longest = prefix_keys(range(shared))[0]
    assert 2 * shared <= 3 * (longest.num_tokens + 1) <= 3 * (shared + 1)


def test_another_picture_is_another_prefix() -> None:
    tokens = [1, 2, 3, *[7] * 576, *range(40)]
    other = ImageSpan(start=3, length=576, content_hash="another")
    one, two = names(tokens, PICTURE), names(tokens, other)
    assert one.keys() == two.keys()
    assert 579 in one
    assert not set(one.values()) & set(two.values())


def test_a_replica_tells_of_the_prompt_and_of_its_last_picture() -> None:
    tokens = [1, 2, 3, *[7] * 576, *range(300)]
    recent = RecentPrefixes()
    recent.note(tokens, [PICTURE])
    known = names(tokens, PICTURE)
    assert set(recent.names()) == {known[579], known[768]}
    # Another question about the picture finds it; a prompt without does not.
    asked = prefix_keys([*tokens[:579], 9, 9], [PICTURE])
    assert any(key.name in recent.names() for key in asked)
    assert not any(key.name in recent.names() for key in prefix_keys(tokens))


def test_what_is_remembered_is_bounded_and_the_latest() -> None:
    recent = RecentPrefixes()
    for first in range(1000):
        recent.note([first] * 40, ())
    kept = recent.names()
    assert len(kept) == MAX_REMEMBERED
    assert kept[-1] == prefix_keys([999] * 40)[0].name


def test_a_short_prompt_has_no_name() -> None:
    assert prefix_keys([1] * 31) == ()
    RecentPrefixes().note([1], ())
