"""Functions that a model may call: what a request says of them, the prompt, the answer."""
