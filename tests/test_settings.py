"""Settings: where they come from, and what happens to wrong ones."""

from __future__ import annotations

import re
from ipaddress import ip_network
from pathlib import Path

import pytest
from sqlalchemy import make_url

from otel_activity.errors import ConfigurationError
from otel_activity.masking import mask_dsn
from otel_activity.settings import FIELDS, InstrumentFlags, Settings, lookalikes

DSN = "postgresql://audit:s3cret@db.example:5432/app"


def test_defaults_need_no_environment() -> None:
    """An empty environment gives the documented defaults and nowhere to send events."""
    settings = Settings.from_env({})
    assert settings.exporters == ()
    assert not settings.active
    assert settings.startup == "check"


def test_a_dsn_alone_chooses_postgres() -> None:
    """Setting our DSN is enough to store events there."""
    settings = Settings.from_env({"OTEL_ACTIVITY_POSTGRES_DSN": DSN})
    assert settings.exporters == ("postgres",)
    assert settings.active


def test_a_tracing_endpoint_is_no_consent() -> None:
    """The SDK's OTLP endpoint alone never receives audit values; our own does."""
    assert Settings.from_env({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://vendor:4317"}).exporters == ()
    ours = Settings.from_env({"OTEL_ACTIVITY_OTLP_ENDPOINT": "http://collector:4318"})
    assert ours.exporters == ("otlp",)


def test_the_console_is_a_default_only_for_a_person() -> None:
    """Without a terminal nothing is printed; a configured exporter keeps the console out."""
    assert Settings.from_env({}, interactive=True).exporters == ("console",)
    with_dsn = Settings.from_env({"OTEL_ACTIVITY_POSTGRES_DSN": DSN}, interactive=True)
    assert with_dsn.exporters == ("postgres",)


def test_argument_beats_environment_beats_default() -> None:
    """The order of precedence is the documented one."""
    environ = {"OTEL_BLRP_MAX_QUEUE_SIZE": "5000"}
    assert Settings.from_env(environ).max_queue_size == 5000
    assert Settings.from_env(environ, max_queue_size=9000).max_queue_size == 9000


@pytest.mark.parametrize(
    ("environ", "variable", "expected"),
    [
        ({"OTEL_ACTIVITY_EXPORTERS": "postgress"}, "OTEL_ACTIVITY_EXPORTERS", "did you mean 'postgres'"),
        ({"OTEL_ACTIVITY_EXPORTERS": "postgres"}, "OTEL_ACTIVITY_EXPORTERS", "OTEL_ACTIVITY_POSTGRES_DSN="),
        ({"OTEL_ACTIVITY_EXPORTERS": "none,otlp"}, "OTEL_ACTIVITY_EXPORTERS", "excludes"),
        ({"OTEL_ACTIVITY_EXPORTERS": ","}, "OTEL_ACTIVITY_EXPORTERS", "empty"),
        ({"OTEL_ACTIVITY_POSTGRES_DSN": "db.example"}, "OTEL_ACTIVITY_POSTGRES_DSN", "postgresql://"),
        ({"OTEL_ACTIVITY_POSTGRES_DSN": f"{DSN}?nope=1"}, "OTEL_ACTIVITY_POSTGRES_DSN", "postgresql://"),
        ({"OTEL_ACTIVITY_POSTGRES_SCHEMA": 'a"b'}, "OTEL_ACTIVITY_POSTGRES_SCHEMA", "identifier"),
        ({"OTEL_ACTIVITY_OTLP_ENDPOINT": "collector:4317"}, "OTEL_ACTIVITY_OTLP_ENDPOINT", "http"),
        ({"OTEL_ACTIVITY_STARTUP": "requir"}, "OTEL_ACTIVITY_STARTUP", "did you mean 'require'"),
        ({"OTEL_ACTIVITY_STARTUP": "5"}, "OTEL_ACTIVITY_STARTUP", "check, warn, require"),
        ({"OTEL_ACTIVITY_DISABLED": "maybe"}, "OTEL_ACTIVITY_DISABLED", "true or false"),
        ({"OTEL_ACTIVITY_SHUTDOWN_TIMEOUT": "soon"}, "OTEL_ACTIVITY_SHUTDOWN_TIMEOUT", "number of seconds"),
        ({"OTEL_BLRP_MAX_QUEUE_SIZE": "many"}, "OTEL_BLRP_MAX_QUEUE_SIZE", "whole number"),
        ({"OTEL_BLRP_SCHEDULE_DELAY": "0"}, "OTEL_BLRP_SCHEDULE_DELAY", "out of range"),
        (
            {"OTEL_BLRP_MAX_EXPORT_BATCH_SIZE": "600", "OTEL_BLRP_MAX_QUEUE_SIZE": "500"},
            "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE",
            "use at most 500",
        ),
        ({"OTEL_ACTIVITY_INCLUDE": "orders customers"}, "OTEL_ACTIVITY_INCLUDE", "commas between names"),
        ({"OTEL_ACTIVITY_INCLUDE": '["orders","lines"]'}, "OTEL_ACTIVITY_INCLUDE", "nothing around them"),
        ({"OTEL_ACTIVITY_REDACT": '["email"]'}, "OTEL_ACTIVITY_REDACT", "nothing around them"),
        ({"OTEL_ACTIVITY_EXCLUDE": "logs;jobs"}, "OTEL_ACTIVITY_EXCLUDE", "commas between names"),
        ({"OTEL_ACTIVITY_REDACT": "email;ssn=drop"}, "OTEL_ACTIVITY_REDACT", "commas between names"),
        ({"OTEL_ACTIVITY_INCLUDE": '"orders"'}, "OTEL_ACTIVITY_INCLUDE", "leave them out"),
        ({"OTEL_ACTIVITY_REDACT": "'email,ssn' "}, "OTEL_ACTIVITY_REDACT", "leave them out"),
        ({"OTEL_ACTIVITY_POSTGRES_DSN": f"{DSN}?sslmode=requir"}, "OTEL_ACTIVITY_POSTGRES_DSN", "'require'"),
        ({"OTEL_ACTIVITY_POSTGRES_DSN": f"{DSN}?connect_timeout=10s"}, "OTEL_ACTIVITY_POSTGRES_DSN", "=10"),
        ({"OTEL_ACTIVITY_POSTGRES_DSN": f"{DSN}\udc80"}, "OTEL_ACTIVITY_POSTGRES_DSN", "not UTF-8"),
        ({"OTEL_ACTIVITY_OTLP_ENDPOINT": "http://[::1"}, "OTEL_ACTIVITY_OTLP_ENDPOINT", "for example http"),
        ({"OTEL_ACTIVITY_OTLP_ENDPOINT": "http://h:abc"}, "OTEL_ACTIVITY_OTLP_ENDPOINT", "for example http"),
        ({"OTEL_ACTIVITY_OTLP_ENDPOINT": "http://:4318"}, "OTEL_ACTIVITY_OTLP_ENDPOINT", "for example http"),
        ({"OTEL_ACTIVITY_REDCAT": "iban"}, "OTEL_ACTIVITY_REDCAT", "did you mean 'OTEL_ACTIVITY_REDACT'"),
    ],
)
def test_a_wrong_setting_names_variable_value_and_fix(
    environ: dict[str, str], variable: str, expected: str
) -> None:
    """Each wrong value is refused with one line that says what to do."""
    with pytest.raises(ConfigurationError) as caught:
        Settings.from_env(environ)
    assert caught.value.variable == variable
    message = str(caught.value)
    assert message.startswith(variable)
    assert expected in message
    assert "\n" not in message
    assert "s3cret" not in message


def test_a_small_queue_alone_is_no_mistake() -> None:
    """The default batch follows a smaller queue: the SDK's own check would raise there."""
    settings = Settings.from_env({"OTEL_BLRP_MAX_QUEUE_SIZE": "256"})
    assert settings.max_export_batch_size == 256


def test_an_unknown_argument_is_refused() -> None:
    """A misspelt keyword of `instrument` does not pass for a setting."""
    with pytest.raises(ConfigurationError, match="did you mean 'exporters'"):
        Settings.from_env({}, exporter="console")


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://u:s3cret@h/db",
        "postgresql://u:s3cret%40x@h/db",
        "postgresql://u:s3@cret@h/db",
        "postgresql://h/db?user=u&password=s3cret",
        "host=h password=s3cret user=u",
        "host=h password='s3 cret' user=u",
        "postgresql://u:s3cret@h1,h2/db",
    ],
)
def test_passwords_are_masked_in_every_form(dsn: str) -> None:
    """No form of a connection string shows its password."""
    masked = mask_dsn(dsn)
    assert "s3" not in masked
    assert "cret" not in masked
    assert "h" in masked


def test_the_masked_settings_and_the_repr_hide_the_password() -> None:
    """What doctor prints and what a traceback shows hold no secret."""
    settings = Settings.from_env({"OTEL_ACTIVITY_POSTGRES_DSN": DSN})
    assert "s3cret" not in repr(settings)
    assert "s3cret" not in str(settings.masked())


def test_durable_is_the_default_where_somebody_confirms() -> None:
    """The console and the application's provider confirm nothing; durable with the latter is refused."""
    store = {"OTEL_ACTIVITY_POSTGRES_DSN": "postgresql://h/d"}
    assert Settings.from_env(store).delivery == "durable"
    assert Settings.from_env(store, delivery="best_effort").delivery == "best_effort"
    assert Settings.from_env({}, exporters=["console"]).delivery == "best_effort"
    assert Settings.from_env({}, exporters=["console"], delivery="durable").delivery == "durable"
    assert Settings.from_env({}, logger_provider="global").delivery == "best_effort"
    with pytest.raises(ConfigurationError, match="OTEL_ACTIVITY_DELIVERY=best_effort"):
        Settings.from_env({}, delivery="durable", logger_provider="global")


def test_a_journal_directory_must_not_depend_on_where_the_process_stands() -> None:
    """A relative path is refused; a home directory is filled in."""
    with pytest.raises(ConfigurationError, match="absolute"):
        Settings.from_env({"OTEL_ACTIVITY_JOURNAL_DIR": "journal"})
    assert Settings.from_env({}, journal_dir="~/x").journal_dir == str(Path.home() / "x")


def test_every_setting_is_documented() -> None:
    """The reference in the docs names each variable."""
    reference = (Path(__file__).parent.parent / "docs" / "configuration.md").read_text()
    documented = set(re.findall(r"`(OTEL_[A-Z_]+)`", reference))
    assert {spec.variable for spec in FIELDS} <= documented


def test_our_variables_are_flags_of_opentelemetry_instrument(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command lists our variables, not the SDK's, and gets our distro unless another was chosen."""
    monkeypatch.delenv("OTEL_PYTHON_DISTRO", raising=False)
    names = dir(InstrumentFlags())
    assert "OTEL_ACTIVITY_POSTGRES_DSN" in names
    assert not [name for name in names if not name.startswith("OTEL_ACTIVITY_")]
    monkeypatch.setenv("OTEL_PYTHON_DISTRO", "somebody_else")
    dir(InstrumentFlags())
    import os

    assert os.environ["OTEL_PYTHON_DISTRO"] == "somebody_else"


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://u:s3cret/x@h/db",
        "postgresql://u:s3cret#x@h/db",
        "postgresql://u:s3cret?x@h/db",
        "postgresql://u:a@s3cret@h/db",
        "postgresql+psycopg://u:s3cret@h/db",
        "u:s3cret@h:5432/db",
        "//u:s3cret@h/db",
        "postgresql:/u:s3cret@h/db",
        "host=h passwd=s3cret",
        "host=h password = 's3cret x'",
        "postgresql://h/db?oauth_client_secret=s3cret&user=u",
        "postgresql://u:s3cret@h/db?application_name=a@b",
        "postgresql://u:a?b=s3cret@h/db",
        "postgresql://u:1?b=s3cret@h/db?sslmode=require",
        "postgresql://h/db?user=a@b&pass%77ord=s3cret",
        "postgresql://h/db?password=a&s3cret&user=u",
        "postgresql://he:s3cret",
        "postgresql://h1:5432,u:s3cret/db",
        "host=h password=a&s3cret",
        r"host=h password=a\ s3cret",
        "host=h password='a s3cret",
        "host=h password='it''s s3cret' user=u",
        "host=h scram_client_key=s3cret",
        "host=h sslpassword=s3cret",
    ],
)
def test_no_form_of_a_dsn_shows_its_password(dsn: str) -> None:
    """Well-formed or not, a DSN is shown without its secret, and the rest of it can be recognised."""
    shown = mask_dsn(dsn)
    assert "s3cret" not in shown
    assert "***" in shown
    assert "h" in shown
    with pytest.raises(ConfigurationError) as caught:
        Settings.from_env({"OTEL_ACTIVITY_POSTGRES_DSN": dsn, "OTEL_ACTIVITY_POSTGRES_SCHEMA": dsn})
    assert "s3cret" not in str(caught.value)


def test_the_url_of_sqlalchemy_is_recognised() -> None:
    """The URL that people have at hand, with SQLAlchemy's driver in it, gets the one word to leave out."""
    with pytest.raises(ConfigurationError, match=r"SQLAlchemy's form.*; leave out '\+psycopg'") as caught:
        Settings.from_env({"OTEL_ACTIVITY_POSTGRES_DSN": "postgresql+psycopg://u:s3cret@h/db"})
    assert "s3cret" not in str(caught.value)


def test_a_dsn_that_is_nothing_says_what_it_is_not() -> None:
    """Where libpq only misses a sign, the line says which forms there are."""
    with pytest.raises(ConfigurationError, match=r"\(neither a URL nor name=value pairs\)"):
        Settings.from_env({"OTEL_ACTIVITY_POSTGRES_DSN": "postgres:/foo"})


def test_a_huge_value_does_not_bury_its_fix() -> None:
    """The line stays one that a person reads."""
    with pytest.raises(ConfigurationError) as raised:
        Settings.from_env({"OTEL_BLRP_MAX_QUEUE_SIZE": "9" * 100_000})
    assert len(str(raised.value)) < 400
    assert str(raised.value).endswith("use 1 to 10000000")


def test_a_misspelt_argument_does_not_show_its_value() -> None:
    """The value of an unknown setting may be a DSN: only the name is shown."""
    with pytest.raises(ConfigurationError, match="postgres_dns") as caught:
        Settings.from_env({}, postgres_dns=DSN)
    assert "s3cret" not in str(caught.value)


def test_an_endpoint_does_not_show_its_password() -> None:
    """Credentials in an OTLP endpoint are masked in errors, in `masked` and in `repr`."""
    with pytest.raises(ConfigurationError) as caught:
        Settings.from_env({"OTEL_ACTIVITY_OTLP_ENDPOINT": "ftp://u:s3cret@h"})
    settings = Settings.from_env({"OTEL_ACTIVITY_OTLP_ENDPOINT": "http://u:s3cret@h:4318"})
    assert "s3cret" not in f"{caught.value} {settings.masked()} {settings!r}"
    field = next(field for field in FIELDS if field.name == "otlp_endpoint")
    for endpoint in ("https://s3cret@h:4318", "https://h/v1/logs?api-key=s3cret&x=1"):
        assert "s3cret" not in str(Settings.from_env({"OTEL_ACTIVITY_OTLP_ENDPOINT": endpoint}).masked())
        assert "s3cret" not in field.shown(endpoint)  # as `doctor --settings` shows it


def test_what_is_no_secret_in_a_dsn_is_shown() -> None:
    """A mask that hides the address as well would help nobody."""
    for dsn in (
        "postgresql://u@h:5432,[::1]:5433/db?sslmode=require&application_name=a@b&sslkey=/k",
        "postgresql:///db?host=/run/x:y&user=me@cloud",
        "host=h user=u@cloud passfile=/p sslkey=/k",
        "https://h:4318/v1/logs?team=5",
        "module.name:function",
        "GET /users/@me",
    ):
        assert mask_dsn(dsn) == dsn


def test_an_at_sign_in_a_password_is_to_be_escaped() -> None:
    """libpq takes what stands behind the first one for the host, and its errors would show it."""
    with pytest.raises(ConfigurationError, match="to be written as %40") as caught:
        Settings.from_env({"OTEL_ACTIVITY_POSTGRES_DSN": "postgresql://u:pw@s3cret@h/db"})
    assert "s3cret" not in str(caught.value)
    abstract = "host=@/run/pg dbname=x"
    assert Settings.from_env({"OTEL_ACTIVITY_POSTGRES_DSN": abstract}).postgres_dsn == abstract


def test_space_around_an_address_is_no_part_of_it() -> None:
    """A secret from a file ends in a newline, which libpq would take for the end of the database's name."""
    environ = {"OTEL_ACTIVITY_POSTGRES_DSN": f" {DSN}\n", "OTEL_ACTIVITY_OTLP_ENDPOINT": "http://h:4318\n"}
    settings = Settings.from_env(environ)
    assert (settings.postgres_dsn, settings.otlp_endpoint) == (DSN, "http://h:4318")


def test_a_list_may_stand_on_lines() -> None:
    """A block of YAML has a name on each line, with commas or without; a name of several words stays one."""
    environ = {
        "OTEL_ACTIVITY_INCLUDE": "orders\ncustomers,\n\ninvoice?lines\n",
        "OTEL_ACTIVITY_REDACT": "home phone",
    }
    settings = Settings.from_env(environ)
    assert settings.include == ("orders", "customers", "invoice?lines")
    assert settings.redact == ("home phone",)


def test_a_list_may_be_any_collection() -> None:
    """A set of tables is as good as a list of them."""
    assert Settings.from_env({}, include={"b", "a"}).include == ("a", "b")
    assert Settings.from_env({}, redact=frozenset({"email"})).redact == ("email",)


@pytest.mark.parametrize("value", [iter(["orders"]), {"orders": True}, b"orders", object()])
def test_an_argument_that_is_no_text_is_refused(value: object) -> None:
    """Read by its repr it would name a table that there is not, and nothing would be audited."""
    with pytest.raises(ConfigurationError, match=r"include='\.\.\.': a .*; use a text, a number or a list"):
        Settings.from_env({}, include=value)


def test_an_object_that_has_a_text_is_an_argument() -> None:
    """Other settings of the application may hold it as a URL; SQLAlchemy's shows stars for its password."""

    class Url:
        def __str__(self) -> str:
            return "postgresql://audit:s3cret@db/app"

    assert Settings.from_env({}, postgres_dsn=Url()).postgres_dsn == "postgresql://audit:s3cret@db/app"
    assert Settings.from_env({}, trusted_proxies=ip_network("10.0.0.0/8")).trusted_proxies == ("10.0.0.0/8",)
    with pytest.raises(ConfigurationError, match="a URL; use a text"):
        Settings.from_env({}, postgres_dsn=make_url("postgresql://audit:s3cret@db/app"))


@pytest.mark.parametrize("service", ["OTEL_ACTIVITY", "OTEL_ACTIVITY_RECEIVER", "OTEL_ACTIVITY_SERVICE"])
def test_variables_that_kubernetes_makes_for_a_service_are_no_settings(service: str) -> None:
    """A Service of that name beside the application must not keep all of its pods from starting."""
    environ = {
        f"{service}_SERVICE_HOST": "10.0.0.7",
        f"{service}_SERVICE_PORT": "4318",
        f"{service}_SERVICE_PORT_OTLP_HTTP": "4318",
        f"{service}_PORT": "tcp://10.0.0.7:4318",
        f"{service}_PORT_4318_TCP": "tcp://10.0.0.7:4318",
        f"{service}_PORT_4318_TCP_PROTO": "tcp",
        f"{service}_PORT_4318_TCP_PORT": "4318",
        f"{service}_PORT_4318_TCP_ADDR": "10.0.0.7",
    }
    assert Settings.from_env(environ) == Settings()
    with pytest.raises(ConfigurationError, match="no such setting"):
        Settings.from_env({**environ, f"{service}_SERVER": "10.0.0.7"})
    with pytest.raises(ConfigurationError, match="no such setting"):
        Settings.from_env({f"{service}_PORT": "4318"})


@pytest.mark.parametrize(
    "variable",
    [
        "OTEL_ACTIVTY_REDACT",
        "OTEL_ACITVITY_REDACT",
        "OTELACTIVITY_REDACT",
        "OTEL_ACTIVITYREDACT",
        "OTL_ACTIVITY_REDACT",
        "OTEL-ACTIVITY-REDACT",
        "otel_activity_redact",
    ],
)
def test_a_slip_in_the_beginning_of_a_name_is_recognised(variable: str) -> None:
    """It would mean less redaction without a word."""
    assert lookalikes({variable: "email"}) == [(variable, "OTEL_ACTIVITY_REDACT")]


def test_variables_of_others_are_nobodys_slip() -> None:
    """The SDK's variables, and those of programs that have the same last word."""
    others = (
        "OTEL_EXPORTER_OTLP_ENDPOINT OTEL_EXPORTER_OTLP_LOGS_ENDPOINT OTEL_SDK_DISABLED "
        "OTEL_BLRP_SCHEDULE_DELAY OTEL_PYTHON_DISABLED_INSTRUMENTATIONS MY_REDACT ACTIVITY_REDACT "
        "POSTGRES_DSN REDACT OTEL_REDACT GF_EXCLUDE APP_DELIVERY STARTUP"
    )
    ours = {field.variable: "" for field in FIELDS}
    assert lookalikes({**dict.fromkeys(others.split(), ""), **ours}) == []


def test_an_ipv6_address_without_brackets_is_told_so() -> None:
    """libpq takes its last parts for a port."""
    with pytest.raises(ConfigurationError, match=r"brackets.*\[::1\]:5432") as caught:
        Settings.from_env({"OTEL_ACTIVITY_POSTGRES_DSN": "postgresql://u:s3cret@::1:5432/db"})
    assert "s3cret" not in str(caught.value)
    good = {"OTEL_ACTIVITY_POSTGRES_DSN": "postgresql://u:s3cret@[::1]:5432/db"}
    assert Settings.from_env(good).exporters == ("postgres",)


@pytest.mark.parametrize(
    "variable", ["OTEL_ACTIVITY_REDACT", "OTEL_ACTIVITY_INCLUDE", "OTEL_ACTIVITY_EXCLUDE"]
)
@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("orders # money", "comment"),
        ("orders #money", "comment"),
        ("orders|iban", "commas"),
        ("a\tb", "commas"),
    ],
)
def test_a_list_that_is_read_as_one_name_stops_the_start(variable: str, written: str, said: str) -> None:
    """No column would be redacted by it, and no table audited: a comment is one for the shell alone."""
    with pytest.raises(ConfigurationError, match=said):
        Settings.from_env({variable: written})


def test_names_with_a_number_sign_are_names() -> None:
    """Keys of JSON may be called so."""
    written = "card#,card #,dc:creator,api key"
    assert Settings.from_env({"OTEL_ACTIVITY_REDACT": written}).redact == tuple(written.split(","))
