"""LSTM, GRU and RNN: forward, reverse and bidirectional."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from qtool.runtime.ops.index import reversed_places
from qtool.runtime.tensors import Op, T, Unhandled

Cell = Callable[[T, tuple[T, ...]], tuple[T, ...]]  # projected input, state -> state; h comes first
StateHook = Callable[["Layer", int, int, T], T]  # layer, direction, step, hidden state -> state

_ACTIVATIONS: dict[str, Callable[[T], T]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "softsign": F.softsign,
    "softplus": F.softplus,
}


class Layer:
    """State shared by the three recurrent operators: directions, lengths, layout, clipping."""

    def __init__(
        self,
        x: T,
        lengths: T | None,
        direction: str,
        layout: int,
        activations: Sequence[str],
        parameters: Sequence[float] | None,
        clip: float | None,
    ) -> None:
        if parameters:
            raise Unhandled("activation parameters")
        unknown = {a.lower() for a in activations} - _ACTIVATIONS.keys()
        if unknown:
            raise Unhandled(f"activations {sorted(unknown)}")
        self.x = x.transpose(0, 1) if layout else x
        self.layout, self.clip = layout, clip
        self.state_hook: StateHook | None = None
        self.steps, self.batch = self.x.shape[:2]
        self.lengths = None if lengths is None else lengths.to(x.device).long()
        self.reversed = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[
            direction
        ]
        self._activations = [_ACTIVATIONS[a.lower()] for a in activations]

    def activations(self, direction: int) -> list[Callable[[T], T]]:
        """Return the activation functions of one direction, each after the clip."""
        count = len(self._activations) // len(self.reversed)
        chosen = self._activations[direction * count : (direction + 1) * count]
        limit = self.clip
        if limit is None:
            return chosen
        # The third function of an LSTM reads its cell, which ONNX Runtime does not clip.
        return [_clipped(f, limit) for f in chosen[:2]] + chosen[2:]

    def state(self, initial: T | None, direction: int, size: int) -> T:
        """Return the initial state of one direction, zero by default."""
        if initial is None:
            return self.x.new_zeros(self.batch, size)
        return (initial.transpose(0, 1) if self.layout else initial)[direction]

    def in_order(self, x: T, direction: int) -> T:
        """Order a sequence [steps, batch, ...] as one direction reads it; its own inverse."""
        if not self.reversed[direction]:
            return x
        if self.lengths is None:
            return x.flip(0)
        batch = torch.arange(self.batch, device=x.device)
        return x[reversed_places(self.steps, self.lengths), batch]

    def run(self, direction: int, w: T, bias: T | None, cell: Cell, state: tuple[T, ...]) -> T:
        """Run all steps of one direction; set ``self.last`` to its final state.

        Returns:
            The hidden states [steps, batch, hidden].
        """
        projected = F.linear(self.in_order(self.x, direction), w, bias)
        outputs = []
        for t in range(self.steps):
            hidden = (
                state[0]
                if self.state_hook is None
                else self.state_hook(self, direction, t, state[0])
            )
            new = cell(projected[t], (hidden, *state[1:]))
            if self.lengths is not None:
                on = (t < self.lengths).unsqueeze(1)
                outputs.append(torch.where(on, new[0], torch.zeros_like(new[0])))
                state = tuple(torch.where(on, n, s) for n, s in zip(new, state, strict=True))
            else:
                outputs.append(new[0])
                state = new
        self.last = state
        y = torch.stack(outputs)
        return self.in_order(y, direction)

    def results(self, sequences: list[T], *states: list[T]) -> tuple[T, ...]:
        """Return Y and the final states in the requested layout."""
        y, finals = torch.stack(sequences, 1), [torch.stack(s) for s in states]
        if self.layout:
            return (y.permute(2, 0, 1, 3), *(s.transpose(0, 1) for s in finals))
        return (y, *finals)


def _clipped(function: Callable[[T], T], limit: float) -> Callable[[T], T]:
    return lambda x: function(x.clamp(-limit, limit))


def _halves(b: T | None, direction: int) -> tuple[T | None, T | None]:
    """Split the bias of one direction into those of the input and of the recurrence."""
    if b is None:
        return None, None
    w_bias, r_bias = b[direction].chunk(2)
    return w_bias, r_bias


@dataclass(frozen=True)
class _Rnn:
    function: Op
    r: T
    bias: T | None

    def cell(self, z: T, state: tuple[T, ...]) -> tuple[T, ...]:
        return (self.function(z + F.linear(state[0], self.r, self.bias)),)


@dataclass(frozen=True)
class _Gru:
    functions: Sequence[Op]
    r: T
    bias: T | None
    linear_first: bool

    def cell(self, z: T, state: tuple[T, ...]) -> tuple[T, ...]:
        (h,), (f, g) = state, self.functions
        size = h.shape[-1]
        r_gates, r_hidden = self.r.split([2 * size, size])
        b_gates, b_hidden = (None, None) if self.bias is None else self.bias.split([2 * size, size])
        z_gates, z_hidden = z.split([2 * size, size], -1)
        update, reset = f(z_gates + F.linear(h, r_gates, b_gates)).chunk(2, -1)
        if self.linear_first:
            new = g(z_hidden + reset * F.linear(h, r_hidden, b_hidden))
        else:
            new = g(z_hidden + F.linear(reset * h, r_hidden, b_hidden))
        return ((1 - update) * new + update * h,)


@dataclass(frozen=True)
class _Lstm:
    functions: Sequence[Op]
    r: T
    bias: T | None
    peep: tuple[T, ...] | None
    input_forget: bool

    def cell(self, z: T, state: tuple[T, ...]) -> tuple[T, ...]:
        (hidden, c), (gate, squash, out) = state, self.functions
        i, o, f, new = (z + F.linear(hidden, self.r, self.bias)).chunk(4, -1)
        if self.peep is not None:
            i, f = i + self.peep[0] * c, f + self.peep[2] * c
        i = gate(i)
        f = 1 - i if self.input_forget else gate(f)
        c = f * c + i * squash(new)
        if self.peep is not None:
            o = o + self.peep[1] * c
        return gate(o) * out(c), c


def rnn(
    x: T,
    w: T,
    r: T,
    b: T | None = None,
    sequence_lens: T | None = None,
    initial_h: T | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] = ("Tanh", "Tanh"),
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
) -> tuple[T, ...]:
    """Run a plain recurrent network: H = f(X W' + H R' + b)."""
    parameters = [*(activation_alpha or ()), *(activation_beta or ())]
    names = activations[: 2 if direction == "bidirectional" else 1]
    layer = Layer(x, sequence_lens, direction, layout, names, parameters, clip)
    sequences, finals = [], []
    for d in range(len(layer.reversed)):
        w_bias, r_bias = _halves(b, d)
        gates = _Rnn(layer.activations(d)[0], r[d], r_bias)
        start = (layer.state(initial_h, d, r.shape[-1]),)
        sequences.append(layer.run(d, w[d], w_bias, gates.cell, start))
        finals.append(layer.last[0])
    return layer.results(sequences, finals)


def gru(
    x: T,
    w: T,
    r: T,
    b: T | None = None,
    sequence_lens: T | None = None,
    initial_h: T | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] = ("Sigmoid", "Tanh", "Sigmoid", "Tanh"),
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
) -> tuple[T, ...]:
    """Run a gated recurrent unit; gates are in the order update, reset, hidden."""
    parameters = [*(activation_alpha or ()), *(activation_beta or ())]
    names = activations[: 4 if direction == "bidirectional" else 2]
    layer = Layer(x, sequence_lens, direction, layout, names, parameters, clip)
    hidden, sequences, finals = r.shape[-1], [], []
    for d in range(len(layer.reversed)):
        w_bias, r_bias = _halves(b, d)
        gates = _Gru(layer.activations(d), r[d], r_bias, bool(linear_before_reset))
        start = (layer.state(initial_h, d, hidden),)
        sequences.append(layer.run(d, w[d], w_bias, gates.cell, start))
        finals.append(layer.last[0])
    return layer.results(sequences, finals)


def lstm(
    x: T,
    w: T,
    r: T,
    b: T | None = None,
    sequence_lens: T | None = None,
    initial_h: T | None = None,
    initial_c: T | None = None,
    p: T | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] = ("Sigmoid", "Tanh", "Tanh", "Sigmoid", "Tanh", "Tanh"),
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    layout: int = 0,
    state_hook: StateHook | None = None,
) -> tuple[T, ...]:
    """Run an LSTM with peepholes; gates are in the order input, output, forget, cell.

    ``state_hook`` is no attribute of the operator: it maps (layer, direction, step, hidden state)
    to the hidden state that the recurrence reads.
    """
    parameters = [*(activation_alpha or ()), *(activation_beta or ())]
    names = activations[: 6 if direction == "bidirectional" else 3]
    layer = Layer(x, sequence_lens, direction, layout, names, parameters, clip)
    layer.state_hook = state_hook
    hidden, sequences = r.shape[-1], []
    finals: tuple[list[T], list[T]] = ([], [])
    for d in range(len(layer.reversed)):
        w_bias, r_bias = _halves(b, d)
        peep = None if p is None else p[d].chunk(3)
        gates = _Lstm(layer.activations(d), r[d], r_bias, peep, bool(input_forget))
        start = (layer.state(initial_h, d, hidden), layer.state(initial_c, d, hidden))
        sequences.append(layer.run(d, w[d], w_bias, gates.cell, start))
        for states, last in zip(finals, layer.last, strict=True):
            states.append(last)
    return layer.results(sequences, *finals)


TABLE: dict[str, Op] = {"RNN": rnn, "GRU": gru, "LSTM": lstm}
