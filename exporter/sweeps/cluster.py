"""Jobs on the machines of a Ray cluster. Files travel with them; where a job may run is a matter of Ray's resources.

A job without a tag takes one of Ray's CPUs, one with a tag takes one unit of the resource of that name (``GPU`` is
Ray's own), so a machine that was started with ``--num-cpus 0 --resources '{"rack": 1}'`` does nothing but measure.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import socket
import tempfile
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future
from functools import cache
from pathlib import Path
from typing import Any

from exporter.errors import UsageError
from exporter.recipes.running import source_digest
from exporter.sweeps.driver import Workers
from exporter.sweeps.jobs import CRASHED, Job, here, perform
from exporter.sweeps.parcels import Contents, lay_out, made, needed, read
from exporter.sweeps.store import Outcome
from runtime.backends.custom_ops import custom_ops, use_custom_ops
from runtime.errors import BackendMissing

LOCAL = "local"
"""Address of a Ray that is started for one sweep, on this machine."""

_TAGGING = "start a machine with: ray start --address HOST:PORT --resources '{\"NAME\": 1}'"
_GPU = "GPU"
_CONNECT = 10.0
"""Seconds for a cluster to answer."""
_PATIENCE = 120.0
"""Seconds for a machine to say what it is."""


@contextlib.contextmanager
def ray_workers(address: str, count: int, tags: Collection[str]) -> Iterator[Workers]:
    """Workers on a Ray cluster; when this process ends, however that comes, Ray ends theirs.

    Args:
        address: as Ray takes it (``HOST:PORT``, ``auto``, ``ray://...``), or ``LOCAL``.
        count: jobs at a time, of a local one.
        tags: what this machine has, for a local one.

    Raises:
        BackendMissing: Ray is not installed.
        UsageError: no cluster answers, or a machine of it has no Secateur, or another.
    """
    try:
        import ray
    except ImportError as error:
        raise BackendMissing(f"--ray needs the package ray ({error}). Try: pip install 'secateur[ray]'") from error

    _answers(address)
    more: dict[str, Any] = {}
    if address == LOCAL:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        gpus = {"num_gpus": 1} if _GPU in tags else {}
        more = {
            "num_cpus": count,
            "include_dashboard": False,
            "resources": dict.fromkeys(set(tags) - {_GPU}, 1),
            **gpus,
        }
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **more)
    except Exception as error:  # Ray raises any kind
        raise UsageError(f"--ray {address}: no Ray cluster can be used there: {error}") from error
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        known = _machines(ray, nodes)

        def machines(tag: str) -> set[str]:
            return {known[n["NodeID"]] for n in nodes if n["Resources"].get(tag or "CPU", 0) >= 1}

        yield Workers(_starter(ray), machines, _TAGGING, False)
    finally:
        ray.shutdown()


def _answers(address: str) -> None:
    """Refuse an address at which nobody listens: Ray would wait for minutes.

    Raises:
        UsageError: nobody does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _CONNECT):
            pass
    except (OSError, OverflowError) as error:
        raise UsageError(f"--ray {address}: no Ray cluster can be used there: {error}") from error


def _machines(ray: Any, nodes: list[Mapping[str, Any]]) -> dict[str, str]:
    """Fingerprints of machines by the ids of their nodes.

    Raises:
        UsageError: one has another Secateur, or none.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ask = ray.remote(max_retries=0, num_cpus=0)(_introduce)
    asked = {
        node["NodeID"]: ask.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote()
        for node in nodes
    }
    found = {}
    for node in nodes:
        host = node.get("NodeManagerHostname") or node["NodeManagerAddress"]
        try:
            source, found[node["NodeID"]] = ray.get(asked[node["NodeID"]], timeout=_PATIENCE)
        except ray.exceptions.RayError as error:
            why = str(error).strip().splitlines()[-1]
            raise UsageError(
                f"the machine {host} of the cluster cannot run Secateur's jobs: {why}. The same version has to be "
                "installed on every machine."
            ) from error
        if source != source_digest():
            raise UsageError(f"the machine {host} of the cluster has another Secateur; install the same one there.")
    return found


def _introduce() -> tuple[str, str]:
    """What a machine is asked first."""
    return source_digest(), here()


def _starter(ray: Any) -> Any:
    """What begins a job."""
    remote = ray.remote(max_retries=1)(_work)

    @cache
    def sent(path: str, _size: int, _changed: int) -> Any:
        return ray.put(read(path))

    def start(job: Job) -> Future[Outcome]:
        done: Future[Outcome] = Future()
        try:
            travelling, elsewhere = needed(job)
            libraries = list(map(str, custom_ops()))
            files = {path: sent(path, (s := Path(path).stat()).st_size, s.st_mtime_ns) for path in travelling}
            if job.tag == _GPU:
                options: dict[str, Any] = {"num_cpus": 0, "num_gpus": 1}
            else:
                options = {"num_cpus": 0, "resources": {job.tag: 1}} if job.tag else {"num_cpus": 1}
            remote.options(**options, name=f"{job.kind} {job.name}").remote(
                job, files, elsewhere, libraries
            ).future().add_done_callback(lambda arrived: _arrive(arrived, done))
        except (OSError, UsageError) as error:
            done.set_exception(error)
        return done

    return start


def _work(
    job: Job, files: Mapping[str, Any], elsewhere: list[str], libraries: list[str]
) -> tuple[Outcome, dict[str, Contents]]:
    """Do a job on a machine of the cluster, in a folder of its own; what it made comes back."""
    missing = [path for path in (*elsewhere, *libraries) if not Path(path).exists()]
    if missing:
        return Outcome({}, 0.0, "", CRASHED, f"there is no {missing[0]} on {platform.node()}"), {}
    import ray

    use_custom_ops(libraries)
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder, contextlib.chdir(folder):
        for path, contents in zip(files, ray.get(list(files.values())), strict=True):
            lay_out(path, contents)
        return perform(job, fresh=True), made(job.recipe.folder, files)


def _arrive(arrived: Future[tuple[Outcome, dict[str, Contents]]], done: Future[Outcome]) -> None:
    """Lay out what came back, and only then say that the job is done."""
    try:
        outcome, files = arrived.result()
        for path, contents in files.items():
            lay_out(path, contents)
        done.set_result(outcome)
    except Exception as error:  # whatever it is, it belongs to this job
        done.set_exception(error)
