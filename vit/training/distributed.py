"""One training in several processes: who is who, what they tell each other, and how they meet.

Every process runs the same program on the same data and computes its part of each batch; what `fit` needs of the others
goes through a `World`. Alone, which is the default, each of its methods hands back what it was given.
Starting the processes is the concern of vit/launch.py or torchrun; parts of a model in place of copies, of sharding.py.
Source: Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", VLDB 2020.
"""

import contextlib
import errno
import io
import os
import socket
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vit.training.sharding import is_sharded

MEET_SECONDS = 300  # longest wait for the others at the start
WAIT_SECONDS = 1800  # longest wait for one that is alive and silent: it may be writing a state
RETURN_SECONDS = 30  # longest wait at the end, for threads that hold what they were lent

_lent: list[weakref.ref[Tensor]] = []  # what the threads of the group may still hold


@dataclass(frozen=True)
class World:
    """The processes of a training, seen from one of them.

    Attributes:
        rank: which one this is, in 0..size - 1.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes files and shows progress."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """Which of `count` samples are this process's; parts follow one another and differ by at most one sample."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def seed(self, seed: int) -> int:
        """For random numbers that must not be the same in all processes; the first one's is `seed` itself."""
        return seed + 1_000_003 * self.rank

    def any(self, answer: bool) -> bool:
        """Whether any process says yes. All must ask."""
        if self.size == 1:
            return answer
        found = torch.tensor(float(answer))
        dist.all_reduce(_lend(found), dist.ReduceOp.MAX)
        return bool(found)

    def total(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sums over the samples of all processes, from those over this one's."""
        if self.size == 1:
            return sums
        device = next(iter(sums.values())).device
        totals = torch.stack([torch.as_tensor(value, dtype=torch.float64, device=device) for value in sums.values()])
        dist.all_reduce(_lend(totals))
        return dict(zip(sums, totals, strict=True))

    def joined(self, rows: Tensor, count: int) -> Tensor:
        """`count` rows, of which each process has computed its `part`."""
        if self.size == 1:
            return rows
        every = rows.new_zeros(count, *rows.shape[1:])
        own = self.part(count)
        every[own] = rows[: own.stop - own.start]
        dist.all_reduce(_lend(every))
        return every

    def share(self, value: Any = None, source: int = 0) -> Any:
        """The `value`, of tensors and plain values, that the process `source` has, in all of them."""
        if self.size == 1:
            return value
        content = bytearray()
        if self.rank == source:
            buffer = io.BytesIO()
            torch.save(value, buffer)
            content = bytearray(buffer.getbuffer())
        length = torch.tensor(len(content))
        dist.broadcast(_lend(length), source)
        data = torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(_lend(data), source)
        if self.rank == source:
            return value
        return torch.load(io.BytesIO(data.numpy().tobytes()), map_location="cpu", weights_only=True)

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in order."""
        return [self.share(value, source) for source in range(self.size)]

    def check_same(self, facts: dict[str, Any]) -> None:
        """Raises a ValueError, in every process, if a fact is not the same in all of them."""
        if self.size == 1:
            return
        first, *others = self.gather({name: repr(value) for name, value in facts.items()})
        for rank, other in enumerate(others, 1):
            differing = [f"{name}: {first[name]} and {other[name]}" for name in first if first[name] != other[name]]
            if differing:
                raise ValueError(
                    f"processes 0 and {rank} are not of the same training: {'; '.join(differing)}; "
                    "start all of them with the same command"
                )

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model as one whose gradients come out as their mean over the processes.

        Raises:
            ValueError: the model has batch normalization, whose statistics would be those of a part of the batch, or
                is where processes cannot meet.
        """
        if self.size == 1 or is_sharded(model):  # which does so itself
            return model
        if (device := next(model.parameters()).device.type) not in ("cpu", "cuda"):
            raise ValueError(f"several processes cannot train on device={device!r}: use 'cpu' or 'cuda'")
        for name, module in model.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
                raise ValueError(
                    f"{name} normalizes over the batch, of which each process sees a part: "
                    "use nn.SyncBatchNorm.convert_sync_batchnorm(model)"
                )
        return DistributedDataParallel(model, gradient_as_bucket_view=True)


ALONE = World()


def current_world() -> World:
    """The processes of this training, if `processes` has brought some together."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return ALONE


@contextlib.contextmanager
def processes(device: str = "auto") -> Iterator[World]:
    """Meets the other processes that vit/launch.py, torchrun or a cluster has started; without one, there are none.

    Within the block `fit` trains with all of them. Each takes the GPU of its place on its machine, if there is one.
    With an address of this machine alone, the default of vit/launch.py, everything stays on the loopback interface.

    Args:
        device: what the config of the training says; with "cpu" no GPU is taken or needed.

    Raises:
        OSError: the port at which to meet is in use.
        ValueError: there are more processes than GPUs.
        RuntimeError: the others did not come; or an environment variable needed to meet them is not set.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield ALONE
        return
    if missing := [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise RuntimeError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}, but the environment has no {', '.join(missing)}: start with "
            "vit.launch or torchrun, or set them"
        )
    rank, size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    backend = "gloo"
    if device != "cpu" and (gpus := torch.cuda.device_count()):
        if local_rank >= gpus:
            raise ValueError(
                f"process {local_rank} of this machine has no GPU, there are {gpus}: start {gpus} at most, or take "
                "device='cpu'"
            )
        torch.cuda.set_device(local_rank)
        backend = "cpu:gloo,cuda:nccl"
    _stay_on_loopback(os.environ["MASTER_ADDR"])
    try:
        store = _meeting_place(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), rank, size)
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=WAIT_SECONDS)
        )
        yield World(rank, size)
    except Exception as error:
        _record(error)
        raise  # without saying goodbye: the others may be waiting for something that will not come
    dist.barrier()
    _wait_for_return()
    dist.destroy_process_group()


def _lend(tensor: Tensor) -> Tensor:
    """An alias of it for the group, which lets go of what it was given some time after its work is done."""
    alias = tensor.detach()
    _lent[:] = [of_before for of_before in _lent if of_before() is not None] + [weakref.ref(alias)]
    return alias


def _wait_for_return() -> None:
    """Returns once the group's threads hold nothing of Python's: when Python ends before they let go, it aborts.

    They would be waited for by the end of the group, if DistributedDataParallel did not keep the group for ever.
    """
    deadline = time.monotonic() + RETURN_SECONDS
    while any(alias() is not None for alias in _lent) and time.monotonic() < deadline:
        time.sleep(0.001)


def _meeting_place(address: str, port: int, rank: int, size: int) -> dist.Store:
    """Where the processes find each other. The first one opens it, at this address only, unless torchrun has."""
    patience = timedelta(seconds=MEET_SECONDS)
    listener = None
    if rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        try:
            listener = socket.create_server((address, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise OSError(
                error.errno, f"port {port} of {address} is in use: take another MASTER_PORT, or let vit.launch find one"
            ) from None
    return dist.TCPStore(
        address,
        port,
        size,
        is_master=listener is not None,
        timeout=patience,
        master_listen_fd=None if listener is None else listener.detach(),
    )


def _stay_on_loopback(address: str) -> None:
    """Keeps what the processes of one machine send each other away from its network."""
    if address != "localhost" and not address.startswith("127.") and address != "::1":
        return
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    if loopback is not None:
        for backend in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{backend}_SOCKET_IFNAME", loopback)


def _record(error: Exception) -> None:
    """Leaves the error where whoever has started the processes looks for the first one."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    if os.environ.get("TORCHELASTIC_ERROR_FILE"):
        get_error_handler().record_exception(error)
