"""A dial on every gate of a trained NiNformer, a digit to paint on, and what a block costs beside attention."""

from __future__ import annotations

import base64
import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gated.lab.explorables import drawing as draw
from gated.lab.explorables.drawing import fixed, formula, rule, tag, text
from gated.lab.explorables.explorable import Explorable
from gated.ninformer import Network, NiNBlock, Sizes, block_macs, crossover
from gated.ninformer.model import Kind

SIDE, PATCH, PATCHES = 8, 2, 4
"""Pixels a side, pixels a side of a patch, patches a side."""
PLACES = torch.arange(SIDE**2).view(PATCHES, PATCH, PATCHES, PATCH).transpose(1, 2).reshape(PATCHES**2, PATCH**2)
"""The pixels of each patch."""
CORNER = (1, *[0] * (SIDE**2 - 1))  # paint on the pixel at the upper left alone
ORDER = [(7 * i + 3) % PATCHES**2 for i in range(PATCHES**2)]  # of patches, for the reading about a shuffle
CHANGED = 1e-9  # relative change of a token from which on it counts as changed: far above rounding
COUNTS = sorted({round(2 ** (2 + k / 8)) for k in range(81)})
"""Tokens at which the costs are drawn, 4 to 4,096."""
KINDS: dict[Kind, str] = {"ninformer": "NiNformer", "mixer": "Mixer", "gmlp": "gMLP", "vit": "ViT"}

_BLUE, _ORANGE, _GREEN, _GREY = (
    f"var(--gx-{name})" for name in ("blue, #0072b2", "orange, #c46a00", "green, #00805b", "grey, #77808a")
)
_LOOK = {"ninformer": _ORANGE, "mixer": _BLUE, "gmlp": _GREEN, "vit": _GREY}
_LEFT, _RIGHT, _TOP, _BELOW, _CELL = 6, 210, 24, 254, 46
_PROBABILITY = draw.Axis(0, 1, 226, 356)
_DIAL, _ACCURACY = draw.Axis(0, 1, 44, 378), draw.Axis(0, 1, 590, 492)
_COUNT, _SHARE = draw.Axis(2, 12, 44, 380), draw.Axis(-3, 3, 196, 28)  # log2 n; log2 of MACs / MACs of ViT

WORDS = {
    "bag": (
        "λ = 0: a bag of patches",
        formula("y_i = x_i + u_i"),
        "Every gate is 1, and no token sees another. Paint changes the token under it and no other. Nor does the "
        "order of the patches matter, for the end is a mean over tokens.",
    ),
    "between": (
        "Between: gates pulled towards 1",
        formula("y_i = x_i + u_i ⊙ ( ( 1 − λ ) + λ g_i )"),
        "The value u of a token knows only that token, the gate g knows all. So whatever one token learns of another "
        "comes through the product, and λ scales it. The network was never trained with such gates.",
    ),
    "trained": (
        "λ = 1: the network as it was trained",
        formula("y_i = x_i + u_i ⊙ g_i"),
        "A gate has a sign and no bound. Blue lets a channel's value through, orange turns it round. Each gate looks "
        "at the whole image: paint a pixel in a corner, and the tokens far from it change too.",
    ),
}


def _encode(values: Tensor) -> str:
    return base64.b64encode(values.numpy().astype("<f4").tobytes()).decode()


class DialExplorable(Explorable):
    """Turn the gates of a trained NiNformer from 1 to what they learned, paint on the digit, and see who notices.

    The page holds the weights in float32 and runs the network in double precision. A second picture compares costs.

    Args:
        net: `gated.ninformer.build("ninformer", sizes, depth)` for images [1, 8, 8] in patches of 2, trained.
        images: test images [s, 1, 8, 8] as the network takes them, at most 12. The least and the largest of their
            values are what paint can do.
        labels: their classes [s].
        accuracy: test accuracies in [0, 1] at lambda = 0, 0.1, ..., 1.
        gate_mix: lambda, 0 to 1.
        digit, block, channel: the image, and which gates of its tokens are shown; counted from 0.
        paint: 64 numbers, row by row: 1 for a pixel that is inked, -1 for one that is erased, 0 for one left alone.
        tokens, hidden, dim: n, T = C and d of the second picture; F and gMLP's width are 2 d there.

    Raises:
        ValueError: a value out of its range, or another kind of network.
    """

    name = "dial"

    def __init__(
        self,
        net: Network,
        images: Float[Tensor, "s 1 8 8"],
        labels: Int[Tensor, " s"],
        accuracy: Sequence[float | int],
        *,
        gate_mix: float | int = 1.0,
        digit: int = 0,
        block: int = 0,
        channel: int = 0,
        paint: Sequence[int] = CORNER,
        tokens: int = 64,
        hidden: int = 512,
        dim: int = 256,
    ) -> None:
        blocks = list(net.blocks)
        if not all(isinstance(one, NiNBlock) and one.variant == "released" for one in blocks):
            raise ValueError("net must be of kind 'ninformer' and variant 'released'")
        if (net.sizes.image, net.sizes.patch) != ((1, SIDE, SIDE), PATCH):
            raise ValueError(f"net must take images (1, 8, 8) in patches of 2; got {net.sizes}")
        if not 1 <= len(images) <= 12 or len(labels) != len(images):
            raise ValueError(f"images must be 1 to 12, with as many labels; got {len(images)} and {len(labels)}")
        if len(accuracy) != 11 or not all(0 <= a <= 1 for a in accuracy):
            raise ValueError(f"accuracy must be 11 numbers in [0, 1]; got {list(accuracy)}")
        if len(paint) != SIDE**2 or not set(paint) <= {-1, 0, 1}:
            raise ValueError(f"paint must be {SIDE**2} numbers, each -1, 0 or 1; got {list(paint)}")
        state: dict[str, Any] = {"gate_mix": float(gate_mix), "digit": digit, "block": block, "channel": channel}
        state |= {"tokens": tokens, "hidden": hidden, "dim": dim}
        highest = (1, len(images) - 1, len(blocks) - 1, net.sizes.dim - 1, 4096, 2048, 1024)
        for (name, number), low, high in zip(state.items(), (0, 0, 0, 0, 4, 16, 32), highest, strict=True):
            if not low <= number <= high:
                raise ValueError(f"{name} must be in {low} to {high:,}; got {number}")
        # The page's weights are float32, so the library's are rounded to it too.
        self.net = copy.deepcopy(net).cpu().float().double().eval().requires_grad_(False)
        self.images, s = images.detach().cpu().float().double(), net.sizes
        shape = {"d": s.dim, "T": s.token_hidden, "C": s.channel_hidden, "F": s.ffn_hidden, "classes": s.outputs}
        constants = {
            "shape": shape | {"blocks": len(blocks)},
            "weights": _encode(torch.cat([weight.flatten() for weight in self.net.state_dict().values()])),
            "images": _encode(self.images),
            "labels": labels.tolist(),
            "accuracy": [float(a) for a in accuracy],
            "ink": [value.item() for value in self.images.aminmax()],
        }
        constants |= {"counts": COUNTS, "order": ORDER, "words": WORDS}
        super().__init__(state | {"paint": list(paint)}, constants)

    def painted(self) -> Float[Tensor, "1 1 8 8"]:
        """The chosen image with the paint on it."""
        image, (low, high) = self.images[self.state["digit"]][None], self.constants["ink"]
        paint = torch.tensor(self.state["paint"]).view(image.shape)
        return torch.where(paint > 0, high, torch.where(paint < 0, low, image))

    def run(self, image: Float[Tensor, "1 1 8 8"]) -> tuple[Tensor, Tensor, Tensor]:
        """Probabilities [classes], gates after the dial [layers, n, d] and the last block's tokens [n, d]."""
        mix, last = self.state["gate_mix"], []
        hook = self.net.blocks[-1].register_forward_hook(lambda module, given, result: last.append(result[0][0]))
        logits, gates = self.net(image, gate_mix=mix, return_gates=True)
        hook.remove()
        return logits[0].softmax(-1), 1 - mix + mix * gates[:, 0], last[0]

    def values(self) -> dict[str, Any]:
        s, image = self.state, self.painted()
        probability, gates, tokens = self.run(image)
        was, _, before = self.run(self.images[s["digit"]][None])
        other = image.clone()
        other.view(-1)[PLACES] = image.view(-1)[PLACES[ORDER]]
        shuffled = self.run(other)[0]
        reach, bare = (
            (tokens - before).norm(dim=-1) / before.norm(dim=-1),
            (torch.tensor(s["paint"])[PLACES] == 0).all(-1),
        )
        place = 10 * s["gate_mix"]
        a, b = self.constants["accuracy"][min(9, int(place)) :][:2]
        wide = {"token_hidden": s["hidden"], "channel_hidden": s["hidden"], "ffn_hidden": 2 * s["dim"]}
        sizes = Sizes(s["tokens"], s["dim"], 10, **wide)
        costs = {kind: [block_macs(kind, sizes, n) for n in [*COUNTS, s["tokens"]]] for kind in KINDS}
        return {
            "probability": probability.tolist(),
            "was": was.tolist(),
            "gate": gates[s["block"], :, s["channel"]].tolist(),
            "negative": (gates[s["block"]] < 0).double().mean().item(),
            "reach": reach.tolist(),
            "changed": int((reach[bare] > CHANGED).sum()),
            "bare": bare.int().tolist(),
            "shuffle": (shuffled - probability).abs().max().item(),
            "accuracy": a + (place - min(9, int(place))) * (b - a),
            "macs": {kind: costs[kind].pop() for kind in KINDS},
            "shares": {kind: (np.array(costs[kind]) / costs["vit"]).tolist() for kind in KINDS if kind != "vit"},
            "crossover": crossover(sizes),
            "regime": {0: "bag", 1: "trained"}.get(s["gate_mix"], "between"),
        }

    def __repr__(self) -> str:
        s, v = self.state, self.values()
        best = int(np.argmax(v["probability"]))
        return (
            f"DialExplorable: a {self.constants['labels'][s['digit']]}, lambda {s['gate_mix']:g}, "
            f"{sum(map(abs, s['paint']))} pixels painted: class {best} with probability {v['probability'][best]:.3f}\n"
            f"  {v['changed']} of {sum(v['bare'])} tokens without paint changed; test accuracy {v['accuracy']:.3f}\n"
            f"  a block for {s['tokens']} tokens: {v['macs']['ninformer'] / v['macs']['vit']:.3f} times ViT's MACs"
        )

    def markup(self) -> str:
        v = self.values()
        net = {
            "changed": ("Tokens without paint that changed", f"{v['changed']} of {sum(v['bare'])}"),
            "negative": ("Negative gates of this block", f"{fixed(100 * v['negative'], 0)} %"),
            "shuffle": ("A fixed shuffle of the patches moves a probability by up to", fixed(v["shuffle"], 2)),
            "accuracy": ("Test accuracy at this λ", f"{fixed(100 * v['accuracy'], 1)} %"),
        }
        hint = "Paint with a finger or the mouse, or with arrow keys and space. Orange frames mark paint."
        below = tag("div", hint, style="font-size: 12.5px; margin-top: .4rem")
        left, controls = tag("div", self._network(v), below, class_="gx-figure"), tag("div", class_="gx-controls")
        upper = draw.columns(left, draw.callout(*WORDS[v["regime"]]), controls, draw.readings(net))
        macs, even = v["macs"], v["crossover"]
        star = f"{even:,.0f}" if even >= 1 else "no n: always cheaper"
        costs = {f"{kind}": (f"{name} (of ViT)", _cost(macs[kind], macs["vit"])) for kind, name in KINDS.items()}
        costs |= {"crossover": ("Equal at n* = T + C − 1.5 d", star)}
        names = (tag("span", name, style=f"--gx-swatch: {_LOOK[kind]}") for kind, name in KINDS.items())
        key = tag("div", *names, class_="gx-key", style="margin-bottom: .4rem")
        left, title = tag("div", key, self._costs(v), class_="gx-figure"), tag("strong", "MACs of one block (F = 2 d)")
        lower = draw.columns(left, title, tag("div", class_="gx-controls", data_costs=""), draw.readings(costs))
        return tag("div", upper, tag("div", lower, style="margin-top: 1.6rem"))

    def _network(self, v: dict[str, Any]) -> str:
        """Digit and gates, changes and probabilities, accuracy along the dial."""
        s, (low, high) = self.state, self.constants["ink"]
        marks = [text("The digit: paint on it", _LEFT, 14, strong=True)]
        touch = "cursor: crosshair; touch-action: none"
        for i, value in enumerate(self.painted().flatten().tolist()):
            box = _box(_LEFT, _TOP, _CELL // 2, i, SIDE)
            ink = {"fill": "currentColor", "fill_opacity": 0.9 * (value - low) / (high - low)}
            marks.append(tag("rect", data_pixel=i, style=touch, **ink, **box, **_frame(s["paint"][i])))
        title = f"Gates: block {s['block'] + 1}, channel {s['channel'] + 1}"
        gates = [text(title, _RIGHT, 14, strong=True, data_title="")]
        changes = [text("Change of each token, in %", _LEFT, _BELOW - 10, strong=True)]
        for i, (gate, reach) in enumerate(zip(v["gate"], v["reach"], strict=True)):
            box, fill = _box(_RIGHT, _TOP, _CELL, i, PATCHES), _BLUE if gate >= 0 else _ORANGE
            gates.append(tag("rect", fill=fill, fill_opacity=_shade(abs(gate)), data_gate=i, **box))
            words = fixed(gate, 2).replace("-", "−")
            gates.append(text(words, box["x"] + 22, box["y"] + 26, text_anchor="middle", data_sign=i))
            box, shade = _box(_LEFT, _BELOW, _CELL, i, PATCHES), _shade(5 * reach)
            changes.append(
                tag("rect", fill=_GREEN, fill_opacity=shade, data_reach=i, **box, **_frame(not v["bare"][i]))
            )
            changes.append(text(_percent(reach), box["x"] + 22, box["y"] + 26, text_anchor="middle", data_much=i))
        classes = [text("Probability of each class", _RIGHT, _BELOW - 10, strong=True)]
        height = PATCHES * _CELL / len(v["probability"])
        for k, (p, was) in enumerate(zip(v["probability"], v["was"], strict=True)):
            y = _BELOW + height * k
            x, fill = _PROBABILITY(was), _BLUE if k == self.constants["labels"][s["digit"]] else _GREY
            size = {"width": _PROBABILITY(p) - _PROBABILITY.start, "height": height - 5}
            classes += [
                text(f"{k}", _RIGHT, y + height / 2 + 4),
                tag("rect", x=float(_PROBABILITY.start), y=y + 2.5, fill=fill, data_bar=k, **size),
                rule(x, y, x, y + height, faint=False, stroke_width=2, data_was=k),
                text(fixed(p, 2), _PROBABILITY.stop + 8, y + height / 2 + 4, data_number=k),
            ]
        classes.append(text("blue: true class; line: unpainted", _RIGHT, _BELOW + 198, small=True))
        dial = [text("Test accuracy along the dial", _LEFT, 478, strong=True)]
        for value in (0, 0.5, 1):
            x, y = _DIAL(value), _ACCURACY(value)
            dial.append(rule(_DIAL.start, y, _DIAL.stop, y, faint=value > 0))
            dial.append(text(f"{fixed(100 * value, 0)} %", _DIAL.start - 6, y + 4, small=True, text_anchor="end"))
            dial.append(text(f"λ = {value:g}", x, _ACCURACY.start + 16, small=True, text_anchor="middle"))
        points = [(_DIAL(k / 10), _ACCURACY(a)) for k, a in enumerate(self.constants["accuracy"])]
        dial.append(tag("path", d=_path(points), fill="none", stroke=_BLUE, stroke_width=2.5))
        x, y = _DIAL(s["gate_mix"]), _ACCURACY(v["accuracy"])
        dial.append(tag("circle", cx=x, cy=y, r=6, fill=_ORANGE, stroke="currentColor", data_dot=""))
        return draw.svg(
            400,
            612,
            "A digit and gates of its patches, the change of each token, class probabilities, accuracy along the dial",
            tag("g", *marks, data_digit="", data_left=_LEFT, data_top=_TOP),
            tag("g", *gates),
            tag("g", *changes),
            tag("g", *classes, data_strip="probability", **_PROBABILITY.data()),
            tag("g", *dial, data_strip="dial", **_DIAL.data()),
            tag("g", data_strip="accuracy", **_ACCURACY.data()),
        )

    def _costs(self, v: dict[str, Any]) -> str:
        """MACs of a block as a share of ViT's."""
        marks = [text("MACs of a block, as a multiple of ViT's", _LEFT, 14, strong=True)]
        for power in range(-3, 4):
            y, label = _SHARE(power), f"{2**power}" if power >= 0 else f"1/{2**-power}"
            marks += [rule(_COUNT.start, y, _COUNT.stop, y)]
            marks += [text(label, _COUNT.start - 6, y + 4, small=True, text_anchor="end")]
        for power in range(2, 13, 2):
            label = f"n = {2**power}" if power == 2 else f"{2**power:,}"
            marks.append(text(label, _COUNT(power), _SHARE.start + 16, small=True, text_anchor="middle"))
        y = _SHARE(0)
        marks.append(rule(_COUNT.start, y, _COUNT.stop, y, stroke=_GREY, stroke_opacity=1, stroke_width=2.5))
        for kind, shares in v["shares"].items():
            at = zip(np.log2(COUNTS), np.log2(shares), strict=True)
            points = [(_COUNT(n), _SHARE(share)) for n, share in at if abs(share) <= _SHARE.high] or [(0.0, 0.0)]
            marks.append(
                tag("path", d=_path(points), fill="none", stroke=_LOOK[kind], stroke_width=2.5, data_share=kind)
            )
        x = _COUNT(np.log2(self.state["tokens"]))
        marks.append(rule(x, _SHARE.stop, x, _SHARE.start, faint=False, data_now=""))
        x, shown = _COUNT(np.log2(max(v["crossover"], 1))), "visible" if 4 <= v["crossover"] <= 4096 else "hidden"
        star = {"fill": "none", "stroke": "currentColor", "stroke_width": 2, "visibility": shown}
        marks.append(tag("circle", cx=x, cy=y, r=6, data_star="", **star))
        marks.append(text("n*", x + 6, y - 8, strong=True, visibility=shown, data_label=""))
        return draw.svg(
            400,
            218,
            "MACs of a block of NiNformer, Mixer and gMLP as a multiple of ViT's, against the number of tokens",
            tag("g", *marks, data_strip="count", **_COUNT.data()),
            tag("g", data_strip="share", **_SHARE.data()),
        )


def _box(left: int, top: int, cell: int, i: int, columns: int) -> dict[str, float]:
    """Place and size of the i-th cell of a square."""
    row, column = divmod(i, columns)
    return {"x": left + cell * column + 1.0, "y": top + cell * row + 1.0, "width": cell - 2, "height": cell - 2}


def _frame(painted: int | bool) -> dict[str, object]:
    """The edge of a pixel or patch."""
    stroke, width, opacity = (_ORANGE, 2, "1") if painted else ("currentColor", 1, "0.2")
    return {"stroke": stroke, "stroke_width": width, "stroke_opacity": opacity}


def _shade(size: float) -> float:
    return 0.6 * size / (1 + size)


def _percent(value: float) -> str:
    return "0" if value <= CHANGED else "< 0.1" if value < 0.0005 else f"{100 * value:.{0 if value >= 0.0995 else 1}f}"


def _cost(macs: int, vit: int) -> str:
    return f"{macs / 1e6:,.{2 if macs < 1e7 else 1}f} M ({macs / vit:.2f})"


def _path(points: list[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in points)
