"""Engines and how to talk to them: supervision, membership, the wire to one engine, and a fake one."""
