"""Which workers serve a request: the cost of every way, in seconds, and policies that pick one."""
