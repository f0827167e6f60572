"""Deciding for a gateway that carries the bytes itself: Envoy's external processing."""
