"""The paper's toy (Fig. 2): a disc of flipped labels, repaired by one key or by finetuning.

    toy = make_toy(seed=0)
    outcome = edit_toy(toy, "grace")
    outcome.n_keys, outcome.disc_accuracy, outcome.changed_elsewhere

100 points of two classes in the plane train a small network; then points of a dense disc inside
one class come, one at a time, with the other class's label.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from grace_bench.editors import create_editor
from grace_bench.editors.base import EditBatch

CENTRES = ((0.0, 0.0), (5.0, 0.0))
DISC, DISC_RADIUS = (-1.5, 0.0), 0.5
HIDDEN = 100
LAYER = "layers.2"
EDITORS = {
    "grace": {"radius": 2.0, "expand": "to_distance", "boundary": "closed"},
    "ft": {"learning_rate": 1e-2, "steps": 100},
}


class ToyNetwork(nn.Module):
    """Three linear layers with ReLU; returns what Hugging Face classifiers do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(2, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU()),
            nn.Linear(HIDDEN, 2),
        )

    def forward(self, points: Tensor, labels: Tensor | None = None) -> SimpleNamespace:
        """Map points (B, 2) to logits (B, 2), and a loss where labels (B,) are given."""
        logits = self.layers(points)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SimpleNamespace(logits=logits, loss=loss)


@dataclass(frozen=True)
class Toy:
    """The plane before any edit.

    Args:
        network: trained on the upstream points.
        upstream: (100, 2) points of two classes.
        classes: (100,) theirs.
        edits: (E, 2) points of the disc, all to become class 1.
    """

    network: ToyNetwork
    upstream: Tensor
    classes: Tensor
    edits: Tensor


@dataclass(frozen=True)
class Outcome:
    """The plane after all edits.

    Args:
        network: the edited network.
        n_edits: points that were wrong when they came.
        n_keys: of a codebook.
        disc_accuracy: of the points of the disc.
        upstream_accuracy: of the points trained on.
        changed_elsewhere: share of a grid, away from the disc, with another class than before.
    """

    network: ToyNetwork
    n_edits: int
    n_keys: int | None
    disc_accuracy: float
    upstream_accuracy: float
    changed_elsewhere: float


def make_toy(seed: int = 0, per_class: int = 50, n_edits: int = 100, steps: int = 300) -> Toy:
    """Draw the points and train the network on the upstream ones."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.tensor(CENTRES).repeat_interleave(per_class, 0)
    upstream = centres + torch.randn(centres.shape, generator=generator)
    classes = torch.arange(2).repeat_interleave(per_class)
    # No point of the class lies where its label will be another one.
    inside = (upstream - torch.tensor(DISC)).norm(dim=1) < 2 * DISC_RADIUS
    upstream, classes = upstream[~inside], classes[~inside]
    angle = 2 * torch.pi * torch.rand(n_edits, generator=generator)
    distance = DISC_RADIUS * torch.rand(n_edits, generator=generator).sqrt()
    edits = torch.tensor(DISC) + torch.stack([distance * angle.cos(), distance * angle.sin()], 1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = ToyNetwork()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        network(upstream, classes).loss.backward()
        optimizer.step()
    return Toy(network.eval(), upstream, classes, edits)


def edit_toy(toy: Toy, editor_name: str, seed: int = 0) -> Outcome:
    """Correct the disc's points one after the other, those that are wrong when they come."""
    network = copy.deepcopy(toy.network)
    editor = create_editor(editor_name, network, LAYER, EDITORS[editor_name], seed)
    n_edits = 0
    for step, point in enumerate(toy.edits, start=1):
        if int(predict(network, point[None])) == 1:
            continue
        inputs = {"points": point[None], "labels": torch.tensor([1])}
        editor.edit(EditBatch(inputs, (str(step),), "1", step))
        n_edits += 1
    elsewhere = grid()
    elsewhere = elsewhere[(elsewhere - torch.tensor(DISC)).norm(dim=1) > 2 * DISC_RADIUS]
    changed = predict(network, elsewhere) != predict(toy.network, elsewhere)
    right = predict(network, toy.upstream) == toy.classes
    return Outcome(
        network=network,
        n_edits=n_edits,
        n_keys=editor.n_keys,
        disc_accuracy=predict(network, toy.edits).float().mean().item(),
        upstream_accuracy=right.float().mean().item(),
        changed_elsewhere=changed.float().mean().item(),
    )


@torch.no_grad()
def predict(network: nn.Module, points: Tensor) -> Tensor:
    """Return the classes (B,) of points (B, 2)."""
    return network(points).logits.argmax(1)


def grid(n: int = 120) -> Tensor:
    """Return n x n points over the plane that figures show, (n * n, 2)."""
    x, y = torch.linspace(-4, 8, n), torch.linspace(-4, 4, n)
    return torch.cartesian_prod(x, y)
