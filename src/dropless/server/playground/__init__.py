"""The web pages: a playground, a dashboard, and the JSON that the dashboard shows."""
