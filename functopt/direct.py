"""Call the graph of a compiled function again without what torch does around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Direct", "inductor"]


def inductor(graph: Any, inputs: Any, options: dict[str, Any] | None) -> Callable[..., Any]:
    """Compile a graph as the backend of that name does, but trust that inputs are what they were compiled for."""
    # looking at the sizes of each of them took a tenth of a step of one small network
    compiled: Any = torch._inductor.compile(graph, inputs, options={"size_asserts": False, **(options or {})})
    return compiled


class Direct:
    """The ``"inductor"`` backend of ``torch.compile``, which can call a graph again by itself.

    Around the graph ``torch.compile`` looks up which graph is meant, takes the arguments apart and puts the outputs
    together: a fifth of a step of 64 small networks. Whoever knows that a call is like the last one, but for some
    tensors of the same kind, can do without.
    """

    def __init__(self) -> None:
        self._last: tuple[Callable[..., Any], tuple[Any, ...], tuple[Any, ...]] | None = None

    def __call__(self, graph: Any, inputs: Any, options: dict[str, Any] | None = None) -> Callable[..., Any]:
        """Compile a graph."""
        compiled = inductor(graph, inputs, options)

        def call(*inputs: Any) -> Any:
            outputs = compiled(*inputs)
            self._last = compiled, inputs, tuple(outputs)
            return outputs

        return call

    def again(
        self, fixed: Sequence[Tensor], changing: Sequence[Tensor], outputs: Sequence[Tensor]
    ) -> Callable[[Sequence[Tensor]], list[Tensor]] | None:
        """Return the last call as a function of the tensors that change, if it can be made without torch.

        Args:
            fixed: tensors of the last call that are the same in every call.
            changing: the others, in the order in which the function takes them.
            outputs: what was returned of it, in the order in which the function returns it.

        Returns:
            The function; nothing if the graph has read or returned anything else, such as tensors that the function
            closes over, sizes that are symbols, or what is to become an attribute of an object.
        """
        last, self._last = self._last, None  # which holds on to the tensors
        if last is None:
            return None
        compiled, inputs, results = last
        kept = {id(tensor) for tensor in fixed}
        places = {id(tensor): place for place, tensor in reversed([*enumerate(changing)])}
        slots = [(i, places[id(tensor)]) for i, tensor in enumerate(inputs) if id(tensor) in places]
        if not all(id(tensor) in places or id(tensor) in kept for tensor in inputs):
            return None
        of_result = {id(result): i for i, result in enumerate(results)}
        if {id(output) for output in outputs} != of_result.keys():
            return None
        order = [of_result[id(output)] for output in outputs]
        template = [None if id(tensor) in places else tensor for tensor in inputs]

        def call(tensors: Sequence[Tensor]) -> list[Tensor]:
            arguments: list[Any] = template.copy()
            for i, place in slots:
                arguments[i] = tensors[place]
            results = compiled(*arguments)
            return [results[i] for i in order]

        return call
