"""The platform's management calls."""
