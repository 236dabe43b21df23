"""Every file that starts a cluster: by Ray's own schema, by the clouds' own names, and by what raysense promises."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from raysense import __version__

ROOT = Path(__file__).parents[2]
RAY_FILES = ("cluster.yaml", "deploy/on-premises.yaml", "deploy/gcp.yaml")
LOCK = (ROOT / "deploy/cluster.lock").read_text()

# Ray hands `node_config` on to the cloud without looking. AWS's names are checked against botocore, which has the
# service's own model; for the other two this is the written list of the names that our files use, with where they
# come from. A name that is not here is a typo until it has been looked up and added.
GOOGLE = {  # Compute Engine v1, `instances.insert`, by the discovery document of compute.v1
    "": {"machineType", "disks", "metadata", "scheduling", "serviceAccounts"},
    "disks": {"boot", "autoDelete", "type", "initializeParams"},
    "disks.initializeParams": {"diskSizeGb", "sourceImage"},
    "metadata": {"items"},
    "metadata.items": {"key", "value"},
    "scheduling": {"provisioningModel", "instanceTerminationAction", "onHostMaintenance"},
    "serviceAccounts": {"email", "scopes"},
}
KUBERAY = {  # ray.io/v1 RayJob, by KubeRay's API reference; below `template.spec` the Kubernetes pod specification
    "": {"apiVersion", "kind", "metadata", "spec"},
    "metadata": {"name"},
    "spec": {
        "entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit", "submissionMode",
        "rayClusterSpec",
    },
    "spec.rayClusterSpec": {
        "rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec",
        "workerGroupSpecs",
    },
    "spec.rayClusterSpec.authOptions": {"mode"},
    "spec.rayClusterSpec.autoscalerOptions": {"version", "upscalingMode", "idleTimeoutSeconds"},
    "spec.rayClusterSpec.headGroupSpec": {"rayStartParams", "template"},
    "spec.rayClusterSpec.headGroupSpec.rayStartParams": {"num-cpus"},
    "spec.rayClusterSpec.workerGroupSpecs": {
        "groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template",
    },
    **{
        f"spec.rayClusterSpec.{group}.template{place}": names
        for group in ("headGroupSpec", "workerGroupSpecs")
        for place, names in {
            "": {"spec"},
            ".spec": {"serviceAccountName", "tolerations", "containers"},
            ".spec.tolerations": {"key", "operator", "value", "effect"},
            ".spec.containers": {"name", "image", "resources"},
            ".spec.containers.resources": {"limits", "requests"},
            ".spec.containers.resources.limits": {"cpu", "memory", "nvidia.com/gpu"},
            ".spec.containers.resources.requests": {"cpu", "memory", "nvidia.com/gpu"},
        }.items()
    },
}  # fmt: skip


def read(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / name).read_text()))


def unknown_names(value: Any, known: Mapping[str, set[str]], place: str = "") -> Iterator[str]:
    """Keys of nested mappings that `known` does not list for their place."""
    if isinstance(value, list):
        for item in value:
            yield from unknown_names(item, known, place)
    elif isinstance(value, dict):
        for key, inner in value.items():
            here = f"{place}.{key}".strip(".")
            if key not in known.get(place, ()):
                yield here
            yield from unknown_names(inner, known, here)


@pytest.mark.parametrize("name", RAY_FILES)
def test_rays_own_schema_holds(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(read(name)))
    wrong = read(name)
    wrong["idle_timeout_minuts"] = 1
    with pytest.raises(Exception, match="idle_timeout_minuts"):
        validate_config(prepare_config(wrong))


def test_google_names_are_known() -> None:
    for node in read("deploy/gcp.yaml")["available_node_types"].values():
        assert list(unknown_names(node["node_config"], GOOGLE)) == []
    assert list(unknown_names({"disks": [{"bot": True}], "machine": ""}, GOOGLE)) == ["disks.bot", "machine"]


def test_kuberay_names_are_known() -> None:
    job = read("deploy/kuberay.yaml")
    assert list(unknown_names(job, KUBERAY)) == []
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["minReplica"] = 0
    assert list(unknown_names(job, KUBERAY)) == ["spec.rayClusterSpec.workerGroupSpecs.minReplica"]


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A simulated AWS account with our stack in it; gives boto3."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "simulated",
        "AWS_SECRET_ACCESS_KEY": "simulated",
        "AWS_DEFAULT_REGION": "us-west-2",
        "HOME": str(tmp_path),  # Ray writes a key pair to ~/.ssh
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("cloudformation").create_stack(
        StackName="raysense",
        TemplateBody=(ROOT / "deploy/aws-account.yaml").read_text(),
        Capabilities=["CAPABILITY_NAMED_IAM"],
        Parameters=[{"ParameterKey": "Address", "ParameterValue": "203.0.113.7/32"}],
    )
    yield boto3
    server.stop()


def test_the_aws_cluster_starts_in_a_simulated_account(cloud: Any) -> None:
    """Ray's real AWS provider: it makes the calls that `ray up` would, botocore checks their names, moto answers."""
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config

    config = bootstrap_aws(prepare_config(read("cluster.yaml")))
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    types = config["available_node_types"]
    for name in ("head", "gpu"):
        provider.create_node(types[name]["node_config"], {"ray-user-node-type": name}, 1)

    ec2 = cloud.client("ec2")
    nodes = {
        next(tag["Value"] for tag in node["Tags"] if tag["Key"] == "ray-user-node-type"): node
        for reservation in ec2.describe_instances()["Reservations"]
        for node in reservation["Instances"]
    }
    assert "InstanceLifecycle" not in nodes["head"]
    assert nodes["gpu"]["InstanceLifecycle"] == "spot"
    for name, profile in (("head", "raysense-head"), ("gpu", "raysense-worker")):
        assert nodes[name]["IamInstanceProfile"]["Arn"].endswith(f"/{profile}")
        assert nodes[name]["MetadataOptions"]["HttpTokens"] == "required"
        assert [group["GroupName"] for group in nodes[name]["SecurityGroups"]] == ["raysense"]
    # Ray has not made a group of its own, which would open SSH to the world; ours opens nothing to it.
    groups = {group["GroupName"]: group for group in ec2.describe_security_groups()["SecurityGroups"]}
    assert set(groups) == {"default", "raysense"}
    sources = [r["CidrIp"] for rule in groups["raysense"]["IpPermissions"] for r in rule["IpRanges"]]
    assert sources == ["203.0.113.7/32"]
    # Other tests of this process may have left buckets in the simulated account.
    buckets = {bucket["Name"] for bucket in cloud.client("s3").list_buckets()["Buckets"]}
    assert "raysense-123456789012-us-west-2" in buckets

    worker = types["gpu"]["node_config"]
    with pytest.raises(Exception, match="InstanceTyp"):
        provider.create_node({**worker, "InstanceTyp": "m7i.large"}, {}, 1)


def test_workers_delete_nothing_and_the_head_ends_workers_only() -> None:
    text = (ROOT / "deploy/aws-account.yaml").read_text()
    worker, head = text.split("  WorkerRole:")[1].split("  HeadRole:")
    assert "s3:PutObject" in worker
    assert "Delete" not in worker
    assert "VersioningConfiguration: {Status: Enabled}" in text
    ends = head.split('"ec2:TerminateInstances"')[1].split("- Effect")[0]
    assert (
        '"ec2:InstanceProfile": !GetAtt WorkerProfile.Arn' in ends
    )  # which the head cannot give to a machine
    assert "ResourceTag" not in head


@pytest.mark.parametrize("name", RAY_FILES)
def test_nothing_is_open_and_a_token_is_asked_for(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "0.0.0.0" not in text
    assert "--dashboard-host=127.0.0.1" in text
    assert "RAY_AUTH_MODE=token" in text
    config = read(name)
    assert any(remote.startswith("~/.ray") for remote in config["file_mounts"])
    assert config["rsync_exclude"]


@pytest.mark.parametrize("name", ["cluster.yaml", "deploy/gcp.yaml"])
def test_workers_come_from_zero_and_go_by_themselves(name: str) -> None:
    config = read(name)
    assert config["available_node_types"]["gpu"]["min_workers"] == 0
    assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}
    assert config["idle_timeout_minutes"] <= 10
    assert config["provider"]["cache_stopped_nodes"] is False


def test_one_ray_and_one_raysense_everywhere() -> None:
    (ray,) = re.findall(r"^ray==(\S+)$", LOCK, re.MULTILINE)
    assert re.search(rf"^ray=={re.escape(ray)}\s", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    for name in ("cluster.yaml", "deploy/Dockerfile", "deploy/kuberay.yaml"):
        text = (ROOT / name).read_text()
        found = re.findall(r"rayproject/ray:(\d[\d.]*\d)", text) + re.findall(r"RAY=(\d[\d.]*\d)", text)
        found += re.findall(r"rayVersion: (\S+)", text)
        assert found, name
        assert set(found) == {ray}, name
        assert set(re.findall(r"raysense:(\d\S*)", text)) <= {__version__}
    for name in RAY_FILES:  # the same lock for all nodes: the commands are common to head and workers
        commands = " ".join(read(name)["setup_commands"])
        assert "cluster.lock" in commands
        assert "raysense-*.whl" in commands


def test_the_driver_of_googles_image_is_new_enough_for_the_locked_torch() -> None:
    (cuda,) = re.findall(r"^nvidia-cuda-runtime==(\d+)\.", LOCK, re.MULTILINE)
    least = {"12": 525, "13": 580}[cuda]  # NVIDIA's table of CUDA's minor version compatibility, Linux
    drivers = re.findall(
        r"sourceImage: \S+-nvidia-(\d+)$", (ROOT / "deploy/gcp.yaml").read_text(), re.MULTILINE
    )
    assert len(drivers) == 2
    assert all(int(driver) >= least for driver in drivers)


def test_whoever_makes_a_token_is_told_to_shut_it() -> None:
    for name in (*RAY_FILES, "docs/guides/cluster.md"):
        text = (ROOT / name).read_text()
        assert text.count("get-auth-token --generate") == text.count("chmod 600 ~/.ray/auth_token"), name


def test_the_lock_of_the_cluster_agrees_with_the_tested_one() -> None:
    tested = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    cluster = dict(re.findall(r"^([\w.-]+)==(\S+)", LOCK, re.MULTILINE))
    assert {name: cluster[name] for name in set(tested) & set(cluster)} == {
        name: tested[name] for name in set(tested) & set(cluster)
    }
