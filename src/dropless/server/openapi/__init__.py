"""The OpenAPI documents: of the whole server, and of one endpoint."""
