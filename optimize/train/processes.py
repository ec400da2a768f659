"""One run on several GPUs or machines, by PyTorch's own engine: `torchrun` starts the processes, DDP joins them.

```text
torchrun --nproc-per-node 4 -m optimize train --data parts/ --out model.onnx
```

Each process takes its share of every batch, and gradients are averaged. The first one validates, keeps checkpoints and
exports; the others wait for its figures, so that all stop at the same epoch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed, nn

from optimize.errors import OptimizeError

__all__ = ["Processes", "device_of", "open_processes"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """Who works on this run.

    Attributes:
        rank: this process, from 0.
        count: how many there are.
        device: where this one computes.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this one validates, writes and speaks."""
        return self.rank == 0

    def share(self, batch: NDArray[np.int64]) -> NDArray[np.int64]:
        """What this process takes of a batch."""
        return batch[self.rank :: self.count]

    def joined(self, network: nn.Module) -> nn.Module:
        """The network with its gradients averaged over all processes."""
        if self.count == 1:
            return network
        return nn.parallel.DistributedDataParallel(network)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            distributed.barrier()

    def told(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The first process's numbers, in every process; the shape must be the same in all."""
        if self.count == 1:
            return values
        tensor = torch.from_numpy(values.copy()).to(self.device)
        distributed.broadcast(tensor, src=0)
        found: NDArray[np.float64] = tensor.cpu().numpy()
        return found


@contextlib.contextmanager
def open_processes(device: str) -> Iterator[Processes]:
    """Join the run's other processes, where `torchrun` has started some.

    Args:
        device: `cpu`, `cuda`, or `auto`: a GPU where there is one.

    Raises:
        OptimizeError: there is no such device here, or the others can't be reached.
    """
    count, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    chosen = device_of(device)
    if count == 1:
        yield Processes(rank=0, count=1, device=chosen)
        return
    try:
        distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    except (RuntimeError, ValueError) as error:
        raise OptimizeError(
            f"train: process {rank} of {count} can't reach the others ({str(error).splitlines()[0]})",
            hint="start them with `torchrun --nproc-per-node N -m optimize train ...`",
        ) from error
    processes = Processes(rank=rank, count=count, device=chosen)
    try:
        yield processes
        processes.wait()  # whoever leaves early takes the connections away under the others
    finally:
        distributed.destroy_process_group()


def device_of(name: str) -> torch.device:
    """The device that `auto`, `cpu` or `cuda` means here.

    Raises:
        OptimizeError: there is no such device here.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise OptimizeError("device: got cuda, but torch sees no GPU here", hint="--device cpu, or auto")
    # The same seed should give the same weights on a GPU too; cuBLAS needs its workspace fixed for that. Where PyTorch
    # has no such kernel (the gradient of an adaptive maximum, in CBAM) it warns and goes on.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    number = int(os.environ.get("LOCAL_RANK", "0"))
    torch.cuda.set_device(number)
    return torch.device("cuda", number)
