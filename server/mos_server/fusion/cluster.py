"""Record concepts on several GPUs or machines at once, with Ray.

Moments do not depend on each other, so workers only have to return them. A worker is a process with
the base model loaded. If it dies it is restarted, and its recording is repeated. Each worker uses
the same number of threads, kind of device and number format as this process, so that moments agree
to the bit.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from mos_common.base_model import Base, load_base
from mos_common.base_names import absolute_name
from mos_common.errors import FusionError, RequestError
from mos_common.fingerprint import why_not
from mos_server.fusion.moments import Moments
from mos_server.fusion.statistics import Recorded, Recorder, Recording, UnusableConceptError

CLIENT = "ray://"


class Worker:
    """A worker process. Expected errors travel as values; only unexpected ones end a worker."""

    def __init__(self, base: str, fingerprint: str, device: str, dtype: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.base = load_base(base, device=device, dtype=dtype)
        if self.base.fingerprint != fingerprint:
            raise FusionError(
                f"a worker's base model {base} is {self.base.fingerprint[:12]}, the server's is {fingerprint[:12]}"
                f"{why_not(fingerprint, self.base)}: "
                "install the same base on every machine of the cluster"
            )

    def record(self, recording: Recording) -> Moments | tuple[str, str]:
        """Return the moments, or the token of an unusable concept and the reason."""
        try:
            return recording.record(self.base, Moments())
        except UnusableConceptError as error:
            return error.token, error.reason


@contextmanager
def recorder_for(workers: str | None, base: Base) -> Iterator[Recorder | None]:
    """Yield the recorder of `recorder_on`, or None without workers: record in this process."""
    if workers is None:
        yield None
        return
    with recorder_on(workers, base) as recorder:
        yield recorder


@contextmanager
def recorder_on(workers: str, base: Base) -> Iterator[Recorder]:
    """Yield a recorder that distributes its work.

    `workers` is a number of local workers, "auto" for the GPUs of this machine, or the address of a
    cluster (ray://…).

    Raises:
        RequestError: `workers` is none of these, or Ray is not installed.
        FusionError: the cluster cannot be reached.

    """
    check_workers(workers)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # send no statistics to Ray's authors
    ray = _ray()
    on_gpu = base.device.type == "cuda"
    local = None if workers.startswith(CLIENT) else _count(workers, on_gpu)
    try:
        if local is None:
            ray.init(address=workers, log_to_driver=False)
        else:
            ray.init(
                num_cpus=local,
                _node_ip_address="127.0.0.1",
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
            )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise FusionError(f"no workers at {workers}: {str(error).splitlines()[0]}") from error
    try:
        resources = ray.cluster_resources()
        count = local or max(1, int(resources.get("GPU" if on_gpu else "CPU", 1)))
        kind = ray.remote(num_cpus=1, num_gpus=1 if on_gpu else 0, max_restarts=-1, max_task_retries=-1)(Worker)
        how = (absolute_name(base.name), base.fingerprint, base.device.type, str(base.dtype).removeprefix("torch."))
        pool = [kind.remote(*how, torch.get_num_threads()) for _ in range(count)]
        yield lambda recordings: _spread(ray, pool, recordings)
    finally:
        ray.shutdown()


def _spread(ray: Any, pool: Sequence[Any], recordings: Sequence[Recording]) -> Iterator[Recorded]:
    """Give each worker one recording at a time, and yield results as they complete."""
    waiting, running = list(recordings), dict[Any, tuple[Recording, Any]]()
    idle = list(pool)
    while waiting or running:
        while waiting and idle:
            worker, recording = idle.pop(), waiting.pop(0)
            running[worker.record.remote(recording)] = recording, worker
        (done,), _ = ray.wait(list(running), num_returns=1)
        recording, worker = running.pop(done)
        idle.append(worker)
        try:
            result = ray.get(done)
        except ray.exceptions.RayError as error:
            raise FusionError(f"a worker failed on {recording.token}: {str(error).strip().splitlines()[-1]}") from error
        yield recording, UnusableConceptError(*result) if isinstance(result, tuple) else result


def check_workers(workers: str) -> None:
    """Check that `workers` is "auto", a number of local workers, or the address of a Ray cluster.

    Raises:
        RequestError: it is none of these.

    """
    if workers != "auto" and not workers.startswith(CLIENT) and not (workers.isdigit() and int(workers) > 0):
        raise RequestError(
            f"--workers {workers}: expected auto, a number of local workers, or a cluster such as ray://host:10001"
        )


def _count(workers: str, on_gpu: bool) -> int:
    if workers == "auto":
        return torch.cuda.device_count() if on_gpu else 1
    return int(workers)


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise RequestError(
            "--workers needs Ray, which is not installed: pip install 'federated-mix-of-show[cluster]'"
        ) from error
    return ray
