"""The compose file and the Dockerfile fit the program, as far as that can be seen without an engine."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from sandbox.kafka import SETTINGS

ROOT = Path(__file__).parents[2]
STAGES = ("ingest", "streams", "projections", "gateway")
ONE_SHOT = {"migrate": ["tartan", "migrate"], "topics": ["tartan", "topics", "apply"]}
# What must not be known to anyone who reads the repository.
SECRETS = re.compile(r"PASSWORD|SECRET|_KEY|API_KEYS|CLIENT_ID")
REQUIRED_VARIABLE = re.compile(r"\$\{[A-Z_]+:\?[^}]+\}")

Service = dict[str, Any]


@pytest.fixture(scope="module")
def services() -> dict[str, Service]:
    loaded = yaml.safe_load((ROOT / "docker-compose.kafka.yml").read_text())
    return dict(loaded["services"])


@pytest.fixture(scope="module")
def dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text()


def test_every_stage_and_what_it_needs_is_there(services: dict[str, Service]) -> None:
    assert set(services) == {"kafka", "postgres", *ONE_SHOT, *STAGES}
    assert services["kafka"]["image"] == "apache/kafka:4.3.1"
    assert services["postgres"]["image"] == "postgres:18"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_starts_after_servers_tables_and_topics(services: dict[str, Service], stage: str) -> None:
    service = services[stage]

    conditions = {name: wait["condition"] for name, wait in service["depends_on"].items()}
    assert service["command"] == ["tartan", stage]
    assert conditions == {
        "kafka": "service_healthy",
        "postgres": "service_healthy",
        "migrate": "service_completed_successfully",
        "topics": "service_completed_successfully",
    }


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_asked_whether_it_is_ready_and_given_time_to_stop(services: dict[str, Service], stage: str) -> None:
    from runtime.lifecycle import STOP_S_MAX

    service = services[stage]

    port = service["environment"]["TARTAN_INTERNAL_PORT"]
    assert f"http://127.0.0.1:{port}/readyz" in " ".join(service["healthcheck"]["test"])
    assert int(service["stop_grace_period"].removesuffix("s")) > STOP_S_MAX
    assert service["restart"] == "unless-stopped"


def test_one_shot_services_run_once_after_their_server(services: dict[str, Service]) -> None:
    for name, command in ONE_SHOT.items():
        assert services[name]["command"] == command
        assert services[name]["restart"] == "no"
    assert services["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert services["topics"]["depends_on"] == {"kafka": {"condition": "service_healthy"}}


def test_servers_have_a_healthcheck_and_keep_their_data(services: dict[str, Service]) -> None:
    for name in ("kafka", "postgres"):
        assert services[name]["healthcheck"]["test"][0] == "CMD"
        assert services[name]["volumes"][0].startswith(f"{name}:/var/lib/")


def test_no_secret_has_a_value_or_a_default(services: dict[str, Service]) -> None:
    found = set()
    for service in services.values():
        for name, value in service.get("environment", {}).items():
            if name.startswith(("TARTAN_", "POSTGRES_")) and SECRETS.search(name):
                assert REQUIRED_VARIABLE.fullmatch(value), name
                found.add(name)
            elif name.endswith("_DSN"):
                assert REQUIRED_VARIABLE.search(value), name
    assert found == {
        "POSTGRES_PASSWORD",
        "TARTAN_PLAID_CLIENT_ID",
        "TARTAN_PLAID_SECRET",
        "TARTAN_KEY_ENCRYPTION_KEY",
        "TARTAN_API_KEYS",
        "TARTAN_STREAM_SECRET",
    }


def test_every_variable_is_a_setting(services: dict[str, Service]) -> None:
    from runtime.settings import Settings

    prefix = str(Settings.model_config["env_prefix"])
    names = {name for service in services.values() for name in service.get("environment", {})}
    ours = {name.removeprefix(prefix).lower() for name in names if name.startswith(prefix)}
    assert ours <= set(Settings.model_fields)
    assert {"kafka_address", "postgres_dsn", "host", "port", "internal_port"} <= ours


def test_the_broker_has_the_settings_of_the_sandbox(services: dict[str, Service]) -> None:
    broker = {
        name.removeprefix("KAFKA_").replace("_", ".").lower(): value
        for name, value in services["kafka"]["environment"].items()
    }

    # Here there is a third listener, for readers outside of the containers.
    own = {"listener.security.protocol.map"}
    shared = (broker.keys() & SETTINGS.keys()) - own
    assert {name: broker[name] for name in shared} == {name: SETTINGS[name] for name in shared}
    assert {"auto.create.topics.enable", "message.max.bytes", "offsets.topic.replication.factor"} <= shared


def test_nothing_is_published_beyond_this_machine(services: dict[str, Service]) -> None:
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_the_image_holds_every_package(dockerfile: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    ignored = (ROOT / ".dockerignore").read_text()

    for package in wheel["packages"]:
        assert f"COPY {package}/ /app/{package}/\n" in dockerfile
        assert f"!{package}\n" in ignored
        assert (ROOT / package / "__init__.py").exists()
    assert "COPY cli.py /app/\n" in dockerfile
    assert "!cli.py\n" in ignored


def test_the_image_installs_what_is_locked_and_runs_without_rights(dockerfile: str) -> None:
    stages = re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)
    assert stages == ["python:3.11-slim", "python:3.11-slim"]
    assert re.search(r"pip install .*--require-hashes .*-r /build/runtime.txt", dockerfile)
    assert re.findall(r"^USER (\S+)", dockerfile, re.MULTILINE) == ["tartan"]
