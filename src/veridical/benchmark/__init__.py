"""How fast ours are beside the field, and how much memory they take: `veridical bench losses`."""
