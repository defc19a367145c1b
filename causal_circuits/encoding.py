"""Results as JSON values and tensors, and back again, equal bit for bit; nothing is ever unpickled.

Numbers, text, paths, lists, tuples, dicts, tensors, arrays, dataclasses, causal graphs and models.
"""

import importlib
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import torch
from torch import Tensor

from causal_circuits.models import HookedTransformer
from causal_circuits.models.files import model_from, model_parts

PACKAGE = __name__.partition(".")[0]


def encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON values; tensors go to `tensors`, under the name that stands in their place.

    >>> tensors = {}
    >>> encode({"loss": 0.5, "attention": torch.eye(2)}, tensors)
    {'dict': [['loss', 0.5], ['attention', {'tensor': 't0'}]]}
    >>> decode(_, tensors)["attention"].shape
    torch.Size([2, 2])
    """
    if isinstance(value, Tensor):
        return {"tensor": _stored(value, tensors)}
    if isinstance(value, np.ndarray):
        return {"array": _stored(torch.from_numpy(value), tensors)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, HookedTransformer):
        config, weights = model_parts(value)
        return {"model": config, "weights": encode(weights, tensors)}
    if isinstance(value, nx.DiGraph):
        return _encode_graph(value, tensors)
    if is_dataclass(value) and not isinstance(value, type):
        content = {field.name: encode(getattr(value, field.name), tensors) for field in fields(value) if field.init}
        return {"class": _class_name(value), "fields": content}
    if isinstance(value, dict):
        return {"dict": [[encode(part, tensors) for part in pair] for pair in value.items()]}
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, tuple):
        return {"tuple": [encode(item, tensors) for item in value]}
    if isinstance(value, list):
        return [encode(item, tensors) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a result holds numbers, text, tensors, graphs, models and dataclasses: got {value!r}")


def decode(values: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `encode` was given.

    Raises:
        ValueError: the values are not `encode`'s.
    """
    try:
        return _decode(values, tensors)
    except (KeyError, TypeError, AttributeError, ImportError) as error:
        raise ValueError(f"these values are no encoded result: {error!r}") from error


def _decode(values: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(values, list):
        return [_decode(item, tensors) for item in values]
    if not isinstance(values, dict):
        return values
    match values:
        case {"tensor": name}:
            return tensors[name]
        case {"array": name}:
            return tensors[name].numpy()
        case {"model": config, "weights": weights}:
            return model_from(config, _decode(weights, tensors))
        case {"graph": name, "nodes": nodes, "edges": edges, "attributes": attributes}:
            return _decode_graph(_class_of(name), *(_decode(part, tensors) for part in (nodes, edges, attributes)))
        case {"class": name, "fields": content}:
            return _class_of(name)(**{key: _decode(part, tensors) for key, part in content.items()})
        case {"dict": pairs}:
            return dict(_decode(pair, tensors) for pair in pairs)
        case {"path": text}:
            return Path(text)
        case {"tuple": items}:
            return tuple(_decode(item, tensors) for item in items)
    raise ValueError(f"these values are no encoded result: {sorted(values)}")


def _stored(tensor: Tensor, tensors: dict[str, Tensor]) -> str:
    name = f"t{len(tensors)}"
    tensors[name] = tensor.detach().clone().contiguous()
    return name


def _encode_graph(graph: nx.DiGraph, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Nodes and edges with their attributes; attributes of an `ExtractedGraph` (its evidence) too."""
    evidence = {name: part for name, part in vars(graph).items() if name in type(graph).__annotations__}
    parts = {
        "nodes": list(graph.nodes(data=True)),
        "edges": list(graph.edges(data=True)),
        "attributes": (dict(graph.graph), evidence),
    }
    return {"graph": _class_name(graph)} | {name: encode(part, tensors) for name, part in parts.items()}


def _decode_graph(kind: type[nx.DiGraph], nodes: list, edges: list, attributes: tuple[dict, dict]) -> nx.DiGraph:
    graph = kind(**attributes[0])
    graph.add_nodes_from(nodes)
    graph.add_edges_from(edges)
    vars(graph).update(attributes[1])
    return graph


def _class_name(value: Any) -> str:
    return f"{type(value).__module__}:{type(value).__qualname__}"


def _class_of(name: str) -> type:
    """A dataclass or graph class of this package, or of a module that is imported already: no file imports another."""
    module, _, attribute = name.partition(":")
    ours = module.partition(".")[0] == PACKAGE
    found = getattr(importlib.import_module(module) if ours else sys.modules.get(module), attribute)
    if not (isinstance(found, type) and (is_dataclass(found) or issubclass(found, nx.DiGraph))):
        raise ValueError(f"{name!r} is neither a dataclass nor a graph")
    return found
