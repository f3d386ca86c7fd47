"""Vision towers that come with multimodal models: their parameters from the fields of vision_config.

Only their size counts here (they are loaded beside the text model); a text step does not run them.
Shapes are those that transformers 5.23.0 instantiates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fabless.core.errors import UnsupportedError
from fabless.model.model import Component

if TYPE_CHECKING:
    from fabless.model.fields import Fields

_CHANNELS = 3  # red, green, blue


def _encoder_layer(width: int, d_ff: int) -> int:
    """Return one layer: four projections and a two-matrix MLP with biases, two layer norms."""
    return 4 * (width * width + width) + 2 * width * d_ff + d_ff + width + 4 * width


def gemma3(c: Fields, d_model: int) -> tuple[Component, ...]:
    """Return SigLIP and the projector of Gemma 3."""
    v = c.section("vision_config")
    if v.flag("vision_use_head"):
        raise UnsupportedError(f"{v.where}: a vision tower with a pooling head (vision_use_head) is not known")
    width, patch = v.integer("hidden_size"), v.integer("patch_size")
    patches = (v.integer("image_size") // patch) ** 2
    tower = v.integer("num_channels", default=_CHANNELS) * patch * patch * width + width + patches * width + 2 * width
    tower += v.layers("num_hidden_layers") * _encoder_layer(width, v.integer("intermediate_size"))
    return (Component("vision tower", tower), Component("projector", width * d_model + width))


def gemma4(c: Fields, d_model: int) -> tuple[Component, ...]:
    """Return the vision tower and projection of Gemma 4; an audio tower is refused by name."""
    if c.has("audio_config"):
        raise UnsupportedError(f"{c.where}: the audio tower of Gemma 4 (audio_config) is not known; set it to null to count without it")
    if not c.has("vision_config"):
        return ()
    v = c.section("vision_config")
    width, heads, d_head = v.integer("hidden_size"), v.integer("num_attention_heads"), v.integer("head_dim")
    kv_heads = v.integer("num_key_value_heads", default=heads)
    layer = 2 * width * d_head * (heads + kv_heads) + 2 * d_head + 3 * width * v.integer("intermediate_size") + 4 * width
    patch = v.integer("patch_size")
    tower = 2 * v.integer("position_embedding_size") * width + _CHANNELS * patch * patch * width + v.layers("num_hidden_layers") * layer
    return (Component("vision tower", tower), Component("projector", width * d_model))


def kimi(c: Fields, d_model: int) -> tuple[Component, ...]:
    """Return MoonViT and the projector of Kimi K2.5."""
    v = c.section("vision_config")
    width, patch = v.integer("vt_hidden_size"), v.integer("patch_size")
    positions = v.integer("init_pos_emb_height") * v.integer("init_pos_emb_width")
    tower = _CHANNELS * patch * patch * width + width + positions * width + 2 * width
    tower += v.layers("vt_num_hidden_layers") * _encoder_layer(width, v.integer("vt_intermediate_size"))
    merged = width
    for factor in v.items("merge_kernel_size"):
        merged *= int(factor)
    projector = 2 * v.integer("mm_hidden_size") + merged * merged + merged + merged * d_model + d_model
    return (Component("vision tower", tower), Component("projector", projector))
