"""Whether, when and before whom a request may begin: promises, queues, shares, places."""
