"""The files for a deployment: those for Kubernetes and for HAProxy fit echod, each other, and what reads them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ruamel.yaml import YAML

from echod import __version__
from echod.config import load
from echod.config.checks import LARGEST_READ, OVERHEAD
from echod.config.types import split_http_address
from tests.support.harness import DEADLINE
from tests.support.kubernetes_types import problems

if TYPE_CHECKING:
    from echod.config.settings import Settings

CONFIG = Path(__file__).parents[2] / "config"
HAPROXY = CONFIG / "haproxy/haproxy.cfg"
LAST_ECHOES, SLOW_LOG = 6, 5
"""Seconds after a drain, at most (docs/operations.md)."""
PROCESS = 30_000_000
"""Bytes of the process without connections (docs/security.md)."""
UNITS = {"Mi": 2**20}


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    return list(YAML(typ="safe").load_all((CONFIG / "kubernetes/echod.yaml").read_text()))


@pytest.fixture
def settings(documents: list[dict[str, Any]], tmp_path: Path) -> Settings:
    """Return those of the ConfigMap, as echod itself reads them."""
    (text,) = (each["data"]["echod.toml"] for each in documents if each["kind"] == "ConfigMap")
    (tmp_path / "echod.toml").write_text(text)
    loaded = load.load(tmp_path / "echod.toml", {}, {})
    assert loaded.warnings == []
    return loaded.settings


def named(documents: list[dict[str, Any]], kind: str, name: str = "echod") -> dict[str, Any]:
    (found,) = (each for each in documents if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return found


def pod(documents: list[dict[str, Any]]) -> dict[str, Any]:
    return named(documents, "Deployment")["spec"]["template"]["spec"]  # type: ignore[no-any-return]


def container(documents: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = pod(documents)["containers"]
    return found  # type: ignore[no-any-return]


# Kubernetes


def test_kubernetes_knows_each_field(documents: list[dict[str, Any]]) -> None:
    assert [line for document in documents for line in problems(document)] == []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"replica": 2}, "Deployment.spec.replica: unknown"),
        ({"replicas": "2"}, "Deployment.spec.replicas: '2' is not <class 'int'>"),
        (
            {"strategy": {"rollingUpdate": {"maxSurge": []}}},
            "Deployment.spec.strategy.rollingUpdate.maxSurge: [] is not",
        ),
        ({"selector": None}, "Deployment.spec.selector: None is not"),
    ],
)
def test_a_field_that_kubernetes_does_not_know_is_found(
    documents: list[dict[str, Any]], change: dict[str, Any], line: str
) -> None:
    """Otherwise the test above would show nothing."""
    deployment = named(documents, "Deployment")
    (found,) = problems(deployment | {"spec": deployment["spec"] | change})
    assert found.startswith(line)
    assert list(problems(deployment | {"spec": {"replicas": 2}})) == [
        "Deployment.spec.selector: missing",
        "Deployment.spec.template: missing",
    ]


def test_the_ports_are_those_of_the_settings(documents: list[dict[str, Any]], settings: Settings) -> None:
    """Those of the container, and by their names those of probes and Services; RFC 862 has port 7."""
    ports = {each["name"]: each["containerPort"] for each in container(documents)["ports"]}
    host, admin = split_http_address(settings.admin.http)
    assert ports == {"echo": settings.listen.port, "admin": admin}
    assert (settings.listen.host, host) == (("*",), "*")
    for probe, path in (("readinessProbe", "/readyz"), ("livenessProbe", "/livez")):
        assert container(documents)[probe]["httpGet"] == {"path": path, "port": "admin"}
    assert named(documents, "Service")["spec"]["ports"] == [{"name": "echo", "port": 7, "targetPort": "echo"}]
    (port,) = named(documents, "Service", "echod-admin")["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (admin, "admin")
    annotations = named(documents, "Deployment")["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(admin)


def test_the_name_of_the_service_is_one_that_admin_http_answers_to(
    documents: list[dict[str, Any]], settings: Settings
) -> None:
    """In its namespace, and with the suffixes that DNS in a cluster has."""
    name = named(documents, "Service", "echod-admin")["metadata"]["name"]
    suffixes = ("", ".default", ".default.svc", ".default.svc.cluster.local")
    assert settings.admin.names == tuple(name + suffix for suffix in suffixes)


def test_all_that_select_pods_select_these(documents: list[dict[str, Any]]) -> None:
    labels = named(documents, "Deployment")["spec"]["template"]["metadata"]["labels"]
    (constraint,) = pod(documents)["topologySpreadConstraints"]
    selectors = [
        named(documents, "Deployment")["spec"]["selector"]["matchLabels"],
        named(documents, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        named(documents, "Service")["spec"]["selector"],
        named(documents, "Service", "echod-admin")["spec"]["selector"],
        constraint["labelSelector"]["matchLabels"],
    ]
    assert selectors == [labels] * 5


def test_kubernetes_waits_for_the_whole_stop(documents: list[dict[str, Any]], settings: Settings) -> None:
    """For the lame duck, the drain, the last echoes and the log."""
    assert settings.timeouts.lame_duck
    assert settings.timeouts.drain is not None
    stop = settings.timeouts.lame_duck + settings.timeouts.drain + LAST_ECHOES + SLOW_LOG
    assert pod(documents)["terminationGracePeriodSeconds"] == stop


def test_the_lame_duck_is_longer_than_the_probes_need(documents: list[dict[str, Any]], settings: Settings) -> None:
    """A pod is not ready after three of them, if nothing else takes it out of the Service."""
    assert settings.timeouts.lame_duck
    assert settings.timeouts.lame_duck >= 3 * container(documents)["readinessProbe"]["periodSeconds"]


def test_the_pool_fits_into_the_memory(documents: list[dict[str, Any]], settings: Settings) -> None:
    """All of it stalled, with something left for the kernel's buffers."""
    limit = container(documents)["resources"]["limits"]["memory"]
    size = int(limit[:-2]) * UNITS[limit[-2:]]
    each = min(LARGEST_READ, 2 * (settings.listen.receive_buffer or LARGEST_READ)) + OVERHEAD
    bound = settings.pool.size * each + PROCESS
    assert 1.5 * bound < size
    said = re.search(
        r"takes at most ([0-9]+) MB: ([0-9,]+) connections", (CONFIG / "kubernetes/echod.yaml").read_text()
    )
    assert said
    assert (int(said[1]), said[2]) == (-(-bound // 1_000_000), f"{settings.pool.size:,}")


def test_the_container_has_no_right(documents: list[dict[str, Any]]) -> None:
    """As the restricted level of the pod security standards wants it, and with a root that is only read."""
    assert pod(documents)["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container(documents)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert pod(documents)["automountServiceAccountToken"] is False


def test_variables_of_the_service_do_not_become_settings(documents: list[dict[str, Any]]) -> None:
    """A Service called echod gives pods variables such as ECHOD_PORT, and each would be a warning."""
    assert pod(documents)["enableServiceLinks"] is False


def test_the_image_is_that_of_this_version(documents: list[dict[str, Any]]) -> None:
    """As `make image` names it."""
    assert container(documents)["image"].endswith(f"/echod:{__version__}")


# HAProxy


@pytest.mark.skipif(
    not shutil.which("haproxy") and not Path("/usr/sbin/haproxy").exists(), reason="there is no haproxy"
)
def test_haproxy_accepts_its_file() -> None:
    """Without a warning."""
    program = shutil.which("haproxy") or "/usr/sbin/haproxy"
    done = subprocess.run([program, "-c", "-f", HAPROXY], capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_settings_that_haproxy_needs_are_valid(tmp_path: Path) -> None:
    """Those in the comment of its file, which also fit what is below."""
    text = HAPROXY.read_text()
    block = re.findall(r"^#   (.*)$", text, re.MULTILINE)
    (tmp_path / "echod.toml").write_text("\n".join(block))
    settings = load.load(tmp_path / "echod.toml", {}, {}).settings
    (port,) = set(re.findall(r"check port ([0-9]+)", text))
    assert split_http_address(settings.admin.http)[1] == int(port)
    assert set(re.findall(r"server .*:([0-9]+)$", text, re.MULTILINE)) == {str(settings.listen.port)}
    (every, fall) = re.findall(r"inter ([0-9]+)s fall ([0-9]+)", text)[0]
    assert settings.timeouts.lame_duck
    assert settings.timeouts.lame_duck > int(every) * (int(fall) + 1)
    assert settings.access.proxies
