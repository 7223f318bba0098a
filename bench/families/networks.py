"""The same multilayer perceptrons for everybody: weights as named arrays, and the plain network made of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from bench.registry import Arrays, Call

ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "tanh": nn.Tanh}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weights(sizes: Sequence[int]) -> dict[str, Tensor]:
    """`w0, b0, w1, ...` of a network with these sizes, preactivations of about unit variance."""
    draws, found = generator(0), {}
    for index, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        scale = (1.7 if index else 1.0) / inputs**0.5
        found[f"w{index}"] = scale * torch.randn(outputs, inputs, generator=draws)
        found[f"b{index}"] = 0.1 * torch.randn(outputs, generator=draws)
    return found


def inputs(sizes: Sequence[int], batch: int, device: str) -> dict[str, Tensor]:
    """A network's weights, and x of the law it is evaluated at."""
    made = weights(sizes) | {"x": torch.randn(batch, sizes[0], generator=generator(1))}
    return {name: value.to(device) for name, value in made.items()}


def split(arrays: Arrays) -> tuple[dict[str, Tensor], Tensor]:
    """The weights and x."""
    return {name: value for name, value in arrays.items() if name != "x"}, arrays["x"]


def network(arrays: Arrays, activation: str = "silu", dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """The network as everybody writes it."""
    layers: list[nn.Module] = []
    depth = sum(name.startswith("w") for name in arrays)
    for index in range(depth):
        weight, bias = arrays[f"w{index}"], arrays[f"b{index}"]
        linear = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=dtype)
        with torch.no_grad():
            linear.weight.copy_(weight)
            linear.bias.copy_(bias)
        layers += [linear, ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


def tensors(inputs: Mapping[str, np.ndarray], device: str) -> dict[str, Tensor]:
    """Arrays that came from another process, on a device."""
    return {name: torch.from_numpy(value).to(device) for name, value in inputs.items()}


def training_step(model: nn.Module, loss: Callable[[], Tensor]) -> Call:
    """A whole step but for the optimizer: no gradients, the loss, its backward."""
    parameters = list(model.parameters())

    def call() -> Arrays:
        for parameter in parameters:
            parameter.grad = None
        value = loss()
        value.backward()
        found = {"loss": value.detach()}
        for index, parameter in enumerate(parameters):
            gradient = parameter.grad
            found[f"{'wb'[index % 2]}{index // 2}"] = torch.zeros_like(parameter) if gradient is None else gradient
        return found

    return call


def graphed(call: Call) -> Call:
    """The same work as one CUDA graph, after three runs to warm up, as PyTorch's manual has it."""
    stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    current.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            result = call()
    finally:
        torch.cuda.set_stream(current)  # a capture that breaks off leaves its own

    def replay() -> Arrays:
        graph.replay()
        return result

    return replay


def portable(numbers: int) -> str:
    """Why an array cannot be handed to another process and back within a race's time."""
    return "" if numbers <= 2**26 else "too large to hand to another process"


def cuda_only(case: object, device: str) -> str:
    return "" if device == "cuda" else "CUDA graphs need a GPU"


def cpu_only(case: object, device: str) -> str:
    return "" if device == "cpu" else "for CPUs"
