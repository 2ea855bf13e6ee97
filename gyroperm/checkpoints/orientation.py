"""What a Hugging Face configuration says of how weights are stored."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gyroperm.selection import Rules

# Their linear layers are Conv1D, whose weights are (in, out).
_CONV1D = {"decision_transformer", "gpt2", "imagegpt", "openai-gpt"}
_CONV1D_NAMES = re.compile(r"(^|\.)(c_attn|q_attn|c_proj|c_fc)\.weight$")


def oriented(rules: Rules, config: Mapping[str, Any]) -> Rules:
    """Rules that know besides which tensors the model's family stores as (in, out)."""
    if config.get("model_type") not in _CONV1D:
        return rules
    return replace(rules, transposed=(*rules.transposed, _CONV1D_NAMES))
