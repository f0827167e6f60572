"""Prompts as the engine will see them: the token ids of a request, computed in the router."""
