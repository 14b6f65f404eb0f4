"""The hyperparameters of GRACE."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from grace_bench.editors.hyperparameters import AdapterHyperparameters


class GraceHyperparameters(AdapterHyperparameters):
    """GRACE (Hartvigsen et al. 2023), Algorithm 1."""

    RELEASED: ClassVar = {
        "label_match": "mean",
        "query_position": "released",
        "replace_query": False,
        "expand": "to_distance",
        "split": "half",
        "split_margin": 1e-5,
        "zero_distance": "ignore",
        "boundary": "closed",
        "distance": "matrix_product",
        "train_on_expand": True,
    }

    radius: float = Field(
        1.0, gt=0, description="eps_init, the deferral radius of a new key (paper 3; released 1.0)."
    )
    learning_rate: float = Field(1.0, gt=0, description="Of Adam on the value (released 1.0).")
    steps: int = Field(100, ge=0, description="Gradient steps per edit (paper and released 100).")
    label_match: Literal["exact", "mean"] = Field(
        "exact",
        description="Two labels match if their token ids are equal without masked ones, or if the "
        "means of their whole label rows are equal, mask included (released; G1).",
    )
    expand: Literal["add_radius", "to_distance", "moving_average", "none"] = Field(
        "add_radius",
        description="For an edit outside the nearest key but with its label: add eps_init to "
        "the radius (paper), set the radius to the distance (released; P1), also move the key "
        "halfway to the query, or do nothing, so that the edit fails.",
    )
    split: Literal["shrink", "half"] = Field(
        "shrink",
        description="For an edit near a key with another label: both radii become d/2 unless "
        "that is larger, or in any case (paper and released; G7).",
    )
    split_margin: float = Field(
        0.0,
        ge=0,
        description="Subtracted from the old key's radius in a split (released 1e-5; P3).",
    )
    zero_distance: Literal["overwrite", "ignore"] = Field(
        "overwrite",
        description="For the same input with another label: overwrite the key's value and label, "
        "or split as usual, after which neither value is ever used (released; G6).",
    )
    boundary: Literal["open", "closed"] = Field(
        "open", description="A key answers if d < radius (paper, Eq. 1) or d <= radius (P4)."
    )
    distance: Literal["exact", "matrix_product"] = Field(
        "exact",
        description="Euclidean distance by differences, or, above 25 keys, by a matrix product, "
        "in which an input's distance to its own key exceeds 0 (released; G8).",
    )
    train_on_expand: bool = Field(
        False,
        description="Also train the key's value on later edits with its label (released; P5); "
        "the paper doesn't.",
    )
    value_init: Literal["cold", "warm"] = Field(
        "cold",
        description="Start a new value from U[0, 1) or from the layer's own output at the query.",
    )
