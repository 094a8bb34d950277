"""One program per peer, as its own documentation would write it, and what each has to be installed with."""
