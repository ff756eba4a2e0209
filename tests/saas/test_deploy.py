"""The manifests of deploy/: valid for their own tools, and in agreement with our command line, settings, routes and metrics."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from invokeai_saas.cli import _parser
from invokeai_saas.settings import Settings, load_settings
from invokeai_saas.workers.gauges import OF_ADVICE
from invokeai_saas.workers.registry import TIERS
from invokeai_saas.workers.scaling import bounds_of

ROOT = Path(__file__).resolve().parents[2] / "deploy"
KUBERNETES, SYSTEMD = ROOT / "kubernetes", ROOT / "systemd"
# The oldest that people run, and the newest that the linter knows.
VERSIONS = ("1.29", kubernetes_validate.latest_version())
WITH_PODS = ("Deployment", "Job", "CronJob")


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(KUBERNETES.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            yield f"{path.name}:{document['kind']}:{document.get('metadata', {}).get('name', '')}", document


ALL = dict(documents())
OBJECTS = {name: document for name, document in ALL.items() if document["kind"] != "Kustomization"}
SETTINGS = next(document["data"] for document in ALL.values() if document["kind"] == "ConfigMap")
UNITS = sorted(SYSTEMD.glob("*.service"))


def pods() -> list[tuple[str, dict[str, Any]]]:
    found = []
    for name, document in OBJECTS.items():
        if document["kind"] in WITH_PODS:
            spec = document["spec"]["jobTemplate"]["spec"] if document["kind"] == "CronJob" else document["spec"]
            found.append((name, spec["template"]))
    return found


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    return {document["metadata"]["name"]: document for document in ALL.values() if document["kind"] == kind}


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid_for_kubernetes(name, version):
    kubernetes_validate.validate(OBJECTS[name], version, strict=True)


def test_the_linter_bites():
    broken = {**of_kind("Service")["invokeai-web"], "spec": {"ports": [{"prot": 80}]}}

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSIONS[-1], strict=True)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl on this machine")
def test_kubectl_builds_the_whole():
    built = subprocess.run(["kubectl", "kustomize", str(KUBERNETES)], capture_output=True, text=True, timeout=60)

    assert built.returncode == 0, built.stderr
    made = list(yaml.safe_load_all(built.stdout))
    assert len(made) == len(OBJECTS)
    assert {document["metadata"].get("namespace", "invokeai") for document in made} == {"invokeai"}
    assert "image: invokeai-saas\n" not in built.stdout


def test_every_file_is_in_the_kustomization():
    (kustomization,) = (document for document in ALL.values() if document["kind"] == "Kustomization")

    assert set(kustomization["resources"]) == {path.name for path in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml"}


@pytest.mark.parametrize(("name", "template"), pods(), ids=[name for name, _ in pods()])
def test_every_pod_runs_a_command_of_ours_without_rights(name, template):
    (container,) = template["spec"]["containers"]
    command, *arguments = container["args"]
    parsed = _parser().parse_args(arguments)

    assert (command, hasattr(parsed, "func"), container["image"]) == ("invokeai-saas", True, "invokeai-saas")
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert template["spec"]["securityContext"]["runAsNonRoot"] is True
    assert template["spec"]["automountServiceAccountToken"] is False
    assert "memory" in container["resources"]["limits"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in template["spec"]["volumes"]}


@pytest.mark.parametrize("name", [name for name, document in OBJECTS.items() if document["kind"] == "Deployment"])
def test_a_deployment_selects_its_own_pods(name):
    spec = OBJECTS[name]["spec"]

    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()


def test_the_shared_settings_are_settings(monkeypatch):
    for variable, value in SETTINGS.items():
        monkeypatch.setenv(variable, value)
    settings = load_settings()
    known = {field.validation_alias or f"SAAS_{name.upper()}" for name, field in Settings.model_fields.items()}

    assert set(SETTINGS) <= known
    assert (settings.host, settings.metrics_port) == ("0.0.0.0", 9100)


def test_the_example_environment_is_settings():
    known = {field.validation_alias or f"SAAS_{name.upper()}" for name, field in Settings.model_fields.items()}
    lines = (SYSTEMD / "environment.example").read_text(encoding="utf-8").splitlines()
    named = {line.partition("=")[0] for line in lines if line and not line.startswith("#")}

    assert named - known == {"SAAS_WORKER_TIER", "SAAS_WORKER_MODELS"}


def test_a_pool_ends_later_than_its_drain():
    drain = float(SETTINGS["SAAS_DRAIN_SECONDS"])
    pools = [document["spec"]["template"]["spec"] for name, document in of_kind("Deployment").items() if "worker" in name]
    web = of_kind("Deployment")["invokeai-web"]["spec"]["template"]["spec"]

    assert len(pools) == 3
    assert all(pool["terminationGracePeriodSeconds"] > drain + load_settings().stop_seconds for pool in pools)
    assert web["terminationGracePeriodSeconds"] > float(SETTINGS["SAAS_SHUTDOWN_DRAIN_SECONDS"]) + load_settings().shutdown_grace_seconds


def test_every_tier_has_a_pool_that_scales_within_the_bounds_on_our_metric():
    scalers, deployments = of_kind("HorizontalPodAutoscaler"), of_kind("Deployment")
    bounds, found = bounds_of(SETTINGS["SAAS_SCALE_BOUNDS"].split(",")), {}
    for scaler in scalers.values():
        (metric,) = scaler["spec"]["metrics"]
        tier = metric["external"]["metric"]["selector"]["matchLabels"]["tier"]
        arguments = deployments[scaler["spec"]["scaleTargetRef"]["name"]]["spec"]["template"]["spec"]["containers"][0]["args"]
        found[tier] = (scaler["spec"]["minReplicas"], scaler["spec"]["maxReplicas"])

        assert arguments[arguments.index("--tier") + 1] == tier
        assert metric["external"]["metric"]["name"] in {name for _, name, _ in OF_ADVICE}
        assert metric["external"]["target"] == {"type": "AverageValue", "averageValue": "1"}
    assert found == {tier: (bounds[tier].least, bounds[tier].most) for tier in TIERS}


def test_the_probes_ask_what_there_is():
    from invokeai_saas.operating import install

    container = of_kind("Deployment")["invokeai-web"]["spec"]["template"]["spec"]["containers"][0]
    asked = {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    text = Path(install.__file__).read_text(encoding="utf-8")

    assert asked == {"/healthz", "/readyz"}
    assert all(f'"{path}"' in text for path in asked)


def option(unit: Path, name: str) -> str:
    found = re.findall(rf"^{name}=(.*)$", unit.read_text(encoding="utf-8"), re.MULTILINE)
    assert found, f"expected {name} in {unit.name}"
    return found[-1]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_finds_nothing_wrong(unit, tmp_path):
    copy = tmp_path / unit.name.replace("@.", "@0.")
    text = unit.read_text(encoding="utf-8")
    # What is only on the machine that runs it.
    copy.write_text(text.replace("/opt/invokeai-saas/.venv/bin/invokeai-saas", "/bin/true").replace("User=invokeai", "User=root"))
    found = subprocess.run(["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True, timeout=120)

    assert [line for line in found.stderr.splitlines() if "invokeai" in line] == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine")
def test_systemds_linter_bites(tmp_path):
    copy = tmp_path / "invokeai-broken.service"
    copy.write_text(UNITS[0].read_text(encoding="utf-8").replace("Restart=always", "Restrat=always"))
    found = subprocess.run(["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True, timeout=120)

    assert "Restrat" in found.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_starts_a_command_of_ours_and_waits_for_its_end(unit):
    command = option(unit, "ExecStart").replace("${SAAS_WORKER_TIER}", "basic").replace("${SAAS_WORKER_MODELS}", "sync").replace("%i", "0")
    arguments = command.replace("%H", "gpu1").split()[1:]
    parsed = _parser().parse_args(arguments)
    settings = load_settings()
    longest = settings.drain_seconds + settings.stop_seconds if "worker" in unit.name else settings.shutdown_grace_seconds

    assert hasattr(parsed, "func")
    assert float(option(unit, "TimeoutStopSec")) > longest
    assert option(unit, "Restart") == "always"
