"""What a server serves: endpoints, the models behind them, and how calls are spread over them."""
