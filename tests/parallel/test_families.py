"""Every family gives on two ranks the logits that it gives on one."""

from __future__ import annotations

import pytest

from . import families
from .team import Check, Team


@pytest.mark.parametrize(
    "check",
    [
        families.check_dbrx,
        families.check_llama,
        families.check_mixtral,
        families.check_qwen2,
        families.check_fp8,
        families.check_all_tokens_to_experts_of_the_last_rank,
        families.check_expert_load,
    ],
)
def test_two_ranks_compute_what_one_does(check: Check, teams: dict[int, Team]) -> None:
    teams[2].run(check)
