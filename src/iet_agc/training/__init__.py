"""The round loop, and what it trains."""
