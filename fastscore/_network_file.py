"""A trained network as one file: what `save_network` writes, `load_network` builds again."""

from __future__ import annotations

import os

import torch
from torch import nn

from fastscore import checkpoint
from fastscore.networks import EnergyMLP, ScoreMLP

_NETWORKS: dict[str, type[ScoreMLP] | type[EnergyMLP]] = {"ScoreMLP": ScoreMLP, "EnergyMLP": EnergyMLP}


def save_network(path: str | os.PathLike[str], network: ScoreMLP | EnergyMLP) -> None:
    """Write a network to one file: its sizes as JSON, its weights as safetensors, no pickle; see `checkpoint.write`.

    The file is replaced at once: a process killed meanwhile leaves the one of before. Only the network is in it, not
    the optimizer.

    Args:
        path: the file, usually named `*.safetensors`; its folder must exist.
        network: a `ScoreMLP` or an `EnergyMLP`; a network of your own is better kept by safetensors itself.

    Raises:
        TypeError: a network of another class, or one whose layers were replaced, wrapped, parametrized or pruned.
        OSError: the file cannot be written; what was there before is untouched.
    """
    if type(network) not in _NETWORKS.values():
        raise TypeError(f"network must be a ScoreMLP or an EnergyMLP, got {type(network).__name__}")
    first, *rest = network.layers
    width = getattr(first, "out_features", 1)
    sizes = {"dim": network.dim, "width": width, "depth": len(rest), "cond_dim": network.cond_dim}
    about = {"class": type(network).__name__, "activation": network.activation, **sizes}
    with torch.device("meta"):
        bare = type(network)(activation=network.activation, **sizes)
    found, wanted = _parts(network), _parts(bare)
    if found != wanted:
        odd = ", ".join(sorted(name for name in found | wanted if found.get(name) != wanted.get(name)))
        raise TypeError(
            f"network is not as {type(network).__name__} builds it ({odd}), so that load_network could not build it: "
            f"undo this first, by torch.nn.utils.parametrize.remove_parametrizations, torch.nn.utils.prune.remove or "
            f"merging an adapter into its nn.Linear"
        )
    checkpoint.write(path, "network", about, network.state_dict())


def _parts(network: nn.Module) -> dict[str, object]:
    """What `load_network` has to find again: the class of every module, the shape of every tensor."""
    modules = {name: type(module) for name, module in network.named_modules(remove_duplicate=False)}
    return {**modules, **{name: tensor.shape for name, tensor in network.state_dict().items()}}


def load_network(path: str | os.PathLike[str]) -> ScoreMLP | EnergyMLP:
    """The network that `save_network` wrote, on the CPU, in its dtype.

    Raises:
        OSError: the file cannot be read.
        CheckpointError: it is no checkpoint, was cut or changed since it was written, or holds another network.
    """
    about, weights = checkpoint.read(path, "network")
    try:
        made = _NETWORKS[about.pop("class")]
        sizes = {name: about[name] for name in ("dim", "width", "depth", "activation", "cond_dim")}
        with torch.random.fork_rng(devices=[]):  # the weights drawn first are not kept
            network = made(**sizes).to(weights["layers.0.weight"].dtype)
        network.load_state_dict(weights, assign=True)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise checkpoint.CheckpointError(f"{path} holds no network that fastscore knows: {error}") from error
    return network
