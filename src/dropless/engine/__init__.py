"""From request to tokens: scheduler, KV cache, runner, sampler, and the process around them."""
