"""Only complete base64 data: URLs are pictures."""

import base64

import pytest

from smart_serve.errors import ClientError
from vision.data_url import parse_data_url

GOOD = base64.b64encode(b"some bytes").decode()


def test_a_data_url_is_decoded() -> None:
    url = parse_data_url(f"data:image/PNG;base64,{GOOD}")
    assert (url.media_type, url.data) == ("image/png", b"some bytes")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/a.png",
        "https://example.org/a.png",
        "file:///etc/passwd",
        "data:image/png,raw",
        f"data:image/png;charset=x;base64,{GOOD}",
        f" data:image/png;base64,{GOOD}",
        "/etc/passwd",
        "",
        "ftp://x",
    ],
)
def test_other_urls_are_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(ClientError) as caught:
        parse_data_url(url)
    assert caught.value.code == "invalid_image_url"
    assert "data: URLs" in caught.value.message
    assert "passwd" not in caught.value.message


@pytest.mark.parametrize(
    "payload", ["", "YWJj\n", "YWJ", "YW J", "-_-_", "YWJjé", "====", "YWJjZA=", "YQ==YQ=="]
)
def test_damaged_base64_is_refused(payload: str) -> None:
    with pytest.raises(ClientError) as caught:
        parse_data_url(f"data:image/png;base64,{payload}")
    assert caught.value.code == "invalid_base64"
