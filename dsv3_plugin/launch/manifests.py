"""A run for those who have Kubernetes or SkyPilot and no Slurm: what their templates name. Pure.

Neither was seen by such a cluster yet: names and fields are those of Kubeflow's training operator
(PyTorchJob, kubeflow.org/v1) and of SkyPilot's task files. No torch here.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dsv3_plugin.errors import UserError
from dsv3_plugin.launch.job_script import rendered
from dsv3_plugin.launch.job_values import JobValues
from dsv3_plugin.planner.cluster import Cluster

_LONGEST_NAME = 40
"""Characters: of 63 that a name in DNS has, the operator takes some for each pod's."""


@dataclass(frozen=True)
class Volume:
    """A folder of the node, and where it is in the image."""

    name: str
    source: str
    target: str


@dataclass(frozen=True)
class Manifest:
    """What these templates name beside a job's values.

    Attributes:
        name: of the job, as one in DNS.
        image: what ranks run in, as a registry is asked for it; None: none.
        environment: of every rank.
        limits: devices of a pod, by Kubernetes' names.
        accelerators: devices of a node, as SkyPilot calls them; None: CPUs.
        volumes: that a pod sees.
        cluster: what names the cluster, wherever that is read.
        setup: the cluster's own lines of shell before that.
        torchrun: what a shell starts a node's ranks with, but for what they run.
        words: the recipe and its overrides.
    """

    name: str
    image: str | None
    environment: Mapping[str, str]
    limits: Mapping[str, int]
    accelerators: str | None
    volumes: Sequence[Volume]
    cluster: str
    setup: str
    torchrun: str
    words: Sequence[str]


def kubernetes(values: JobValues, words: Sequence[str], cluster: str) -> str:
    """A PyTorchJob of a run.

    Args:
        values: what a job of it would say.
        words: the recipe and its overrides.
        cluster: what names the cluster.

    Raises:
        UserError: the cluster's file names no image that a registry has.
    """
    if values.cluster.launch.container is None:
        raise UserError(
            "--kubernetes starts pods of an image: name one in the cluster's file, "
            "launch.container: {runtime: pyxis, image: nvcr.io/team/dsv3:1}, as a registry has it."
        )
    where = ("$RANK", "$MASTER_ADDR", "$MASTER_PORT")
    return _rendered("kubernetes.yaml.j2", values, words, cluster, where)


def skypilot(values: JobValues, words: Sequence[str], cluster: str) -> str:
    """A task of SkyPilot's.

    Args:
        values: what a job of it would say.
        words: the recipe and its overrides.
        cluster: what names the cluster.

    Raises:
        UserError: the image is a file, or the device has no name to ask for it by.
    """
    where = ("$SKYPILOT_NODE_RANK", "$master", "29500")
    return _rendered("skypilot.yaml.j2", values, words, cluster, where)


def _rendered(
    template: str,
    values: JobValues,
    words: Sequence[str],
    cluster: str,
    where: tuple[str, str, str],
) -> str:
    launch = values.cluster.launch
    environment = dict(launch.environment)
    if launch.scratch is not None:
        environment["TMPDIR"] = launch.scratch
    manifest = Manifest(
        name=dns_name(values.name),
        image=None if launch.container is None else registry_name(launch.container.image),
        environment=environment,
        limits=_limits(values),
        accelerators=accelerators(values) if template.startswith("skypilot") else None,
        volumes=[_volume(number, mount) for number, mount in enumerate(values.place.mounts)],
        cluster=cluster,
        setup="".join(f"eval {shlex.quote(line)} && " for line in launch.setup),
        torchrun=_torchrun(values, where),
        words=words,
    )
    return rendered(template, job=values, launch=launch, manifest=manifest)


def dns_name(name: str) -> str:
    """A job's name in the characters that names in DNS have."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower())[:_LONGEST_NAME].strip("-") or "dsv3"


def registry_name(image: str) -> str:
    """An image of pyxis or apptainer as a registry is asked for it.

    Raises:
        UserError: it is a file.
    """
    if image.startswith(("/", ".")) or image.endswith((".sif", ".sqsh")):
        raise UserError(
            f"launch.container.image of the cluster's file, {image}, is a file: here it has to be "
            "the name of an image in a registry, such as nvcr.io/team/dsv3:1."
        )
    # enroot has a # between the registry and the image.
    return re.sub(r"^[a-z]+://", "", image).replace("#", "/")


def accelerators(values: JobValues) -> str | None:
    """The devices of a node as SkyPilot calls them, `H100:8`; None for CPUs.

    Raises:
        UserError: the cluster's file does not call them by a name that has one.
    """
    if not values.gpus_per_node:
        return None
    model = re.search(r"\b(?:GB|MI|[A-Z])\d+[A-Z]*\b", values.cluster.gpu)
    if model is None:
        raise UserError(
            f"gpu: {values.cluster.gpu} of the cluster's file has no model in it that SkyPilot "
            "could be asked for, as NVIDIA H100 SXM5 has."
        )
    return f"{model[0]}:{values.gpus_per_node}"


def _limits(values: JobValues) -> dict[str, int]:
    if not values.gpus_per_node:
        return {"cpu": values.placement.ranks_per_node}
    return {f"{_vendor(values.cluster)}.com/gpu": values.gpus_per_node}


def _vendor(cluster: Cluster) -> str:
    return "amd" if cluster.gpu.startswith("AMD") else "nvidia"


def _volume(number: int, mount: str) -> Volume:
    source, target, *_ = (*mount.split(":"), mount)
    return Volume(f"mount-{number}", source, target)


def _torchrun(values: JobValues, where: tuple[str, str, str]) -> str:
    """torchrun on one node, which is told which it is."""
    rank, address, port = where
    placement = values.placement
    return (
        f"exec {shlex.quote(values.place.python)} -m torch.distributed.run "
        f'--nnodes={placement.nodes} --node-rank="{rank}" '
        f"--nproc-per-node={placement.ranks_per_node} "
        f'--master-addr="{address}" --master-port="{port}" '
        f"--shutdown-timeout={values.notice_s}"
    )
