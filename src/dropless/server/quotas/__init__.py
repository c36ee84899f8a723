"""How many queries and tokens one may have in which time."""
