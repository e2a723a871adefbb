"""Talking over HTTP: the server with OpenAI's interface, and the page."""
