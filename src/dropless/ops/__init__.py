"""The mathematics: one op = one signature + one PyTorch reference; fast versions beside it."""
