"""Redis with a password, an ACL user and TLS: every client of AIRI gets in with one URL, and no password gets out."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

import pytest
import redis
from kombu.exceptions import OperationalError

from agents.broker import of_kombu
from agents.caretaker import Hint
from agents.celery_app import QUEUE, Sender, make_app, ping
from airi.cli import main
from airi.errors import ConfigError
from airi.logs import JsonFormatter
from airi.redis import connect
from airi.redis_pipeline import PipelinedRedis, RedisAwayError, Script
from airi.redis_protocol import Address
from airi.settings import Settings
from tests.support.certificates import Authority
from tests.support.guarded_redis import (
    DEFAULT_PASSWORD,
    PASSWORD,
    RIGHTS,
    GuardedRedis,
    guarded_redis,
    needs_tls,
)

ECHO = Script("echo", "return ARGV[1]")
HINT = Hint("run", "", 0, "")


@pytest.fixture(scope="module")
def servers(short_tmp: Path, redis_server: str) -> Iterator[dict[str, GuardedRedis]]:
    """Started when a test asks for one of them first."""
    with ExitStack() as stack:

        class Servers(dict[str, GuardedRedis]):
            def __missing__(self, name: str) -> GuardedRedis:
                if name != "password":
                    needs_tls(redis_server)
                self[name] = stack.enter_context(
                    guarded_redis(
                        short_tmp / f"guarded-{name}",
                        tls=name != "password",
                        client_certificate=name == "client",
                    )
                )
                return self[name]

        yield Servers()


@pytest.fixture(params=["password", "tls", "client"])
def server(request: pytest.FixtureRequest, servers: dict[str, GuardedRedis]) -> GuardedRedis:
    """With an ACL user and a password; over TLS; over TLS that asks for a certificate of the client's too."""
    return servers[request.param]


async def test_admission_gets_in(server: GuardedRedis) -> None:
    connection = PipelinedRedis(server.url(2), [ECHO])
    await connection.connect()
    assert await connection.evalsha(ECHO, [], ["x"]) == b"x"
    await connection.execute("SET", "where", "two")
    with connect(server.url(2)) as client:
        assert client.get("where") == b"two"
    await connection.close()


def test_celery_gets_in(server: GuardedRedis) -> None:
    url = server.url(3)
    Sender(lambda: make_app(url))([HINT])
    with connect(url) as client:
        assert client.lpop(QUEUE) is not None
    assert ping(url, 0.1) == []


def test_all_get_in_through_a_unix_socket(servers: dict[str, GuardedRedis]) -> None:
    url = servers["password"].unix_url(4)
    Sender(lambda: make_app(url))([HINT])
    with connect(url) as client:
        assert client.lpop(QUEUE) is not None


def test_a_password_alone_is_the_default_users(servers: dict[str, GuardedRedis]) -> None:
    with connect(f"redis://:{DEFAULT_PASSWORD}@localhost:{servers['password'].port}/0") as client:
        assert client.acl_whoami() in ("default", b"default")


async def refused(url: str, said: pytest.LogCaptureFixture) -> str:
    """What the three kinds of clients and the log say about a URL that does not get in."""
    connection = PipelinedRedis(url)
    with pytest.raises(RedisAwayError) as away:
        await connection.connect(wait_ms=300)
    await connection.close()
    with connect(url) as client, pytest.raises(redis.ConnectionError) as first:
        client.ping()
    with make_app(url).connection() as broker, pytest.raises(OperationalError) as second:
        broker.ensure_connection(max_retries=1, interval_start=0)
    logging.getLogger("tests").error("the broker", exc_info=second.value)
    told = [str(away.value), connection.last_error, repr(first.value)]
    told += [JsonFormatter("test").format(record) for record in said.records]
    return "\n".join(told)


async def test_a_wrong_password_is_said_and_not_shown(
    server: GuardedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    told = await refused(server.url(password="wr0ng/pass"), caplog)
    assert told.count("WRONGPASS") + told.count("invalid username-password pair") >= 3
    assert "wr0ng" not in told
    warnings = [record for record in caplog.records if record.name == "airi.redis_pipeline"]
    assert len(warnings) == 1, "it is tried again and again, and said once"


async def test_a_certificate_of_another_authority_is_refused_by_all(
    servers: dict[str, GuardedRedis], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = servers["tls"].url(ca=Authority(tmp_path).file)
    told = await refused(url, caplog)
    assert told.count("CERTIFICATE_VERIFY_FAILED") >= 3
    assert PASSWORD not in told


async def test_a_certificate_of_another_name_is_refused_by_all(
    servers: dict[str, GuardedRedis], caplog: pytest.LogCaptureFixture
) -> None:
    told = await refused(servers["tls"].url().replace("@localhost", "@127.0.0.1"), caplog)
    assert told.count("CERTIFICATE_VERIFY_FAILED") >= 3


async def test_a_server_that_repeats_what_it_was_sent_is_not_quoted(
    short_tmp: Path, redis_server: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Where AUTH is no command the answer is an error with its arguments."""
    with guarded_redis(
        short_tmp / "no-auth", "--rename-command", "AUTH", "", "--rename-command", "HELLO", ""
    ) as server:
        told = await refused(server.url(password="0pen-sesame"), caplog)
    assert "unknown command" in told
    assert "0pen-sesame" not in told


def test_doctor_gets_in_and_says_who_did_not(
    servers: dict[str, GuardedRedis],
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for password, state in ((PASSWORD, "good"), ("wr0ng", "bad")):
        monkeypatch.setenv("AIRI_REDIS_URL", servers["password"].url(password=password))
        main(["doctor", "--output", "json"])
        out = capsys.readouterr().out
        found = {finding["check"]: finding for finding in json.loads(out)}["redis"]
        assert found["state"] == state
        assert "wr0ng" not in out


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunt/er2@h:6379/0",
        "redis://:12/hunter2@h:6379/0",
        "redis://:12#hunter2@h:6379/0",
        "redis://:12?hunter2@h:6379/0",
        "redis://:12?hunter2=x@h:6379/0",
        "redis://:hunter2@h:port/0",
        "redis://:hunter2@[h/0",
        "redis://:hunter2@h/zero",
        "rediss://:hunter2@h/0?ssl_cert_reqs=none",
        "rediss://:hunter2@h/0?ssl_check_hostname=false",
        "rediss://:hunter2@h/0?ssl_ca_certs=/nowhere/ca.pem",
        "redis://:hunter2@h/0?ssl_ca_certs=/etc/hostname",
    ],
)
@pytest.mark.parametrize("name", ["AIRI_REDIS_URL", "AIRI_BROKER_URL"])
def test_what_cannot_be_understood_is_refused_by_the_name_of_its_variable(name: str, url: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        Settings.from_environment({name: url})
    assert [problem.partition(":")[0] for problem in refusal.value.problems] == [name]
    assert "hunt" not in str(refusal.value)
    assert "er2" not in str(refusal.value)


def test_only_a_broker_may_be_of_another_kind() -> None:
    assert Settings.from_environment({"AIRI_BROKER_URL": "amqp://h//"}).broker_url == "amqp://h//"
    with pytest.raises(ConfigError, match="AIRI_REDIS_URL: it must be redis://, rediss:// or unix://"):
        Settings.from_environment({"AIRI_REDIS_URL": "amqp://h//"})


def test_settings_do_not_show_passwords() -> None:
    url = f"redis://:{quote(PASSWORD, safe='')}@h/0"
    settings = Settings.from_environment(
        {"AIRI_REDIS_URL": url, "AIRI_BROKER_URL": url, "AIRI_DATABASE_URL": "postgresql://a:hunter2@h/d"}
    )
    assert settings.effective_broker_url == url
    assert quote(PASSWORD, safe="") not in repr(settings)
    assert "hunter2" not in repr(settings)
    assert PASSWORD not in repr(Address.parse(url))


@pytest.mark.parametrize(
    ("given", "url", "tls"),
    [
        ("redis://h", "redis://h:6379/0", None),
        ("redis://h?db=3", "redis://h:6379/3", None),
        ("redis://[::1]:7/1", "redis://[::1]:7/1", None),
        ("redis://:a%2Fb@h/1", "redis://:a%2Fb@h:6379/1", None),
        ("unix:///run/r.sock?db=2", "redis+socket:///run/r.sock?virtual_host=2", None),
        ("rediss://u:p@h:7/1", "rediss://u:p@h:7/1", {"ssl_cert_reqs": "required"}),
        ("redis+socket:///r.sock?virtual_host=1", "redis+socket:///r.sock?virtual_host=1", None),
        ("amqp://u:p@h//", "amqp://u:p@h//", None),
    ],
)
def test_a_broker_is_named_as_redis_is(given: str, url: str, tls: dict[str, str] | None) -> None:
    assert of_kombu(given) == (url, tls)


def test_the_rights_that_sufficed_here_are_the_documented_ones() -> None:
    page = Path(__file__).parents[2] / "docs/operations.md"
    assert f"`ACL SETUSER airi on >PASSWORD {RIGHTS}`" in page.read_text()


def test_nothing_is_logged_when_all_is_well(server: GuardedRedis, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with connect(server.url(5)) as client:
        client.ping()
    Sender(lambda: make_app(server.url(5)))([HINT])
    assert not caplog.records, "kombu warns of TLS that is not verified"
