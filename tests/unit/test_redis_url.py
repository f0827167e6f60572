"""Redis URLs: what they mean, what is refused, and that passwords do not show."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from kvstore.connection import RedisLink
from kvstore.errors import RedisUrlError
from kvstore.redis_url import Kind, RedisAddress, parse_redis_url, without_password
from kvstore.settings import RedisSettings

SECRET = "s3cret"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://h", RedisAddress(Kind.SERVER, False, (("h", 6379),), None, None)),
        ("redis://10.0.0.1:1/", RedisAddress(Kind.SERVER, False, (("10.0.0.1", 1),), None, None)),
        ("rediss://:p%40%2F@h:7/3", RedisAddress(Kind.SERVER, True, (("h", 7),), None, "p@/", 3)),
        ("redis://u%3A:p@[::1]:7", RedisAddress(Kind.SERVER, False, (("::1", 7),), "u:", "p")),
        ("unix:///run/r.sock", RedisAddress(Kind.SOCKET, False, (), None, None, socket_path="/run/r.sock")),
        ("unix://u:p@/r@b.sock?db=2", RedisAddress(Kind.SOCKET, False, (), "u", "p", 2, socket_path="/r@b.sock")),
        (
            "redis+sentinel://:p@a:1,b,c.d-e.f:3/main/5",
            RedisAddress(Kind.SENTINEL, False, (("a", 1), ("b", 26379), ("c.d-e.f", 3)), None, "p", 5, "main"),
        ),
        ("rediss+sentinel://a/x", RedisAddress(Kind.SENTINEL, True, (("a", 26379),), None, None, 0, "x")),
        ("redis+cluster://u:p@a,b:2", RedisAddress(Kind.CLUSTER, False, (("a", 6379), ("b", 2)), "u", "p")),
        ("rediss+cluster://a/0", RedisAddress(Kind.CLUSTER, True, (("a", 6379),), None, None)),
    ],
)
def test_what_a_url_means(url: str, address: RedisAddress) -> None:
    assert parse_redis_url(url) == address


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("", "scheme"),
        ("redis", "scheme"),
        (f"http://:{SECRET}@h", "scheme"),
        ("redis+tls://h", "scheme"),
        ("redis://", "names no host"),
        ("redis:///0", "names no host"),
        (f"redis://:{SECRET}@", "names no host"),
        ("redis+cluster://a,,b", "names no host"),
        ("redis://a,b", "several hosts"),
        ("redis://h:0", "not a port"),
        ("redis://h:65536", "not a port"),
        ("redis://h:port", "host:port"),
        ("redis://::1:6379", "host:port"),
        ("redis://a..b", "host:port"),
        (f"redis://user:{SECRET}", "host:port"),
        ("redis://h/db", "number of a database"),
        ("redis://h/1/2", "number of a database"),
        ("redis://h?ssl_cert_reqs=none", "no options"),
        (f"redis://h?password={SECRET}", "no options"),
        (f"redis://:{SECRET}/x@h", "%2F"),
        (f"redis://:{SECRET}@x@h", "%40"),
        (f"redis://:{SECRET}#x@h", "%23"),
        (f"redis://u:{SECRET}:x@h", "%3A"),
        ("redis+sentinel://a,b", "names no master"),
        ("redis+sentinel://a,b/", "names no master"),
        ("redis+sentinel://a,b/main/x", "number of a database"),
        ("redis+cluster://a/1", "database 0"),
        ("unix://r.sock", "absolute path"),
        ("unix:///", "absolute path"),
        ("unix:///r.sock?db=x", "number of a database"),
        ("unix:///r.sock?timeout=1", "no option but db"),
    ],
)
def test_what_is_refused_and_why(url: str, problem: str) -> None:
    with pytest.raises(RedisUrlError) as caught:
        parse_redis_url(url)
    error = caught.value
    assert problem in error.problem
    assert "redis[s]+sentinel://" in error.allowed
    assert SECRET not in str(error)
    with pytest.raises(RedisUrlError):
        RedisLink(url)
    with pytest.raises(ValidationError) as invalid:
        RedisSettings(url=url)
    (item,) = invalid.value.errors()
    assert item["loc"] == ("url",)
    assert SECRET not in item["msg"]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"redis://u:{SECRET}@h:1/0", "redis://u:***@h:1/0"),
        (f"redis://:{SECRET}@h", "redis://:***@h"),
        (f"redis://:{SECRET}/@x{SECRET}@h", "redis://:***@h"),
        (f"rediss+sentinel://u:{SECRET}@a:1,b:2/main/0", "rediss+sentinel://u:***@a:1,b:2/main/0"),
        (f"redis+cluster://:{SECRET}@a:1,b:2", "redis+cluster://:***@a:1,b:2"),
        (f"unix://:{SECRET}@/r.sock?db=1", "unix://:***@/r.sock?db=1"),
        (f"redis://h?db=1&password={SECRET}", "redis://h?db=1&password=***"),
        (f"redis://h?ssl_Password={SECRET}&db=1", "redis://h?ssl_Password=***&db=1"),
        (f"redis://user:{SECRET}", "redis://user:***"),
        (f"redis://user:{SECRET}/0", "redis://user:***"),
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("redis://a:1,b:2", "redis://a:1,b:2"),
        ("redis://[::1]:6379", "redis://[::1]:6379"),
        ("unix:///run/a:b.sock", "unix:///run/a:b.sock"),
        ("no url at all", "no url at all"),
    ],
)
def test_passwords_do_not_show(url: str, shown: str) -> None:
    assert without_password(url) == shown


@given(
    st.sampled_from(["redis", "rediss", "redis+sentinel", "redis+cluster", "unix", "http"]),
    st.text(st.sampled_from("ab:@/?#%&=,[]"), max_size=8),
    st.sampled_from(["h:1", "a:1,b:2/main", "/r.sock", ""]),
)
def test_whatever_is_around_a_password_it_does_not_show(scheme: str, around: str, place: str) -> None:
    url = f"{scheme}://user:{around}{SECRET}{around}@{place}"
    assert SECRET not in without_password(url)


@given(st.text(st.sampled_from("redis+sentinelclusterunix:/@,[]?#%0129.-"), max_size=40))
def test_any_text_is_an_address_or_one_error(text: str) -> None:
    try:
        parse_redis_url(text)
    except RedisUrlError:
        pass


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"url": "redis://:p@h", "password_file": "/p"}, "give one of them"),
        ({"url": "redis://u@h"}, "user without a password"),
        ({"url": "redis://h", "tls_ca_path": "/ca.pem"}, "need a URL with TLS"),
        ({"url": "rediss://h", "tls_cert_path": "/c.pem"}, "together"),
    ],
)
def test_settings_that_contradict_each_other(fields: dict[str, str], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        RedisSettings.model_validate(fields)


def test_settings_that_belong_together() -> None:
    RedisSettings(url="redis://u@h", password_file="/p")
    RedisSettings(url="rediss+cluster://h", tls_ca_path="/ca.pem", tls_cert_path="/c.pem", tls_key_path="/k.pem")
    RedisSettings(password_file="/p")
