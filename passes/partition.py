"""Cut a transformer into the pieces that run one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import onnx_ir as ir

from zq2onnx.passes.trace_hidden import Flow, multiplies_hidden, trace_flow


@dataclass(frozen=True, eq=False)
class Piece:
    """A run of consecutive nodes between two cuts. Constants are not inputs.

    Attributes:
        nodes: in graph order. What is computed of constants alone is in each piece that needs it,
            every other node in exactly one piece.
        inputs: graph inputs, and values that earlier pieces make, which the nodes or their subgraphs
            read. (A graph input with a default value is an input like the others.)
        outputs: values that later pieces read, and graph outputs made here.
        attention: whether two hidden values are multiplied (QKᵀ), or by a fused attention operator.
        products: how many nodes multiply with a weight.
    """

    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]
    attention: bool
    products: int = 0


def partition(model: ir.Model) -> list[Piece]:
    """Cut the main graph where exactly one hidden value is alive, without reading any weight.

    `Flow.hidden` says which values are hidden; one is alive until its last reader has run. All others
    (masks, positions, shapes) are side values: made in the first piece that needs them, handed on to
    the later ones. What holds no product with a weight belongs to the piece before it, as a final
    norm, or is the start of the first, as an embedding. So a transformer gives the attention half and
    the MLP half of each layer, and its lm_head.

    The cuts do not depend on the order of the nodes. A graph without a cut is one piece, a graph
    without nodes none.
    """
    flow = trace_flow(model)
    computed = [node for node in model.graph if not flow.constant.issuperset(node.outputs)]
    steps = [node for node in _schedule(computed, flow) if not flow.hidden.isdisjoint(node.outputs)]
    pieces = _number(steps, flow)
    _place_side_nodes(computed, flow, pieces)
    count = max(pieces.values(), default=0) + 1 if len(model.graph) else 0
    return list(_pieces(model.graph, flow, pieces, count))


def blocks(pieces: Sequence[Piece]) -> list[tuple[Piece, ...]]:
    """Join the pieces to transformer blocks: an attention half and the MLP half behind it.

    Whatever is no such pair is a block of its own: an lm_head, an attention with its MLP beside it.
    An MLP multiplies at least twice, so a single product is none.
    """
    joined: list[tuple[Piece, ...]] = []
    for piece in pieces:
        last = joined[-1] if joined else ()
        if len(last) == 1 and last[0].attention and not piece.attention and piece.products > 1:
            joined[-1] = (*last, piece)
        else:
            joined.append((piece,))
    return joined


def _makers(node: ir.Node, flow: Flow) -> list[ir.Node]:
    """The nodes whose results a node reads, constants left out."""
    producers = (value.producer() for value in flow.reads[node] if value not in flow.constant)
    return [producer for producer in producers if producer is not None]


def _schedule(nodes: Sequence[ir.Node], flow: Flow) -> list[ir.Node]:
    """Order the nodes so that each runs only when it is needed, whatever order they are in.

    What nobody reads (the logits, a cache's new keys) is needed as soon as its depth is reached:
    else keys that are only laid out anew at the end of the graph would stay alive until there.
    """
    depth: dict[ir.Node, int] = {}
    for node in nodes:
        depth[node] = 1 + max((depth[maker] for maker in _makers(node, flow)), default=0)
    ends = [node for node in nodes if not any(value in flow.readers for value in node.outputs)]
    done: dict[ir.Node, None] = {}
    for end in sorted(ends, key=depth.__getitem__):
        stack = [end]
        while stack:
            node = stack[-1]
            missing = [maker for maker in _makers(node, flow) if maker not in done]
            if missing:
                stack.append(missing[0])
            else:
                done[stack.pop()] = None
    return list(done)


def _number(steps: Sequence[ir.Node], flow: Flow) -> dict[ir.Node, int]:
    """The piece of each node that makes hidden values."""
    alive = _count_alive(steps, flow)
    runs: list[list[ir.Node]] = []
    for index, node in enumerate(steps):
        if index == 0 or alive[index - 1] <= 1:
            runs.append([])
        runs[-1].append(node)
    merged: list[list[ir.Node]] = []
    for run in runs:
        if merged and (flow.products.isdisjoint(run) or flow.products.isdisjoint(merged[-1])):
            merged[-1] += run
        else:
            merged.append(run)
    return {node: index for index, run in enumerate(merged) for node in run}


def _count_alive(steps: Sequence[ir.Node], flow: Flow) -> list[int]:
    """How many hidden values made so far a later step reads, after each step."""
    place = {node: index for index, node in enumerate(steps)}
    changes = [0] * (len(steps) + 1)
    for value in flow.hidden:
        producer = value.producer()
        uses = [place[reader] for reader in flow.readers.get(value, ()) if reader in place]
        if uses:
            changes[min(uses) if producer is None else place[producer]] += 1
            changes[max(uses)] -= 1
    return list(accumulate(changes))


def _place_side_nodes(nodes: Sequence[ir.Node], flow: Flow, pieces: dict[ir.Node, int]) -> None:
    """Add the nodes of side values: to the first piece that needs them.

    The shape of a hidden value is taken while that is at hand, so that it need not be kept for it.
    """
    earliest: dict[ir.Node, int] = {}
    for node in nodes:
        before = max((earliest[maker] for maker in _makers(node, flow)), default=0)
        earliest[node] = pieces.get(node, before)
    for node in reversed(nodes):
        if node not in pieces:
            users = [reader for value in node.outputs for reader in flow.readers.get(value, ())]
            latest = min((pieces[user] for user in users), default=earliest[node])
            at_hand = [_last_use(value, flow, pieces) for value in flow.reads[node] if value in flow.hidden]
            pieces[node] = min([latest, *at_hand])


def _last_use(value: ir.Value, flow: Flow, pieces: dict[ir.Node, int]) -> int:
    """The last piece that computes with a hidden value; that which makes it if there is none."""
    producer = value.producer()
    users = [reader for reader in flow.readers[value] if not flow.hidden.isdisjoint(reader.outputs)]
    return max((pieces[node] for node in (*users, producer) if node is not None), default=0)


def _pieces(graph: ir.Graph, flow: Flow, pieces: dict[ir.Node, int], count: int) -> Iterator[Piece]:
    order = {node: index for index, node in enumerate(graph)}
    members: list[list[ir.Node]] = [[] for _ in range(count)]
    for node, index in pieces.items():
        members[index].append(node)
    wanted = [value for value in dict.fromkeys(graph.outputs) if value.producer() is not None]
    for index, nodes in enumerate(members):
        constants = [value for value in wanted if value in flow.constant] if index == 0 else []
        read = [value for node in nodes for value in flow.reads[node]]
        everything = sorted({*nodes, *_constant_nodes([*read, *constants], flow)}, key=order.__getitem__)
        made = {value for node in nodes for value in node.outputs}
        yield Piece(
            nodes=tuple(everything),
            inputs=_inputs(everything, made, flow),
            outputs=tuple(
                value
                for node in everything
                for value in node.outputs
                if value in constants or (value in made and _is_wanted(value, index, flow, pieces))
            ),
            attention=any(multiplies_hidden(node, flow) for node in nodes),
            products=sum(node in flow.products for node in nodes),
        )


def _constant_nodes(values: Iterable[ir.Value], flow: Flow) -> set[ir.Node]:
    """The nodes that compute those of the values that depend on constants alone."""
    found: set[ir.Node] = set()
    left = [value for value in values if value in flow.constant]
    while left:
        node = left.pop().producer()
        if node is not None and node not in found:
            found.add(node)
            left += flow.reads[node]
    return found


def _inputs(nodes: Iterable[ir.Node], made: set[ir.Value], flow: Flow) -> tuple[ir.Value, ...]:
    read = dict.fromkeys(value for node in nodes for value in flow.reads[node])
    return tuple(value for value in read if value not in flow.constant and value not in made)


def _is_wanted(value: ir.Value, index: int, flow: Flow, pieces: dict[ir.Node, int]) -> bool:
    """Whether a value is a graph output, or a later piece reads it."""
    return value.is_graph_output() or any(pieces[reader] > index for reader in flow.readers.get(value, ()))
