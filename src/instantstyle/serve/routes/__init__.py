"""The HTTP routes, one file a subject; the work is done by the studio behind them."""
