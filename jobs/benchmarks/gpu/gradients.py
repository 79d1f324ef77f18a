"""Time one gradient of one network: this package compared with PyTorch on the same device.

    python -m jobs.benchmarks.gpu.gradients OUTPUT.json mlp float32 --device gpu

writes one row for each contender: seconds per gradient by round, and the error compared with NumPy in float64. The
contenders take turns; their inputs are on the device. Part of ``jobs/benchmarks/gpu/benchmark.py``.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from hpc_dasgd.arrays import devices
from hpc_dasgd.data.batches import Batch
from jobs.benchmarks.gpu import networks, rounds

OWN, EAGER, COMPILED, FROM_TORCH = "hpc_dasgd", "PyTorch eager", "torch.compile", "from_torch"
# Largest error of the gradient relative to its norm. Most of it comes from ReLU at inputs so close to zero that
# rounding changes their sign: up to 2.4e-4 in float32 on a CPU, up to 6e-3 with factors rounded to TF32.
BOUNDS = {"float32": 2e-3, "tf32": 2e-2}
N_ROUNDS, ROUND_S, SMALL_ROUND_S = 7, 0.1, 0.05


def main():
    options = arguments()
    device = devices.choose(options.device, tf32=options.precision == "tf32")
    with tempfile.TemporaryDirectory() as folder:
        path, network = Path(folder, "data.h5"), networks.network(options.network, options.small)
        networks.write_data(path, network.image, network.batch_size)
        problem = networks.Problem(network, path)
    for rows in compare(options, device, problem):
        rounds.write_rows(options.output, rows)


def arguments():
    parser = rounds.arguments(__doc__)
    parser.add_argument("network", choices=networks.NETWORKS)
    parser.add_argument("precision", choices=BOUNDS)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, help="(default: all; small cnns not compiled)")
    options = parser.parse_args()
    if options.contenders is None:
        slow = {COMPILED} if options.small and options.network != "mlp" else set()  # half a minute each on one core
        options.contenders = [name for name in CONTENDERS if name not in slow]
    return options


def compare(options, device, problem) -> Iterator[list[dict]]:
    """Yield the rows of the table: first without the compiled contender, which may take too long, and then with it."""
    round_s = SMALL_ROUND_S if options.small else ROUND_S
    rows, steps = {}, {}
    for compiled in (False, True):
        names = [name for name in options.contenders if (name == COMPILED) == compiled]
        for name in names:
            rows[name] = {"network": options.network, "precision": options.precision, "contender": name}
            found, step = first_step(CONTENDERS[name], problem, device, options.precision)
            rows[name] |= found
            steps |= {} if step is None else {name: step}
        if names:
            for name, samples in rounds.time_in_turns(steps, lambda: wait_for(device), round_s, N_ROUNDS).items():
                rows[name]["seconds"] = samples
            yield list(rows.values())


def first_step(contender, problem, device, precision: str) -> tuple[dict, Callable | None]:
    """Make a contender and compare its gradient with the one in float64.

    Returns the entries of its row, and its step if the gradient is right. A failure becomes the entry ``failed``, so
    that the other contenders can continue.
    """
    found = {"n_params": problem.parameters.size, "device": device.name, "bound": BOUNDS[precision]}
    try:
        ready = contender(problem, device, precision == "tf32")
        ready.step()
        found["error"] = rounds.relative_error(ready.gradient(), problem.gradient)
    except Exception as error:  # from any library
        return found | {"failed": f"{type(error).__name__}: {error}".partition("\n")[0]}, None
    if not found["error"] <= found["bound"]:
        wrong = f"error {found['error']:.1e}, at most {found['bound']:.0e} is allowed"
        return found | {"failed": f"the gradient is wrong: {wrong}"}, None
    return found, ready.step


def wait_for(device) -> None:
    """Wait until all work that any library submitted to the device is complete."""
    event = device.record_event()
    while not event.done():
        pass


class Own:
    """A network of this package."""

    def __init__(self, problem, device, tf32):
        self._objective, self._device = problem.objective, device
        self._parameters = device.to_device(problem.parameters)
        self._batch = Batch(device.to_device(problem.batch.x), device.to_device(problem.batch.y))
        self._out = device.zeros(problem.parameters.size, np.float32)

    def step(self):
        self._objective.loss_and_gradient(self._parameters, self._batch, self._out)

    def gradient(self):
        return self._device.to_host(self._out)


class Eager:
    """The same network in PyTorch."""

    def __init__(self, problem, device, tf32):
        self._torch = prepared_torch(tf32)
        name = torch_device(device)
        self._module = problem.torch_module().to(name)
        batch = problem.torch_batch()
        self._x, self._y = (self._torch.tensor(part, device=name) for part in (batch.x, batch.y))
        self._run = self._module

    def step(self):
        self._module.zero_grad(set_to_none=True)
        self._torch.nn.functional.cross_entropy(self._run(self._x), self._y).backward()

    def gradient(self):
        return networks.from_torch_order(parameter.grad for parameter in self._module.parameters())


class Compiled(Eager):
    """The same network in PyTorch, compiled."""

    def __init__(self, problem, device, tf32):
        super().__init__(problem, device, tf32)
        self._run = self._torch.compile(self._module)


class FromTorch:
    """The PyTorch network as an objective of this package."""

    def __init__(self, problem, device, tf32):
        torch = prepared_torch(tf32)
        from hpc_dasgd import objectives

        self._module, batch = problem.torch_module(), problem.torch_batch()
        self._objective = objectives.from_torch(self._module, torch.nn.functional.cross_entropy)
        self._parameters = device.to_device(self._objective.initial(None).astype(np.float32))
        self._batch = Batch(device.to_device(batch.x), device.to_device(batch.y))
        self._out = device.zeros(problem.parameters.size, np.float32)

    def step(self):
        self._objective.loss_and_gradient(self._parameters, self._batch, self._out)

    def gradient(self):
        return networks.from_torch_order(parameter.grad for parameter in self._module.parameters())


CONTENDERS = {OWN: Own, EAGER: Eager, COMPILED: Compiled, FROM_TORCH: FromTorch}


def prepared_torch(tf32: bool):
    """Return the module ``torch``, configured to allow TF32 or not, and to use ``OMP_NUM_THREADS`` threads."""
    import torch

    # The older of two interfaces: torch.compile reads this one and fails if the other one was used.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    return torch


def torch_device(device) -> str:
    return "cpu" if device.on_host else "cuda"


if __name__ == "__main__":
    main()
