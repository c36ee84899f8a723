"""Text to token ids and back: tokenizers, chat templates, detokenizer, grammars."""
