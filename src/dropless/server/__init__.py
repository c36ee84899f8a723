"""HTTP: the OpenAI protocol in front of the engine."""
