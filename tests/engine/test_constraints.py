"""What one model's vocabulary allows a request to ask for."""

from __future__ import annotations

from dropless.engine.constraints import Constraints
from dropless.engine.sampling_params import GrammarSpec
from dropless.text.tokenizer import ByteTokenizer


def test_to_ask_whether_a_grammar_is_known_compiles_nothing() -> None:
    tokenizer, grammar = ByteTokenizer(), GrammarSpec("regex", "[a-c]{2}")
    constraints = Constraints(tokenizer, 300, tokenizer.eos_token_ids)
    assert constraints.known(grammar) is None
    assert "_compiler" not in vars(constraints)  # it reads the whole vocabulary
    compiled = constraints.compile(grammar)
    assert constraints.known(grammar) is compiled
    assert constraints.known(GrammarSpec("regex", "[a-c]{3}")) is None


def test_a_model_without_a_tokenizer_knows_no_grammar() -> None:
    assert Constraints(None, 300, ()).known(GrammarSpec("regex", "a")) is None
