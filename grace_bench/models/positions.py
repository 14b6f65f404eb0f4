"""How many tokens a model takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_ROBERTA_LIKE = (
    *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "xmod"),
    *("data2vec-text", "longformer", "mpnet", "esm", "luke"),
)
"""Models whose first position follows the padding token's."""


def is_roberta_like(config: PretrainedConfig) -> bool:
    """Say whether a model numbers positions from its padding token."""
    return config.model_type in _ROBERTA_LIKE


def usable_positions(config: PretrainedConfig) -> int | None:
    """Return how many tokens a model takes; None: no limit."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and is_roberta_like(config):
        positions -= (1 if config.pad_token_id is None else config.pad_token_id) + 1
    return positions
