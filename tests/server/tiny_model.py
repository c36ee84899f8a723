"""A two-layer Llama with generated weights, a small real tokenizer and a chat template that can
refuse: what a server needs to be a real one in a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

MODEL_ID = "tiny"
MAX_MODEL_LEN = 2048
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
REFUSED = "refuse this"
KV_BYTES_PER_BLOCK = 2 * 2 * 2 * 16 * 16 * 4  # layers, K and V, heads, head_dim, tokens, float32

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "max_position_embeddings": MAX_MODEL_LEN,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 2,
}

TEMPLATE = (
    "{% for message in messages %}"
    "{% if '" + REFUSED + "' in message.content %}"
    "{{ raise_exception('the template does not like this') }}{% endif %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_TEXTS = ["Name three colours of the rainbow and the rivers where they are seen.", "Grüße, 漢字"]


def write_tiny_model(folder: Path) -> None:
    """Everything but weights; the vocabulary ends below the model's 512."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(text, special=True) for text in CONTROL],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": CONTROL[0],
        "eos_token": CONTROL[2],
        "add_bos_token": False,
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    (folder / "config.json").write_text(json.dumps(CONFIG))


TINY_ENGINE = {
    "weights": "random",
    "device": "cpu",
    "threads": 1,
    "kv_cache_bytes": 2048 * KV_BYTES_PER_BLOCK,
}


def tiny_endpoint(folder: str, name: str = MODEL_ID, **engine: Any) -> dict[str, Any]:
    """The section of an endpoint that serves the tiny model, or one like it."""
    entity = {"name": name, "model": folder, "engine": {**TINY_ENGINE, **engine}}
    return {"name": name, "served_entities": [entity]}
