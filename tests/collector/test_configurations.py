"""The files of ``collector-config/``: what a reader can rely on, and what the Collector says of them."""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.collector.processes import CONFIGURATIONS, Collector
from tests.support import require_tool

if TYPE_CHECKING:
    from pathlib import Path

SETS = (
    ("agent",),
    ("gateway",),
    ("gateway", "tls"),
    ("agent", "tls"),
    ("kafka-agent",),
    ("kafka-gateway",),
)
FILES = ("agent", "gateway", "tls", "kafka-agent", "kafka-gateway")
VARIABLE = re.compile(r"\$\{env:(COLLECTOR_\w+)(?::-([^}]*))?\}")


def load(name: str) -> Any:
    """One file, parsed."""
    return yaml.safe_load((CONFIGURATIONS / f"{name}.yaml").read_text())


def text(name: str) -> str:
    """One file as it is, without comments."""
    lines = (CONFIGURATIONS / f"{name}.yaml").read_text().splitlines()
    return "\n".join(line.split(" #")[0] for line in lines if not line.lstrip().startswith("#"))


def components(configuration: dict[str, Any]) -> set[tuple[str, str]]:
    """Kind and type of every component that a configuration names."""
    kinds = ("receivers", "processors", "exporters", "connectors", "extensions")
    return {(kind, name.split("/")[0]) for kind in kinds for name in configuration.get(kind, {})}


@pytest.mark.external
@pytest.mark.parametrize("configurations", SETS, ids="+".join)
def test_the_collector_accepts(
    configurations: tuple[str, ...], collector_program: Path, tmp_path: Path
) -> None:
    """`otelcol validate` finds no fault in any set of files that the README names."""
    secrets = {"TOKEN": "t", "TLS_CERT": "c.pem", "TLS_KEY": "k.pem"} if "tls" in configurations else {}
    Collector(collector_program, configurations, tmp_path, **secrets).validate()


@pytest.mark.external
def test_the_collector_refuses_a_wrong_name(collector_program: Path, tmp_path: Path) -> None:
    """`validate` looks: with a component of an older name it fails."""
    with pytest.raises(AssertionError, match="otlphttp"):
        Collector(collector_program, ["agent"], tmp_path, TRACES_TO="otlphttp/backend").validate()


@pytest.mark.external
def test_the_build_is_kept(collector_program: Path) -> None:
    """A second build prints the same path; the program has the version of the manifest."""
    again = subprocess.run([str(CONFIGURATIONS / "build.sh")], capture_output=True, text=True, timeout=5)
    assert again.stdout.strip() == str(collector_program)
    version = subprocess.run([str(collector_program), "--version"], capture_output=True, text=True)
    assert load("builder")["dist"]["version"] in version.stdout


def test_the_manifest_has_what_the_files_name() -> None:
    """Every component of a configuration is built in, and nothing is built in that none names."""
    types = {"otlp_grpc": "otlp", "otlp_http": "otlphttp"}
    wanted = set()
    for name in FILES:
        for kind, component in components(load(name)):
            plain = types.get(component, component).replace("_", "")
            wanted.add((kind, plain))
    built = {
        (kind, re.sub(rf"({kind[:-1]})$", "", module["gomod"].split()[0].rsplit("/", 1)[1]))
        for kind in ("receivers", "processors", "exporters", "connectors", "extensions")
        for module in load("builder")[kind]
    }
    assert wanted == built


def test_the_manifest_pins_one_version() -> None:
    """All modules have the version of the builder; providers have the one that belongs to it."""
    manifest = load("builder")
    modules = [module["gomod"] for kind in manifest for module in manifest[kind] if kind != "dist"]
    versions = {module.split()[1] for module in modules if "/confmap/provider/" not in module}
    assert versions == {f"v{manifest['dist']['version']}"}


@pytest.mark.parametrize("name", FILES)
def test_audit_events_take_the_safe_road(name: str) -> None:
    """No `batch` processor; every queue on the way is on disk, blocks when full and tries for ever."""
    configuration = load(name)
    assert "batch" not in text(name).replace("batch: {flush_timeout", "")
    for exporter in configuration.get("exporters", {}).values():
        queue = exporter.get("sending_queue", {"enabled": False})
        if queue["enabled"]:
            assert queue["storage"] == "file_storage/audit"
            assert queue["block_on_overflow"] is True
            assert exporter["retry_on_failure"]["max_elapsed_time"] == "0s"
    storage = configuration.get("extensions", {}).get("file_storage/audit")
    assert storage is None or (storage["fsync"] is True and "recreate" not in storage)


def test_the_gateway_is_the_agent_with_redaction() -> None:
    """The two files differ in nothing else, so what is proved of one holds for the other."""
    agent, gateway = load("agent"), load("gateway")
    assert gateway["processors"].pop("redaction")["allow_all_keys"] is True
    for name in ("logs/audit", "logs/application", "traces"):
        gateway["service"]["pipelines"][name]["processors"].remove("redaction")
    assert gateway == agent


def test_the_kafka_agent_is_the_agent_with_another_exporter() -> None:
    """Only where audit events go differs."""
    agent, kafka = load("agent"), load("kafka-agent")
    exporter, store = kafka["exporters"].pop("kafka/audit"), agent["exporters"].pop("otlp_grpc/store")
    assert exporter["sending_queue"] == store["sending_queue"]
    assert exporter["retry_on_failure"] == store["retry_on_failure"]
    assert exporter["producer"]["required_acks"] == "all"
    audit = kafka["service"]["pipelines"]["logs/audit"]
    assert audit["exporters"] == ["kafka/audit", "count"]
    audit["exporters"] = ["otlp_grpc/store", "count"]
    assert kafka == agent


def test_the_kafka_gateway_is_the_gateway_with_another_receiver() -> None:
    """Only where audit events come from differs, and that Kafka is the queue."""
    gateway, kafka = load("gateway"), load("kafka-gateway")
    receiver = kafka["receivers"].pop("kafka/audit")
    assert receiver["autocommit"] == {"enable": False}
    assert receiver["message_marking"] == {"after": True, "on_error": False, "on_permanent_error": False}
    exporter, store = kafka["exporters"]["otlp_grpc/store"], gateway["exporters"]["otlp_grpc/store"]
    for name in ("sending_queue", "retry_on_failure"):
        assert exporter.pop(name) == {"enabled": False}
        del store[name]
    del gateway["extensions"]["file_storage/audit"]
    gateway["service"]["extensions"].remove("file_storage/audit")
    gateway["service"]["pipelines"]["logs/audit"]["receivers"] = ["kafka/audit", "otlp"]
    assert kafka == gateway


def test_every_set_that_the_readme_names_is_validated() -> None:
    """What the table says to take, and every command with --config, is among the sets above."""
    readme = (CONFIGURATIONS / "README.md").read_text()
    table = "\n".join(line for line in readme.splitlines() if line.startswith("| "))
    taken = set(re.findall(r"`([\w-]+)[.]yaml`(?: [+] `([\w-]+)[.]yaml`)?", table)) - {("compose", "")}
    texts = [readme, *((CONFIGURATIONS / f"{name}.yaml").read_text() for name in FILES)]
    commands = [line for each in texts for line in each.splitlines() if "--config" in line]
    found = (tuple(re.findall(r"--config (?:[\w-]+/)?([\w-]+)[.]yaml", line)) for line in commands)
    run = {names for names in found if names}  # Kafka's tools have an option of that name, too
    named = {tuple(filter(None, each)) for each in taken if each != ("tls", "")} | run
    assert ("gateway", "tls") in named
    assert named <= set(SETS)


@pytest.mark.parametrize("name", FILES)
def test_addresses_are_loopback_unless_said_otherwise(name: str) -> None:
    """Every default that is an address is one of this machine."""
    address = re.compile(r"\d+[.]\d+[.]\d+[.]\d+")
    assert {found for _, default in VARIABLE.findall(text(name)) for found in address.findall(default)} <= {
        "127.0.0.1"
    }
    assert not address.search(VARIABLE.sub("", text(name))), "an address that no variable can change"


def test_the_readme_lists_every_variable() -> None:
    """README.md has one row for each variable of the files, with its default."""
    readme = (CONFIGURATIONS / "README.md").read_text()
    rows = dict(re.findall(r"^\| `(COLLECTOR_\w+)` \|([^|]*)\|", readme, re.MULTILINE))
    used = {variable: default for name in FILES for variable, default in VARIABLE.findall(text(name))}
    assert {name: shown.strip(" `") for name, shown in rows.items()} == used


def test_compose_refers_to_what_exists() -> None:
    """Files that the compose file mounts or builds from exist, and services it waits for are defined."""
    compose = load("compose")
    services = compose["services"]
    for name, service in services.items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            known = (
                (CONFIGURATIONS / source).exists() if source.startswith(".") else source in compose["volumes"]
            )
            assert known, f"{name}: {source}"
        if build := service.get("build"):
            assert (CONFIGURATIONS / build["context"] / build["dockerfile"]).is_file()
        assert set(service.get("depends_on", ())) <= set(services)
        assert set(service.get("secrets", ())) <= set(compose["secrets"])
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name}: {port} is open to the network"


BUILDS = pytest.mark.timeout(1_200)
"""The first of these tests on a machine builds the loader, which takes minutes where others work too."""


def compose(program: Path, directory: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Load a compose file as Compose does; this loader puts in no variables."""
    directory.joinpath("compose.yaml").write_text(text)
    command = [str(program), "-format", "json", "compose.yaml"]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=60)


def compose_text() -> str:
    """The compose file, with a value for each variable that its first lines tell people to set."""
    return re.sub(r"[$][{]\w+(:[?][^}]*)?[}]", "value", (CONFIGURATIONS / "compose.yaml").read_text())


@BUILDS
@pytest.mark.external
def test_compose_accepts(compose_program: Path, tmp_path: Path) -> None:
    """Compose's own loader, which knows the schema, finds no fault; no container has an open port."""
    done = compose(compose_program, tmp_path, compose_text())
    assert done.returncode == 0, done.stderr
    services = json.loads(done.stdout)["services"]
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}
    for name, service in services.items():
        image = service.get("image", "built:here")
        assert ":" in image, f"{name}: {image} has no version"
        assert not image.endswith(":latest"), name
    assert services["collector"]["image"].endswith(f":{load('builder')['dist']['version']}")


@BUILDS
@pytest.mark.external
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("restart: unless-stopped", "restarts: unless-stopped"),
        ("condition: service_healthy", "condition: healthy"),
        ('"127.0.0.1:4317:4317"', '"127.0.0.1:4317:http"'),
        ("cap_drop: [ALL]", "cap_drop: ALL"),
    ],
)
def test_compose_refuses_what_is_wrong(compose_program: Path, tmp_path: Path, right: str, wrong: str) -> None:
    """The loader looks: an unknown key, condition or port, or a text for a list, is a fault."""
    assert right in compose_text()
    assert compose(compose_program, tmp_path, compose_text().replace(right, wrong)).returncode != 0


@BUILDS
@pytest.mark.external
def test_compose_asks_for_passwords(compose_program: Path, tmp_path: Path) -> None:
    """Without the variables it does not start with an empty password; the message says which to set."""
    done = compose(compose_program, tmp_path, (CONFIGURATIONS / "compose.yaml").read_text())
    assert done.returncode != 0
    assert "is missing a value: set a " in done.stderr


def test_compose_and_prometheus_agree_with_the_collector() -> None:
    """Compose sets only variables that exist; Prometheus scrapes services and ports that compose opens."""
    collector = load("compose")["services"]["collector"]
    used = {variable for variable, _ in VARIABLE.findall(text("gateway"))}
    assert set(collector["environment"]) <= used
    listened = {value for value in collector["environment"].values() if value.startswith("0.0.0.0:")}
    ports = {value.removeprefix("0.0.0.0:") for value in listened}
    assert {port.rsplit(":", 1)[1] for port in collector["ports"]} <= ports
    scraped = [
        target.split(":")
        for job in load("compose/prometheus")["scrape_configs"]
        for group in job["static_configs"]
        for target in group["targets"]
    ]
    assert {host for host, _ in scraped} <= set(load("compose")["services"])
    own = collector["environment"].get("COLLECTOR_OWN_METRICS_PORT", "8888")
    assert {port for host, port in scraped if host == "collector"} <= {*ports, own}


@pytest.mark.external
@pytest.mark.parametrize("file", ["prometheus.yaml", "compose/prometheus.yaml"])
def test_promtool_accepts(file: str) -> None:
    """Prometheus's own checker finds no fault in its configuration."""
    command = [require_tool("promtool"), "check", "config", "--syntax-only", str(CONFIGURATIONS / file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
